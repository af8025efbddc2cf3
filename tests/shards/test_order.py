"""The order of draws: each record once an epoch, or each at the same rate; the same for ever; each rank on few shards."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import RequestError
from shards.order import Order

counts_of_shards = st.lists(st.integers(0, 40), min_size=1, max_size=40).filter(sum)


def served(order: Order, first: int, last: int) -> list[tuple[int, int]]:
    shard, row = order.at(np.arange(first, last))
    return list(zip(shard.tolist(), row.tolist(), strict=True))


def every(counts: list[int]) -> list[tuple[int, int]]:
    return [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


def test_the_order_of_five_records_never_changes() -> None:
    order = Order([3, 2], seed=0)

    assert served(order, 0, 5) == [(0, 0), (1, 0), (0, 2), (1, 1), (0, 1)]
    assert served(order, 5, 10) == [(0, 1), (1, 0), (0, 0), (0, 2), (1, 1)]
    assert served(order, 10, 15) == [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1)]


def test_the_order_of_windows_never_changes() -> None:
    order = Order([3, 0, 4, 2, 1], seed=7, window=2)

    assert served(order, 0, 6) == [(2, 3), (3, 1), (2, 1), (2, 2), (3, 0), (2, 0)]  # shards 3 and 2
    assert served(order, 6, 10) == [(4, 0), (0, 1), (0, 0), (0, 2)]  # shards 0 and 4
    assert served(order, 10, 15) == [(2, 3), (2, 2), (2, 1), (4, 0), (2, 0)]  # the next epoch has other windows


def test_the_resampled_order_never_changes() -> None:
    order = Order([3, 2], seed=0, window=2, resampled=True, quota=2)

    assert served(order, 0, 4) == [(0, 0), (1, 0), (0, 1), (1, 1)]  # two of each visit
    assert served(order, 4, 8) == [(0, 1), (1, 0), (0, 2), (1, 1)]
    assert served(order, 8, 12) == [(1, 0), (0, 1), (1, 1), (0, 2)]


@settings(max_examples=50)
@given(counts_of_shards, st.integers(0, 2**63), st.integers(1, 50), st.sampled_from([1, 2, 5, 256]))
def test_an_epoch_serves_every_record_once(counts: list[int], seed: int, window: int, quota: int) -> None:
    order = Order(counts, seed, window=window, quota=quota)

    for epoch in (0, 1, 1000):
        assert sorted(served(order, epoch * order.records, (epoch + 1) * order.records)) == every(counts)


@pytest.mark.parametrize("counts", [[1], [5], [0, 0, 3], [1] * 33])
def test_one_shard_empty_shards_and_more_windows_than_one_are_no_exception(counts: list[int]) -> None:
    assert sorted(served(Order(counts, 3), 0, sum(counts))) == every(counts)


@given(counts_of_shards, st.booleans(), st.lists(st.integers(0, 10**12), max_size=20))
def test_a_draw_is_the_same_whenever_and_beside_whatever_it_is_asked(counts: list[int], resampled: bool, draws: list[int]) -> None:
    order, other = (Order(counts, 5, window=3, resampled=resampled, quota=4) for _ in range(2))

    together = np.stack(order.at(np.array(draws, np.int64)))

    alone = [np.stack(other.at(np.array([draw]))) for draw in reversed(draws)]
    assert together.T.tolist() == [found[:, 0].tolist() for found in reversed(alone)]


def test_seed_and_epoch_change_the_order() -> None:
    orders = [served(Order([50, 50], seed), first, first + 100) for seed in (0, 1) for first in (0, 100)]

    assert len({tuple(order) for order in orders}) == 4


def test_only_the_shards_of_the_window_are_open() -> None:
    order = Order([9, 1, 0, 30, 4, 17, 2, 8], seed=1, window=3)
    shard, _ = order.at(np.arange(142))

    for draw in range(142):
        assert shard[draw] in order.open_shards(draw)
        assert len(order.open_shards(draw)) <= 3
    left = [draw for draw in range(1, 142) if set(order.open_shards(draw)) != set(order.open_shards(draw - 1))]
    assert all(order.next_shards(draw - 1).tolist() == order.open_shards(draw).tolist() for draw in left)
    assert len(left) == 5  # seven shards that hold records, in three windows of 2, 2 and 3, twice


def test_every_stretch_takes_evenly_from_the_open_shards() -> None:
    shard, _ = Order([1000] * 8 + [200] * 8, seed=2).at(np.arange(9600))

    for first in range(0, 9600, 96):
        taken = np.bincount(shard[first : first + 96], minlength=16)
        assert (abs(taken[:8] - 10) <= 3).all()
        assert (abs(taken[8:] - 2) <= 2).all()


def test_resampled_records_have_the_same_rate_whatever_their_shards_size() -> None:
    counts = [3000, 40, 500, 0, 1000, 7, 2000, 300, 150, 3]
    order = Order(counts, seed=4, window=8, resampled=True, quota=64)
    shard, row = order.at(np.arange(64 * order.records))

    times = np.bincount(np.cumsum([0, *counts[:-1]])[shard] + row, minlength=order.records)

    assert abs(np.corrcoef(times, np.repeat(counts, counts))[0, 1]) < 0.1
    assert times.mean() == 64
    assert times.var() < 75  # independent draws would have 64; a visit's records come together, but evenly spread visits make up for it
    by_shard = np.bincount(shard, minlength=10)[[0, 2, 4, 6, 7]] / np.array(counts)[[0, 2, 4, 6, 7]]
    assert (abs(by_shard - 64) < 5).all()


def test_resampled_shards_smaller_than_the_quota_are_served_again() -> None:
    order = Order([2], seed=0, window=2, resampled=True, quota=6)

    assert sorted(served(order, 0, 12)) == [(0, 0)] * 6 + [(0, 1)] * 6


def test_positions_within_an_epoch_are_as_likely_for_every_record() -> None:
    order = Order([6, 3, 1], seed=8, window=3)
    shard, row = order.at(np.arange(10 * 1000))

    served_first = np.bincount((np.array([0, 6, 9])[shard] + row)[::10], minlength=10)

    # stratified: the draws at the front of a window fall to shards in about their sizes, and to each of a shard's rows alike
    assert (abs(served_first[:6] / served_first[:6].mean() - 1) < 0.25).all()
    assert (abs(served_first[6:9] / served_first[6:9].mean() - 1) < 0.25).all()


@settings(max_examples=20)
@given(counts_of_shards, st.booleans())
def test_an_order_travels_to_another_process(counts: list[int], resampled: bool) -> None:
    order = Order(counts, 3, window=4, resampled=resampled, quota=5)
    order.at(np.arange(10))

    assert served(pickle.loads(pickle.dumps(order)), 0, 30) == served(order, 0, 30)


def test_little_is_held_however_many_draws_were_made() -> None:
    order = Order([10_000] * 10_000, seed=0)

    order.at(np.arange(0, 10**8, 10**6))

    assert sum(array.nbytes for block in order._blocks.values() for array in block[1:]) < 2_000_000


@pytest.mark.parametrize("wrong", [{"counts": []}, {"counts": [0, 0]}, {"counts": [3, -1]}, {"window": 0}, {"quota": 0}])
def test_what_has_no_order_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=r"order: .*expected"):
        Order(**{"counts": [3], "seed": 0, **wrong})  # type: ignore[arg-type]


def test_there_is_no_draw_below_zero() -> None:
    with pytest.raises(ValueError, match="draw -1"):
        Order([3], 0).at(np.array([2, -1]))


def test_no_draws_are_no_records() -> None:
    shard, row = Order([3], 0).at(np.arange(0))

    assert len(shard) == len(row) == 0


# Bytes fetched a node: whole shards, each fetched once, by whoever reads a record of it.


def by_place(order: Order, draws: np.ndarray, ranks: int) -> list[np.ndarray]:
    """Cut by where the records lie, as the mixture does."""
    shard, _, place = order.located(draws)
    return np.array_split(shard[np.lexsort((draws, place))], ranks)


def striding(order: Order, draws: np.ndarray, ranks: int) -> list[np.ndarray]:
    """Every so-many-th record, as loaders do."""
    return [order.at(draws)[0][rank::ranks] for rank in range(ranks)]


def fetched(order: Order, batch: int, ranks: int, cut: Callable[[Order, np.ndarray, int], list[np.ndarray]]) -> list[float]:
    """The part of the data that each rank has fetched after an epoch."""
    held: list[set[int]] = [set() for _ in range(ranks)]
    for first in range(0, order.records, batch):
        for mine, shards in zip(held, cut(order, np.arange(first, first + batch), ranks), strict=True):
            mine.update(shards.tolist())
    return [order.counts[sorted(mine)].sum() / order.records for mine in held]


@pytest.mark.parametrize("resampled", [False, True])
@pytest.mark.parametrize("batch", [64, 256])
@pytest.mark.parametrize("ranks", [8, 16])
def test_a_node_fetches_little_more_than_its_part(ranks: int, batch: int, resampled: bool) -> None:
    uneven = (1500 * np.exp(np.random.default_rng(0).normal(0, 0.3, 64))).astype(int).tolist()
    for counts, most in (([1024] * 64, 2 / ranks), (uneven, 4 / ranks)):
        order = Order(counts, seed=5, resampled=resampled)
        assert max(fetched(order, batch, ranks, by_place)) <= most
    assert min(fetched(order, batch, ranks, striding)) > 0.9


def test_what_is_read_ahead_for_a_rank_is_most_of_what_it_reads() -> None:
    order = Order([1000] * 64, seed=5)
    for first in range(0, order.records, 64):
        for rank, shards in enumerate(by_place(order, np.arange(first, first + 64), 8)):
            assert set(shards.tolist()) <= set(order.open_shards(first, rank, 8)) | set(order.open_shards(first + 63, rank, 8))
    assert len(order.open_shards(0, 3, 8)) == len(order.next_shards(0, 3, 8)) == 4
