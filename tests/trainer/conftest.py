"""Records, shards, a tokenizer and a recipe, all tiny and all real."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

import shards
from schemas import Part, Record, Turn
from schemas.record import image, image_part, record, text_part, turn
from trainer import recipe as recipes
from trainer.recipe import Recipe, TokenizerChoice
from trainer.text import tokenizer, vocabulary

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220), "yellow": (230, 220, 40)}

TINY = """
steps = 8
threads = 1
template = "v1"
max_tokens = 256

[vision.config]
model_type = "clip_vision_model"
image_size = 16
patch_size = 8
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2

[language.config]
model_type = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 512

[optimizer]
lr = 1e-2
"""


def parts_of(text: str) -> list[Part]:
    """Parts of a text in which "<0>" and "<1>" stand for pictures."""
    parts: list[Part] = []
    for number, piece in enumerate(text.replace("<1>", "<0>1").split("<0>")):
        if number:
            parts.append(image_part(int(piece.startswith("1"))))
            piece = piece.removeprefix("1")
        parts += [text_part(piece)] if piece else []
    return parts


@pytest.fixture(scope="session")
def said() -> Callable[..., Turn]:
    """said(role, text, train=None): a turn; "<0>" and "<1>" in the text are pictures."""
    return lambda role, text, train=None: turn(role, parts_of(text), train=train)


@pytest.fixture(scope="session")
def told(said: Callable[..., Turn]) -> Callable[..., Record]:
    """told(("user", text), ("assistant", text), ..., meta={}): a record with as many pictures as its turns place."""

    def make(*turns: tuple[Any, ...], meta: dict[str, Any] | None = None, choices: Sequence[Any] = ()) -> Record:
        spoken = [said(*words) for words in turns]
        count = max((part.image for words in spoken for part in words.parts if part.image is not None), default=-1) + 1
        images = [image(width=16, height=16, format="png", bytes=1)] * count
        return record("test", images=images, turns=spoken, choices=choices, meta=meta or {})

    return make


def flat(colour: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Pillow.new("RGB", (16, 16), colour).save(stream, "PNG")
    return stream.getvalue()


def colour_items() -> Iterator[tuple[Record, list[bytes], list[bytes]]]:
    for name, colour in COLOURS.items():
        data = flat(colour)
        shown = [image(width=16, height=16, format="png", bytes=len(data))]
        turns = [turn("user", parts_of("<0>\nWhich colour?")), turn("assistant", [text_part(name)])]
        yield record("colours", images=shown, turns=turns), [data], []


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of four records: a picture of one colour, the question which, and its name."""
    place = tmp_path_factory.mktemp("colours") / "shards"
    shards.write(place, colour_items())
    return str(place)


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of three records without pictures."""
    place = tmp_path_factory.mktemp("sums") / "shards"
    spoken = [("1 + 1?", "2"), ("1 + 2?", "3"), ("2 + 2?", "4")]
    turns = [[turn("user", [text_part(asked)]), turn("assistant", [text_part(said)])] for asked, said in spoken]
    shards.write(place, ((record("sums", turns=both), [], []) for both in turns))
    return str(place)


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("words")
    vocabulary.save(vocabulary.make(["A chat between a curious user and an assistant. USER: ASSISTANT: red green blue"] * 3, 330), folder)
    return str(folder)


@pytest.fixture(scope="session")
def spoken(words: str) -> tokenizer.Tokenizer:
    """The small byte-level tokenizer."""
    return tokenizer.load(TokenizerChoice(path=words))


@pytest.fixture
def tiny(tmp_path: Path, words: str, colours: str) -> Callable[..., Recipe]:
    """tiny("a.b=c", ..., sources=["name=place"]): a recipe of a tiny model, of the colours unless told otherwise."""

    def make(*settings: str, sources: Sequence[str] = (f"colours={colours}",)) -> Recipe:
        path = tmp_path / "tiny.toml"
        path.write_text(TINY)
        base = [f"tokenizer.path={words}", f"out={tmp_path / 'run'}"]
        return recipes.load(str(path), sources=sources, settings=[*base, *settings])

    return make


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory, words: str, colours: str) -> Path:
    """A run folder: a tiny LLaVA that has learnt which colour a picture has, in 100 steps, with checkpoints of step 50 and 100."""
    from trainer import assembly, loop
    from trainer.log import RunFolder

    folder = tmp_path_factory.mktemp("ran")
    (folder / "tiny.toml").write_text(TINY)
    settings = ["steps=100", "freeze.vision=false", "checkpoint.every=50", "sources.colours.batch_size=4", "log.tensorboard=false"]
    settings += [f"tokenizer.path={words}", f"out={folder / 'colours'}"]
    recipe = recipes.load(str(folder / "tiny.toml"), sources=[f"colours={colours}"], settings=settings)
    with RunFolder(recipe) as opened:
        loop.train(assembly.assemble(recipe), opened)
    return folder / "colours"
