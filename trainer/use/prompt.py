"""A prompt: what a person says and shows, as the template of a run writes it, up to where the answer begins.

Under template plain and flamingo there is no conversation: a prompt is a document that the answer goes on from. Under flamingo the text of
each picture but the last is closed by <|endofchunk|>, so that pairs of pictures and texts are a few-shot prompt. Text is data here too:
`<image>` says where a picture goes by splitting the text, and no other special token is ever read from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from schemas import Part, RecordError, RequestError, Turn
from schemas.record import image_part, record, text_part, turn
from trainer.data.pixels import Pixels, Preprocess
from trainer.recipe import Recipe
from trainer.text import basicvlm_text, flamingo_text, rendered, template
from trainer.text.flamingo_text import END_OF_CHUNK
from trainer.text.rendered import IGNORE, MARKER, Rendered
from trainer.text.tokenizer import Tokenizer

DOCUMENTS = ("plain", "flamingo")  # templates whose prompts the answer goes on from


class Prompt(NamedTuple):
    """What the model is given."""

    rendered: Rendered
    pictures: list[Pixels]  # float32 (3, H, W)

    def shown(self) -> list[Pixels]:
        """One for each picture in the ids, in order."""
        return [self.pictures[index] for index in self.rendered.images]


def given(options: Sequence[tuple[str, str]], template: str) -> tuple[Turn, list[Path]]:
    """One turn of --image and --prompt options in the order they were given, and its pictures' files.

    A picture stands where its option does, and options stand on lines of their own; where a text has an <image>, the k-th of them is the
    k-th picture. Raises RequestError where there are not as many as pictures.
    """
    images = [Path(value) for name, value in options if name == "image"]
    texts = [value for name, value in options if name == "prompt"]
    marks = sum(text.count(MARKER) for text in texts)
    lines = template not in DOCUMENTS
    if not marks:
        parts = list(_in_order(options, lines=lines))
    elif marks == len(images):
        parts = list(_marked(("\n" if lines else "").join(texts)))
    else:
        raise RequestError(f"--prompt: expected an {MARKER} for each of {len(images)} --image, or none at all, found {marks}")
    return turn("user" if lines else "text", parts), images


def render(turns: Sequence[Turn], recipe: Recipe, tokenizer: Tokenizer) -> Rendered:
    """The turns up to where the answer to the last one begins. Raises RequestError where the template has no place for them."""
    asked = record("prompt", turns=turns)
    try:
        if recipe.template == "flamingo":
            pieces = flamingo_text.prompt(asked, turns)
        else:
            pieces = template.pieces(asked, turns, recipe.template, _system(recipe), tokenizer, reply=True)
        out = rendered.tokenise(pieces, tokenizer)
    except RecordError as error:
        raise RequestError(f"prompt: {error}") from error
    return flamingo_text.with_tokens(out, tokenizer) if recipe.model.family == "flamingo" else out


def stops(recipe: Recipe, tokenizer: Tokenizer) -> list[int]:
    """Ids that end an answer: the tokenizer's end token, and what the template ends an answer with."""
    found = {tokenizer.eos}
    if recipe.template == "flamingo":
        found.add(tokenizer.special(END_OF_CHUNK))
    elif recipe.template == "plain":  # a caption ends with its line, and a line break may be one token with what stands before it
        found |= {id for id in range(tokenizer.size) if tokenizer.backend.decode([id]).endswith("\n")}
    else:
        turns = [turn("user", [text_part("a")]), turn("assistant", [text_part("b")])]
        pieces = template.pieces(record("prompt", turns=turns), turns, recipe.template, _system(recipe), tokenizer)
        last = [label for label in rendered.tokenise(pieces, tokenizer).labels if label != IGNORE][-1]
        found |= {last} & set(tokenizer.specials.values())
    return sorted(found)


def pixels(path: Path, preprocess: Preprocess) -> Pixels:
    """A picture's file as the tower sees it. Raises RequestError where it is none that the tower takes, OSError where it is not there."""
    try:
        return preprocess.pixels(path.read_bytes())
    except RecordError as error:
        raise RequestError(f"{path}: expected a picture that the tower takes, found {error}") from error


def _system(recipe: Recipe) -> str | None:
    return basicvlm_text.SYSTEM if recipe.system is None and recipe.compat == "basicvlm" else recipe.system


def _in_order(options: Sequence[tuple[str, str]], *, lines: bool) -> Iterator[Part]:
    image = 0
    for number, (name, value) in enumerate(options):
        if number and lines:
            yield text_part("\n")
        yield image_part(image) if name == "image" else text_part(value)
        image += name == "image"


def _marked(text: str) -> Iterator[Part]:
    for number, piece in enumerate(text.split(MARKER)):
        if number:
            yield image_part(number - 1)
        if piece:
            yield text_part(piece)
