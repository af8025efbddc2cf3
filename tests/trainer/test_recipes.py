"""The shipped recipes: their values, their twins, and that these train alike under every engine."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

import shards
from schemas.record import image, image_part, record, text_part, turn
from tests.trainer.conftest import COLOURS, colour_items, flat
from tests.trainer.forked import Ended, Ranks
from tests.trainer.test_llava_export import prompt
from trainer import recipe as recipes
from trainer.use import export
from trainer.use import trained as trained_runs
from trainer.use.trained import Trained
from trainer.weights import origins

PUBLISHED = [name.removesuffix("-tiny") for name in recipes.shipped() if name.endswith("-tiny")]

# What a twin may have of its own: sizes, paths and steps. Where and how a run is made (recipes.harmless) may differ anyway.
OWN = (
    "steps",
    "schedule.warmup_steps",
    "tokenizer.path",
    "vision.weights",
    "vision.open_clip",
    "vision.config.*",
    "projector.weights",
    "language.weights",
    "language.config.*",
    "flamingo.depth",
    "flamingo.latents",
    "flamingo.heads",
    "flamingo.head_width",
    "lora.rank",
    "lora.alpha",
    "mixture.batch_size",
    "sources.*.batch_size",
    "sources.*.epoch_samples",
)
ENGINES = ("ddp", "fsdp", "deepspeed")  # on two ranks, against one rank


def test_the_published_recipes_are_there() -> None:
    flamingos = [f"openflamingo-{size}" for size in ("3b", "4b", "9b")]
    llavas = [f"llava15-7b-{stage}" for stage in ("finetune", "lora", "pretrain")]
    assert sorted(PUBLISHED) == sorted(["basicvlm-qwen7b", *flamingos, *llavas])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_twin_differs_in_sizes_paths_and_steps_alone(name: str) -> None:
    whole, twin = recipes.load(name), recipes.load(f"{name}-tiny")

    differs = recipes.differences(whole, twin)

    assert {key for key in differs if not recipes.harmless(key, whole) and not any(fnmatch(key, own) for own in OWN)} == set()
    assert twin.steps == 20
    assert whole.lora.rank * twin.lora.alpha == whole.lora.alpha * twin.lora.rank
    assert all(source.shards is None for source in (*whole.sources, *twin.sources))


# Written out from the upstream scripts: learning rate, decay, clipping, steps, records a step by source (or of all), records a GPU holds.
VALUES = {
    "openflamingo-3b": (1e-4, 0.1, 1.0, 30_720, {"mmc4": 32 * 64, "laion": 64 * 64}, [32, 64]),
    "openflamingo-4b": (1e-4, 0.1, 1.0, 30_720, {"mmc4": 32 * 64, "laion": 64 * 64}, [32, 64]),
    "openflamingo-9b": (1e-4, 0.1, 1.0, 30_720, {"mmc4": 32 * 64, "laion": 64 * 64}, [32, 64]),
    "llava15-7b-pretrain": (1e-3, 0.0, 0.0, math.ceil(558_128 / 256), 32 * 8, [32]),
    "llava15-7b-finetune": (2e-5, 0.0, 0.0, math.ceil(665_298 / 128), 16 * 8, [16]),
    "llava15-7b-lora": (2e-4, 0.0, 0.0, math.ceil(665_298 / 128), 16 * 8, [16]),
    "basicvlm-qwen7b": (3e-5, 0.0, 1.0, 2 * 300_000 // 16, {"captions": 4 * 4}, [4]),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_recipe_has_the_published_values(name: str) -> None:
    lr, decay, clip, steps, records, held = VALUES[name]
    chosen = recipes.load(name)

    optimizer, mixture = chosen.optimizer, chosen.mixture
    every = mixture.draw == "every"
    assert (optimizer.lr, optimizer.weight_decay, optimizer.max_grad_norm, chosen.steps) == (lr, decay, clip, steps)
    assert ({source.name: source.batch_size for source in chosen.sources} if every else mixture.batch_size) == records
    assert ([source.micro_batch_size for source in chosen.sources] if every else [mixture.micro_batch_size]) == held
    assert (optimizer.betas, optimizer.eps, chosen.seed) == ((0.9, 0.999), 1e-8, 42)


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_is_known_where_the_weights_of_a_recipe_are(name: str) -> None:
    text = recipes.find(name).read_text()

    folders = set(re.findall(r'"weights/([^/"]+)', text))

    assert folders
    assert folders <= set(origins.HUB)


def test_the_readme_has_every_recipe() -> None:
    text = (recipes.SHIPPED / "README.md").read_text()

    assert [name for name in [*PUBLISHED, "smol", "tiny-demo"] if name.removeprefix("openflamingo") not in text] == []


def documents() -> Iterator[tuple]:
    """Two pictures in a text, each with a sentence that is like it; one picture; a picture that is like nothing."""
    pairs = [("red", "blue"), ("green", "yellow"), ("yellow", "red"), ("blue", "green")]
    for first, second in pairs:
        data = [flat(COLOURS[first]), flat(COLOURS[second])]
        shown = [
            image(width=16, height=16, format="png", bytes=len(one), similarity=like) for one, like in zip(data, (0.3, 0.25), strict=True)
        ]
        parts = [text_part("Two. "), image_part(0), text_part(f"It is {first}. "), image_part(1), text_part(f"It is {second}.")]
        yield record("mmc4", images=shown, turns=[turn("text", parts)]), data, []


def captions() -> Iterator[tuple]:
    for name, colour in COLOURS.items():
        data = flat(colour)
        shown = [image(width=16, height=16, format="png", bytes=len(data))]
        yield record("laion", images=shown, turns=[turn("text", [image_part(0), text_part(f"all {name}")])]), [data], []


def instructions() -> Iterator[tuple]:
    """Questions about pictures, and without any."""
    yield from colour_items()
    for asked, said in (("1 + 1?", "2"), ("What is blue and yellow together?", "green")):
        yield record("instruct", images=[], turns=[turn("user", [text_part(asked)]), turn("assistant", [text_part(said)])]), [], []


DATA = {"mmc4": documents, "laion": captions, "pretrain": colour_items, "instruct": instructions, "captions": colour_items}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Shards for each source that a recipe names."""
    folder = tmp_path_factory.mktemp("places")
    for name, items in DATA.items():
        shards.write(folder / name, items())
    return {name: str(folder / name) for name in DATA}


