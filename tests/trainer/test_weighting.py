"""What a token counts, with numbers by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from trainer import assembly, loop
from trainer.data.batch import Batch, MicroBatch
from trainer.data.loader import Loader
from trainer.engines import start
from trainer.recipe import Mixture, Recipe, Source
from trainer.run.weighting import weights
from trainer.text.rendered import IGNORE

A, B = Source(name="a"), Source(name="b", loss_multiplier=0.2)


def micro(*rows: tuple[str, int]) -> MicroBatch:
    """Rows of a source each, with so many supervised tokens."""
    labels_BT = torch.full((len(rows), 9), IGNORE)
    for row, (_, count) in enumerate(rows):
        labels_BT[row, 1 : 1 + count] = 5
    ids_BT = torch.zeros_like(labels_BT)
    batch = Batch(ids_BT=ids_BT, labels_BT=labels_BT, mask_BT=torch.ones_like(ids_BT).bool(), pixels_NCHW=None, pictures=(0,) * len(rows))
    return MicroBatch(batch, tuple(name for name, _ in rows))


def counted(recipe: Recipe, made: Sequence[MicroBatch], tokens: dict[str, list[float]]) -> list[list[float]]:
    return weights(recipe, made, [micro.batch.counts_B.tolist() for micro in made], tokens)


# Two micro-batches of a, with 4 and 2 tokens, and one of b with 5; the other rank has 6 of a and none of b.
OF_THE_RANK = (micro(("a", 3), ("a", 1)), micro(("a", 2)), micro(("b", 5)))
OF_ALL: dict[str, list[float]] = {"a": [6, 6], "b": [5, 0]}


def test_under_every_a_source_is_divided_by_its_tokens_of_all_ranks() -> None:
    found = counted(Recipe(sources=(A, B)), OF_THE_RANK, OF_ALL)

    assert found == [pytest.approx(row) for row in ([1 / 12, 1 / 12], [1 / 12], [0.2 / 5])]


def test_a_rank_mean_divides_by_the_micro_batch_then_by_micro_batches_and_ranks() -> None:
    found = counted(Recipe(sources=(A, B), loss_norm="rank_mean"), OF_THE_RANK, OF_ALL)

    a, b = [1 / 4 / 2 / 2] * 2, 1 / 2 / 2 / 2  # b is on one rank, in one micro-batch
    assert found == [pytest.approx(row) for row in (a, [b], [0.2 / 5 / 1 / 1])]


@pytest.mark.parametrize(("loss_norm", "a", "b"), [("global", 1 / 10, 0.2 / 10), ("rank_mean", 1 / 4 / 1 / 2, 0.2 / 4 / 1 / 2)])
def test_under_mixed_the_tokens_of_all_sources_are_divided_together(loss_norm: str, a: float, b: float) -> None:
    recipe = Recipe(sources=(A, B), mixture=Mixture(draw="mixed"), loss_norm=loss_norm)  # type: ignore[arg-type]

    found = counted(recipe, [micro(("a", 3), ("b", 1))], {"a": [3, 2], "b": [1, 4]})

    assert found == [pytest.approx([a, b])]


@pytest.mark.parametrize("loss_norm", ["global", "rank_mean"])
def test_what_has_no_token_counts_nothing_and_is_not_counted(loss_norm: str) -> None:
    recipe = Recipe(sources=(A, B), loss_norm=loss_norm)  # type: ignore[arg-type]

    found = counted(recipe, [micro(("a", 0)), micro(("a", 2)), micro(("b", 0))], {"a": [2, 0], "b": [0, 0]})

    assert found[1:] == [[0.5], [0.0]]


def test_the_loss_of_a_step_is_the_mean_of_the_micro_batches_means(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("loss_norm=rank_mean", "sources.colours.batch_size=4", "sources.colours.micro_batch_size=1")
    made = assembly.assemble(recipe)
    engine = start.build(made.model, recipe)
    with Loader(loop.feed(made), made.mixture.start(), stop=1, workers=0) as loader:
        step = next(loader)
    with torch.no_grad():
        means = [float(made.model(micro.batch).sums_B / micro.batch.counts_B) for micro in step.made]

    losses = loop.backward(engine, recipe, step.made, loop._exchanged(step, recipe, engine))

    assert len(means) == 4
    assert losses.total == pytest.approx(sum(means) / 4, rel=1e-6)
