"""What a step draws: integers alone, so no data and no model are needed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import RequestError
from shards.order import Order
from trainer.data.mixture import Mixture, MixtureSource, Planned, Position, check


def source(name: str, batch_size: int = 8, *, records: int = 100, **fields: Any) -> MixtureSource:
    fields.setdefault("order", Order([records // 2, records - records // 2], seed=1))
    return MixtureSource(name=name, batch_size=batch_size, **fields)


def run(mixture: Mixture, steps: int, position: Position | None = None) -> list[Planned]:
    """The next steps."""
    planned = []
    for _ in range(steps):
        planned.append(mixture.step(position or mixture.start()))
        position = planned[-1].next
    return planned


def drawn(planned: Sequence[Planned]) -> dict[str, list[int]]:
    """All draws of each source, as served."""
    found: dict[str, list[int]] = {}
    for step in planned:
        for name, draws in step.draws.items():
            found.setdefault(name, []).extend(draws.tolist())
    return found


def as_lists(planned: Planned) -> dict[str, list[int]]:
    return {name: draws.tolist() for name, draws in planned.draws.items()}


# every


def test_every_step_takes_a_batch_of_every_source() -> None:
    steps = run(Mixture([source("a", 3), source("b", 2)], "every", seed=0), 3)

    assert [as_lists(step) for step in steps] == [
        {"a": [0, 1, 2], "b": [0, 1]},
        {"a": [3, 4, 5], "b": [2, 3]},
        {"a": [6, 7, 8], "b": [4, 5]},
    ]
    assert steps[-1].next == Position(3, {"a": 9, "b": 6})


def test_a_batch_larger_than_its_source_goes_on_into_the_next_epoch() -> None:
    mixture = Mixture([source("a", 8, records=3)], "every", seed=0)

    shares = mixture.share(mixture.step(mixture.start()), 0, 1)["a"]

    times = Counter(zip(shares.shard.tolist(), shares.row.tolist(), strict=True))
    assert sorted(times) == [(0, 0), (1, 0), (1, 1)]
    assert sorted(times.values()) == [2, 3, 3]


# one


def test_one_group_a_step_by_weight_and_within_it_a_source_a_sample() -> None:
    groups = {"caption": 0.15, "region": 0.4, "segment": 0.45}  # GLaMM's own
    sources = [
        source("coco", group="caption", weight=1),
        source("instruct", group="caption", weight=1),
        source("genome", group="region"),
        source("ade", 4, group="segment", weight=5),
        source("refer", 4, group="segment", weight=3),
    ]
    mixture = Mixture(sources, "one", seed=0, groups=groups)

    steps = run(mixture, 1000)

    kinds = Counter(next(item.group for item in sources if item.name in step.draws) for step in steps)
    assert all(abs(kinds[name] - 1000 * weight) <= 3 for name, weight in groups.items())
    for step in steps:
        among = {item.group for item in sources if item.name in step.draws}
        assert len(among) == 1
        assert sum(len(draws) for draws in step.draws.values()) == (4 if among == {"segment"} else 8)
    counts = {name: len(draws) for name, draws in drawn(steps).items()}
    assert abs(counts["coco"] - counts["instruct"]) <= 3
    assert abs(counts["ade"] - (counts["ade"] + counts["refer"]) * 5 / 8) <= 3
    assert all(draws == list(range(len(draws))) for draws in drawn(steps).values())


def test_without_group_weights_a_group_weighs_what_its_sources_do() -> None:
    mixture = Mixture([source("a", group="x"), source("b", group="x", weight=2), source("c")], "one", seed=0)

    assert mixture.asked() == {"a": 0.25, "b": 0.5, "c": 0.25}


def test_the_sequence_of_groups_never_changes() -> None:
    mixture = Mixture([source("a", 2, weight=0.5), source("b", 2, weight=0.3), source("c", 2, weight=0.2)], "one", seed=0)

    assert "".join(next(iter(step.draws)) for step in run(mixture, 20)) == "babacbacaabacbabaaba"


# mixed


def test_one_batch_over_all_sources_by_share_of_records() -> None:
    steps = run(Mixture([source("a", weight=0.7), source("b", weight=0.2), source("c", weight=0.1)], "mixed", seed=0), 100)

    assert all(sum(len(draws) for draws in step.draws.values()) == 8 for step in steps)
    found = drawn(steps)
    assert all(abs(len(found[name]) - number) <= 3 for name, number in {"a": 560, "b": 160, "c": 80}.items())
    assert all(draws == list(range(len(draws))) for draws in found.values())


def test_without_weights_all_sources_end_their_epochs_together() -> None:
    mixture = Mixture([source("a", records=600), source("b", records=200)], "mixed", seed=0)

    (*_, last) = run(mixture, 100)

    assert mixture.epochs(last.next) == pytest.approx({"a": 1, "b": 1}, abs=0.01)


def pictures_and_texts(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every third draw has no picture; lengths repeat."""
    return draws % 3 > 0, draws * 7919 % 101


