from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch

from schemas import RequestError
from trainer import assembly, loop, recipe
from trainer.log import RunFolder
from trainer.recipe import Recipe
from trainer.run import held_out
from trainer.text import tokenizer
from trainer.use import evaluate, trained

Tiny = Callable[..., Recipe]


def held(*sources: str) -> str:
    """A setting of these NAME=PLACE."""
    pairs = (source.split("=", 1) for source in sources)
    return "held_out.sources=[" + ", ".join(f'{{name="{name}", shards="{place}"}}' for name, place in pairs) + "]"


def run(recipe: Recipe) -> list[dict]:
    """The lines of the log."""
    with RunFolder(recipe) as folder:
        loop.train(assembly.assemble(recipe), folder)
    return [json.loads(line) for line in (Path(recipe.out or "") / "log.jsonl").read_text().splitlines()]


def test_the_log_tells_the_held_out_loss_every_so_many_steps_and_at_the_end(tiny: Tiny, colours: str, sums: str, tmp_path: Path) -> None:
    lines = run(tiny("steps=5", "held_out.every=2", "checkpoint.every=4", held(f"colours={colours}", f"sums={sums}")))

    assert [line["step"] for line in lines if "held_out" in line] == [1, 3, 4]
    later = evaluate.losses(trained.load(tmp_path / "run", 4))
    assert lines[3]["held_out"] == pytest.approx({name: found.loss for name, found in later.items()}, rel=1e-5)
    assert lines[1]["held_out"]["colours"] > lines[4]["held_out"]["colours"]


def test_measuring_changes_nothing_of_the_run(tiny: Tiny, colours: str, tmp_path: Path) -> None:
    lora = ("steps=4", "lora.rank=2", "lora.dropout=0.5")
    run(tiny(*lora, f"out={tmp_path}/without"))
    run(tiny(*lora, f"out={tmp_path}/with", "held_out.every=1", held(f"colours={colours}")))

    one, two = (safetensors.torch.load_file(tmp_path / name / "trained.safetensors") for name in ("without", "with"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_ranks_share_the_batches_out(tiny: Tiny, colours: str, words: str) -> None:
    made = assembly.assemble(tiny("held_out.batch_size=1"))
    source = held_out.opened(made.recipe, made.recipe.sources, tokenizer.load(made.recipe.tokenizer), 3)[0]
    calls: list[int] = []
    told: list[Sequence[float]] = []

    def measured(rank: int, ranks: int) -> held_out.Measured:
        def evaluated(batch: held_out.Batch) -> torch.Tensor:
            calls.append(rank)
            with torch.no_grad():
                return made.model.eval()(batch).sums_B

        def gather(numbers: Sequence[float]) -> list[list[float]]:
            told.append(numbers)
            return [list(numbers) for numbers in told[-ranks:]]

        parts = {"preprocess": made.examples.preprocess, "fit": made.model.fit, "evaluate": evaluated, "gather": gather}
        return held_out.Measure(recipe=made.recipe, rank=rank, ranks=ranks, **parts)(source)

    alone = measured(0, 1)
    measured(0, 2)
    both = measured(1, 2)

    assert alone.records == 3
    assert both._replace(loss=None) == alone._replace(loss=None)
    assert both.loss == pytest.approx(alone.loss)
    assert calls == [0] * 3 + [0] * 2 + [1] * 2  # the second rank has one batch, and one of nothing


def test_a_held_out_source_s_place_may_come_with_the_command(tiny: Tiny, colours: str, tmp_path: Path) -> None:
    path = tmp_path / "held.toml"
    path.write_text(recipe.as_toml(tiny("held_out.every=5", 'held_out.sources=[{name="val", template="plain"}]')))

    with pytest.raises(
        RequestError, match=r"held_out.sources.val.shards: expected the place of indexed shards, found none; give --source val=PLACE"
    ):
        assembly.assemble(recipe.load(str(path)))
    bound = recipe.load(str(path), sources=[f"val={colours}"])

    assert (bound.held_out.sources[0].shards, bound.held_out.sources[0].template) == (colours, "plain")
    assert recipe.harmless("held_out.sources.val.shards", Recipe())
    assert recipe.harmless("held_out.every", Recipe())
