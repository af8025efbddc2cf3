"""Reading ahead: the order of the draws whichever thread is first, deadlines, and an end without threads left over."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shards
from schemas import RecordError
from schemas.record import record, text_part, turn
from shards.budget import Budget, BudgetError
from shards.order import Order
from trainer.data.loader import Feed, Loader, StalledError
from trainer.data.mixture import Mixture, MixtureSource
from trainer.data.sources import Sample
from trainer.text.rendered import LeftOut

Make = Callable[[str, int, Sample], Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> shards.Shards:
    place = tmp_path_factory.mktemp("lines") / "shards"
    items = ((record("lines", turns=[turn("text", [text_part(f"line {n}")])]), [], []) for n in range(60))
    shards.write(place, items, shard_bytes=40_000)
    return shards.open(place)


@pytest.fixture
def loader(data: shards.Shards) -> Iterator[Callable[..., Loader[dict[str, list[Any]]]]]:
    """loader(make, steps=8, ...): steps of five draws of the source "lines"; closed at the end."""
    made = []

    def start(make: Make, *, steps: int | None = 8, budget: Budget | None = None, **how: Any) -> Loader[dict[str, list[Any]]]:
        mixture = Mixture([MixtureSource(name="lines", order=Order([len(s) for s in data.shards], 3), batch_size=5)], "every", 3)
        feed = Feed(mixture=mixture, data={"lines": data}, make=make, finish=dict, budgets={"lines": budget or Budget(where="lines")})
        made.append(Loader(feed, mixture.start(), stop=steps, **how))
        return made[-1]

    yield start
    for one in made:
        one.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("loader", "planner"))]


def draws(loader: Loader[dict[str, list[Any]]]) -> list[list[Any]]:
    return [step.made["lines"] for step in loader]


def slow_first(source: str, draw: int, sample: Sample) -> int:
    """The earlier of two draws takes longer."""
    time.sleep(0.003 * (draw % 2 == 0))
    return draw


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_the_order_is_that_of_the_draws_whichever_thread_is_first(loader: Callable, workers: int) -> None:
    found = draws(loader(slow_first, workers=workers))

    assert [sorted(step) for step in found] == [list(range(at, at + 5)) for at in range(0, 40, 5)]
    assert found == draws(loader(slow_first, workers=0))


def test_a_hole_shifts_nothing_and_is_counted(loader: Callable) -> None:
    def make(source: str, draw: int, sample: Sample) -> int:
        if draw in (3, 11):
            raise RecordError("image_decode", "cut")
        if draw == 12:
            raise LeftOut("min_images", "too few")
        return draw

    steps = list(loader(make, workers=2))

    assert [sorted(step.made["lines"]) for step in steps[:3]] == [[0, 1, 2, 4], [5, 6, 7, 8, 9], [10, 13, 14]]
    assert [(step.counts["lines"].served, step.counts["lines"].bad, step.counts["lines"].left_out) for step in steps[:3]] == [
        (4, 1, 0),
        (5, 0, 0),
        (3, 1, 1),
    ]
    assert steps[-1].position.draws == {"lines": 40}


@pytest.mark.parametrize("workers", [0, 2])
def test_over_the_budget_the_reading_ends(loader: Callable, workers: int) -> None:
    def make(source: str, draw: int, sample: Sample) -> int:
        raise RecordError("image_decode", "cut")

    with pytest.raises(BudgetError, match=r"lines 0000\S+: bad records: expected fewer than 3 in a row, found 3"):
        list(loader(make, workers=workers, budget=Budget(run=3, where="lines")))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_nobody_expected_is_raised_where_the_step_is_asked_for(loader: Callable, workers: int) -> None:
    def make(source: str, draw: int, sample: Sample) -> int:
        if draw == 7:
            raise ZeroDivisionError("a mistake of ours")
        return draw

    steps = loader(make, workers=workers)

    assert sorted(next(steps).made["lines"]) == [0, 1, 2, 3, 4]
    for _ in range(2 if workers else 1):
        with pytest.raises(ZeroDivisionError, match="a mistake of ours"):
            next(steps)


def test_a_record_that_never_comes_is_told_within_the_time(loader: Callable) -> None:
    stuck = threading.Event()

    def make(source: str, draw: int, sample: Sample) -> int:
        if draw == 6:
            stuck.wait(20)
        return draw

    steps = loader(make, workers=1, timeout=0.3)
    try:
        next(steps)
        with pytest.raises(StalledError, match=r"expected a (record of step 1|step) within 0.3 s, found"):
            next(steps)
    finally:
        stuck.set()


def test_no_more_is_read_ahead_than_was_said(loader: Callable) -> None:
    read: set[int] = set()

    def make(source: str, draw: int, sample: Sample) -> int:
        read.add(draw // 5)
        return draw

    steps = loader(make, steps=None, workers=2, prefetch=3)
    next(steps)
    until = time.monotonic() + 10
    while len(read) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)

    assert read == {0, 1, 2, 3}


def test_every_nth_step_is_the_same_step(loader: Callable) -> None:
    whole = draws(loader(slow_first))

    parts = [draws(loader(slow_first, every=3, first=first)) for first in range(3)]

    assert [parts[n % 3][n // 3] for n in range(8)] == whole


def test_ranks_have_equally_many_steps_and_share_the_records(loader: Callable) -> None:
    whole = draws(loader(slow_first))

    both = [draws(loader(slow_first, rank=rank, ranks=7)) for rank in range(7)]

    assert {len(rank) for rank in both} == {8}
    assert [sorted(itertools.chain(*(rank[n] for rank in both))) for n in range(8)] == [sorted(step) for step in whole]


def test_a_shard_that_goes_missing_is_holes(loader: Callable, data: shards.Shards, tmp_path: Any) -> None:
    import shutil

    copy = shutil.copytree(data.place.folder or "", tmp_path / "copy")
    (copy / data.shards[0].name).unlink()
    broken, order = shards.open(copy), Order([len(s) for s in data.shards], 3)
    mixture = Mixture([MixtureSource(name="lines", order=order, batch_size=60)], "every", 3)
    budget = Budget(0.5, 100, where="lines")
    feed = Feed(mixture=mixture, data={"lines": broken}, make=lambda _, __, sample: sample.key, finish=dict, budgets={"lines": budget})

    with Loader(feed, mixture.start(), stop=1) as steps:
        step = next(steps)

    assert step.counts["lines"].bad == len(data.shards[0])
    assert sorted(step.made["lines"]) == sorted(sample.key for shard in data.shards[1:] for sample in shard)