def test_batches_are_of_one_modality_and_about_one_length() -> None:
    sources = [source("a", weight=3, lengths=pictures_and_texts), source("b", weight=1, lengths=pictures_and_texts)]
    steps = run(Mixture(sources, "mixed", seed=0, group_steps=31), 62)

    kinds, spans = [], []
    for step in steps:
        found = [pictures_and_texts(draws) for draws in step.draws.values()]
        kinds.append(tuple(np.unique(np.concatenate([pictured for pictured, _ in found])).tolist()))
        lengths = np.concatenate([length for _, length in found])
        spans.append(int(lengths.max() - lengths.min()))
    assert Counter(kinds).keys() == {(True,), (False,), (False, True)}
    assert Counter(kinds)[False, True] <= 2  # what is over, once a block
    assert np.median(spans) < 12
    assert kinds != sorted(kinds)  # mixed, not one after the other


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 2**32), st.lists(st.floats(0.01, 10), min_size=1, max_size=4))
def test_grouping_changes_the_order_within_a_block_and_nothing_else(
    batch_size: int, group_steps: int, seed: int, weights: list[float]
) -> None:
    def mixture(lengths: Any) -> Mixture:
        sources = [source(f"s{n}", batch_size, weight=weight, lengths=lengths) for n, weight in enumerate(weights)]
        return Mixture(sources, "mixed", seed, group_steps=group_steps)

    grouped, plain = (run(mixture(lengths), 2 * group_steps) for lengths in (pictures_and_texts, None))

    assert [step.next for step in grouped] == [step.next for step in plain]
    for first in (0, group_steps):
        one, other = (drawn(steps[first : first + group_steps]) for steps in (grouped, plain))
        assert {name: sorted(draws) for name, draws in one.items()} == other
    assert all(sum(len(draws) for draws in step.draws.values()) == batch_size for step in grouped)
    for at, step in enumerate(grouped):
        later = drawn(grouped[at:])
        assert all(step.oldest[name] <= min(draws) for name, draws in later.items())
        assert step.oldest == grouped[at // group_steps * group_steps].oldest


def test_one_modality_alone_is_no_exception() -> None:
    def texts(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(draws), bool), draws

    steps = run(Mixture([source("a", 4, lengths=texts)], "mixed", seed=0, group_steps=3), 3)

    assert sorted(as_lists(step)["a"] for step in steps) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


# shares


@pytest.mark.parametrize("number", [2, 5, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_share_served_is_the_share_asked(number: int, seed: int) -> None:
    weights = np.random.default_rng(number + seed).uniform(0.01, 1, number)
    weights[0] = 0.001 * weights[1:].sum()
    for draw in ("one", "mixed"):
        sources = [source(f"s{n}", 100, weight=float(weight), group="g" if draw == "one" else None) for n, weight in enumerate(weights)]
        mixture = Mixture(sources, draw, seed)
        served = np.array([list(step.next.draws.values()) for step in run(mixture, 1000)])
        asked = np.array(list(mixture.asked().values()))
        assert (abs(served[-1] / 100_000 - asked) < 0.0001).all()  # ten times as close as it has to be
        assert (abs(served - asked * 100 * np.arange(1, 1001)[:, None]) < 6).all()  # and at every step


@pytest.mark.parametrize("number", [2, 20])
def test_groups_too(number: int) -> None:
    weights = np.random.default_rng(number).uniform(0.01, 1, number)
    mixture = Mixture([source(f"s{n}", 1, weight=float(weight)) for n, weight in enumerate(weights)], "one", 3)

    (*_, last) = run(mixture, 20_000)

    assert all(abs(last.next.draws[name] - 20_000 * share) < 6 for name, share in mixture.asked().items())


# ranks


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 10**6))
def test_ranks_cut_a_step_into_parts_that_differ_by_one(batch_size: int, ranks: int, step: int) -> None:
    mixture = Mixture([source("a", batch_size), source("b", 7)], "every", seed=0)
    planned = mixture.step(Position(step, {"a": step * batch_size, "b": step * 7}))

    shares = [mixture.share(planned, rank, ranks) for rank in range(ranks)]

    for name in ("a", "b"):
        assert sorted(np.concatenate([share[name].draws for share in shares]).tolist()) == planned.draws[name].tolist()
        sizes = [len(share[name].draws) for share in shares]
        assert max(sizes) - min(sizes) <= 1
    totals = [sum(len(part.draws) for part in share.values()) for share in shares]
    assert max(totals) - min(totals) <= 1


def test_no_rank_is_always_the_larger_one() -> None:
    mixture = Mixture([source("a", 10)], "every", seed=0)

    sizes = [[len(mixture.share(step, rank, 4)["a"].draws) for rank in range(4)] for step in run(mixture, 4)]

    assert sizes == [[3, 3, 2, 2], [2, 3, 3, 2], [2, 2, 3, 3], [3, 2, 2, 3]]


def test_a_share_says_which_records_in_the_order_in_which_they_lie() -> None:
    mixture = Mixture([source("a", 6, records=20)], "every", seed=0)
    planned = mixture.step(mixture.start())

    one, other = (mixture.share(planned, rank, 2)["a"] for rank in range(2))

    shard, row = mixture.sources[0].order.at(np.concatenate([one.draws, other.draws]))
    assert shard.tolist() == [*one.shard.tolist(), *other.shard.tolist()]
    assert row.tolist() == [*one.row.tolist(), *other.row.tolist()]
    assert len(np.flatnonzero(np.diff(shard))) == 1  # first all of the one shard, then all of the other
    assert {0, 1} == set(shard.tolist())


def test_more_ranks_than_records_leave_some_with_nothing() -> None:
    mixture = Mixture([source("a", 2)], "every", seed=0)

    assert [len(mixture.share(mixture.step(mixture.start()), rank, 3)["a"].draws) for rank in range(3)] == [1, 1, 0]


# positions


@pytest.mark.parametrize("draw", ["every", "one", "mixed"])
def test_a_run_goes_on_from_any_step_as_if_it_had_not_stopped(draw: Any) -> None:
    def mixture() -> Mixture:
        lengths = pictures_and_texts if draw == "mixed" else None
        weights = (None, None) if draw == "every" else (0.3, 0.7)
        return Mixture([source(name, 6, weight=weight, lengths=lengths) for name, weight in zip("ab", weights, strict=True)], draw, 5)

    whole = run(mixture(), 70)

    for stopped in (1, 31, 32, 45):
        state = json.loads(json.dumps(mixture().state(whole[stopped - 1].next), sort_keys=True))
        position, notes = mixture().resumed(state)
        assert notes == []
        again = run(mixture(), 70 - stopped, position)
        assert [as_lists(step) for step in again] == [as_lists(step) for step in whole[stopped:]]
        assert again[-1].next == whole[-1].next


def test_a_source_that_is_added_begins_at_its_first_draw_and_one_that_goes_is_forgotten() -> None:
    adapted, notes = Position(7, {"a": 56, "b": 14}).adapted(["a", "c"])

    assert adapted == Position(7, {"a": 56, "c": 0})
    assert notes == ["source c: new, begins at draw 0", "source b: no longer there, left at draw 14"]


def test_a_run_goes_on_with_a_source_more() -> None:
    before = Mixture([source("a")], "every", seed=0)
    after = Mixture([source("a", 4), source("b", 3)], "every", seed=0)
    (*_, last) = run(before, 3)

    position, notes = after.resumed(before.state(last.next))

    assert notes == ["source b: new, begins at draw 0"]
    assert as_lists(after.step(position)) == {"a": [24, 25, 26, 27], "b": [0, 1, 2]}


def test_the_same_data_elsewhere_is_accepted_and_other_data_refused() -> None:
    state = Mixture([source("a", fingerprint="f1"), source("b", fingerprint="f2")], "every", 0).state(Position(0, {"a": 0, "b": 0}))

    check(state, {"a": "f1", "c": "new"})
    with pytest.raises(RequestError, match=r"^source b: expected the data that the run began with, fingerprint f2, found f3$"):
        check(state, {"a": "f1", "b": "f3"})


def test_a_change_inside_of_a_block_is_said() -> None:
    def mixture(*batch: int, group_steps: int = 32, names: str = "ab") -> Mixture:
        return Mixture([source(name, *batch, lengths=pictures_and_texts) for name in names], "mixed", 0, group_steps=group_steps)

    inside, between = (mixture(8).state(run(mixture(8), steps)[-1].next) for steps in (33, 64))
    said = "block: changed inside of its 32 steps, so some of its draws are served twice, and as many are not"

    assert mixture(8).resumed(inside)[1] == []
    for other in (mixture(4), mixture(8, group_steps=64), mixture(8, names="a")):
        assert said in other.resumed(inside)[1]
    assert mixture(4).resumed(between)[1] == []


def test_another_order_is_refused() -> None:
    state = Mixture([source("a")], "every", 0).state(Position(0, {"a": 0}))

    with pytest.raises(RequestError, match=r"^seed: expected 0 as in the checkpoint, found 1$"):
        Mixture([source("a")], "every", 1).resumed(state)
    with pytest.raises(RequestError, match=r"^source a: order: expected .*'window': 16.* as in the checkpoint, found .*'window': 4"):
        Mixture([source("a", order=Order([50, 50], 1, window=4))], "every", 0).resumed(state)


@pytest.mark.parametrize(
    "found", [{}, {"step": 1}, {"step": -1, "draws": {}}, {"step": 1, "draws": {"a": 0.5}}, {"step": True, "draws": {}}]
)
def test_what_is_no_position_is_refused(found: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="position: expected"):
        Position.from_dict(found)


def test_another_mixtures_position_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^position: expected draw numbers of a, found b$"):
        Mixture([source("a")], "every", 0).step(Position(0, {"b": 0}))


# epochs


def test_steps_given_as_epochs() -> None:
    every = Mixture([source("a", 10, records=100), source("b", 10, epoch_samples=1000)], "every", 0)
    mixed = Mixture([source("a", 16, records=600), source("b", 16, records=65)], "mixed", 0)

    assert every.steps(1) == 100
    assert every.epochs(Position(50, {"a": 500, "b": 500})) == {"a": 5, "b": 0.5}
    assert mixed.steps(1) == 42  # 665 records in batches of 16
    assert Mixture([source("a", 2, weight=1), source("b", 2, weight=3)], "one", 0).steps(0.5) == 100


# what can not be drawn


@pytest.mark.parametrize(
    ("sources", "draw", "more", "said"),
    [
        ([], "every", {}, "sources: expected at least one"),
        ([source("a"), source("a")], "every", {}, "sources: expected different names, found a twice"),
        ([source("a")], "some", {}, "draw: expected every, one or mixed, found 'some'"),
        ([source("a", 0)], "every", {}, "source a: batch_size: expected at least 1, found 0"),
        ([source("a", weight=1.0)], "every", {}, "source a: weight: expected none"),
        ([source("a", group="g")], "mixed", {}, "source a: group: expected none"),
        ([source("a"), source("b", weight=0)], "one", {}, "source b: weight: expected a number above 0, found 0"),
        ([source("a", weight=-1)], "one", {}, "source a: weight: expected a number above 0, found -1"),
        ([source("a", weight=float("nan"))], "mixed", {}, "source a: weight: expected a number above 0, found nan"),
        ([source("a", weight=float("inf"))], "mixed", {}, "source a: weight: expected a number above 0, found inf"),
        ([source("a", weight=1), source("b")], "mixed", {}, "source b: weight: expected one, as other sources have"),
        ([source("a", lengths=pictures_and_texts), source("b")], "mixed", {}, "source b: lengths: expected one"),
        ([source("a", 4), source("b", 5)], "mixed", {}, "source b: batch_size: expected 4 as of a, since draw = mixed has one, found 5"),
        (
            [source("a", 4, group="g"), source("b", 5, group="g")],
            "one",
            {},
            "source b: batch_size: expected 4 as of a, since group g has one",
        ),
        ([source("a", group="h")], "one", {"groups": {"g": 1, "h": 1}}, "group g: expected a source in it, found none"),
        ([source("a", group="h")], "one", {"groups": {"h": 0}}, "group h: weight: expected a number above 0, found 0"),
        ([source("a", group="g"), source("b", group="x")], "one", {"groups": {"g": 1}}, "source b: group: expected one of g, found x"),
        ([source("a")], "every", {"groups": {"g": 1}}, "groups: expected none under draw = every, found g"),
        ([source("a", epoch_samples=0)], "every", {}, "source a: epoch_samples: expected at least 1, found 0"),
        ([source("a")], "mixed", {"group_steps": 0}, "group_steps: expected at least 1, found 0"),
    ],
)
def test_what_can_not_be_drawn_is_refused_by_name(sources: list[MixtureSource], draw: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as refused:
        Mixture(sources, draw, 0, **more)
    assert str(refused.value).startswith(said)