@pytest.fixture(scope="module")
def ranks(root: Path) -> Iterator[Ranks]:
    with Ranks(root, "matplotlib.pyplot", "open_clip", "peft", "trainer.engines.fsdp", "trainer.engines.deepspeed") as started:
        yield started


# Dropout falls otherwise on every rank, and 16 bits round otherwise; a rate of 0 in the first steps would hide what the rest does.
SAME = ("lora.dropout=0", "precision.dtype=fp32", "log.tensorboard=false", "engine.timeout=60")


def trained(ranks: Ranks, name: str, places: dict[str, str], words: str, out: Path, *settings: str, count: int) -> list[Ended]:
    chosen = recipes.load(f"{name}-tiny")
    sources = [word for source in chosen.sources for word in ("--source", f"{source.name}={places[source.name]}")]
    changes = [word for setting in (f"tokenizer.path={words}", *SAME, *settings) for word in ("--set", setting)]
    return ranks.run("train", f"{name}-tiny", *sources, *changes, "--out", str(out), ranks=count)


@torch.no_grad()
def logits(run: Trained) -> torch.Tensor:
    batch = prompt([1, -200, 5, 6, 7], run.preprocess.size)
    batch.ids_BT[batch.ids_BT == -200] = run.tokenizer.specials.get("<image>", -200)
    return run.model.eval().logits(batch)[0]


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_twin_trains_with_the_same_loss_under_every_engine_and_is_exported(
    name: str, ranks: Ranks, places: dict[str, str], words: str, tmp_path: Path
) -> None:
    [alone] = trained(ranks, name, places, words, tmp_path / "single", count=1)
    assert (alone.status, alone.stdout.split(" ")[:2]) == (0, ["20", "steps"]), alone.stderr
    expected = lines(tmp_path / "single")
    assert len(expected) == 20
    assert all(line["updated"] and math.isfinite(line["loss"]) and line["tokens_supervised"] > 0 for line in expected)

    for engine in ENGINES:
        ended = trained(ranks, name, places, words, tmp_path / engine, f"engine.kind={engine}", count=2)
        assert [one.status for one in ended] == [0, 0], ended[0].stderr + ended[1].stderr
        found = lines(tmp_path / engine)
        assert [line["records"] for line in found] == [line["records"] for line in expected]
        assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in expected], abs=1e-4), engine

    run = trained_runs.load(tmp_path / "single", settings=SAME)
    wanted = logits(run)
    export.export(run, "merged", tmp_path / "merged")
    torch.testing.assert_close(logits(trained_runs.load(tmp_path / "merged")), wanted, atol=1e-5, rtol=1e-5)
