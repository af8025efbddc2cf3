"""Planning, ours alone, integers only.

How a mixture keeps its shares, how evenly records of small and large shards are served, what a node has to fetch, what a draw costs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import numpy as np

from shards.order import Order
from tests.bench.figure import Figure
from tests.shards.test_order import by_place, fetched, striding
from trainer.data.mixture import Draw, Mixture, MixtureSource

SHARES = {"a": 0.8, "b": 0.15, "c": 0.05}
DRAWS, BATCH = 100_000, 256


def measure(quick: bool = False) -> Iterator[Figure]:
    """Each against what is allowed."""
    rounds = 1 if quick else 5
    for draw in ("one", "mixed"):
        yield _allowed(f"share served against share asked, {DRAWS:,} draws, {draw}", "%", [100 * share_error(draw)], 0.1)
    yield _allowed("rate of a record against its shard's size: correlation", "", [abs(correlation(4_000_000))], 0.1)
    for ranks in (8, 16):
        yield bytes_per_node(ranks)
    yield _allowed("planning 10^8 records in 10^4 shards", "ms", [1000 * planning() for _ in range(rounds)], 50)
    for resampled in (False, True):
        times = [1e6 * draw_time(resampled) for _ in range(rounds)]
        yield _allowed(f"a draw of 10^8 records in batches of {BATCH}{', resampled' * resampled}", "us", times, 5)


def _allowed(what: str, unit: str, found: list[float], most: float) -> Figure:
    return Figure(what, unit, tuple(found), (most,), "allowed", 1.0, below=True)


def share_error(draw: Draw) -> float:
    """The largest difference of a source's share of the draws from its share of the weights."""
    order = Order([1000] * 20, 0)
    mixture = Mixture([MixtureSource(name=name, order=order, batch_size=10, weight=weight) for name, weight in SHARES.items()], draw, 3)
    served, position = Counter(), mixture.start()
    while served.total() < DRAWS:
        planned = mixture.step(position)
        served.update({name: len(draws) for name, draws in planned.draws.items()})
        position = planned.next
    return max(abs(served[name] / served.total() - share) for name, share in SHARES.items())


def correlation(draws: int) -> float:
    """Of shards' sizes, 100 to 10,000 records, with how often their records were drawn with replacement."""
    sizes = np.random.default_rng(0).integers(100, 10_000, 200)
    shard, _ = Order(sizes.tolist(), 1, resampled=True).at(np.arange(draws))
    rate = np.bincount(shard, minlength=len(sizes)) / sizes
    return float(np.corrcoef(sizes, rate)[0, 1])


def bytes_per_node(ranks: int) -> Figure:
    """The largest part of the data that a node fetches in an epoch of whole shards."""
    order = Order([1024] * 64, seed=5)
    most = max(fetched(order, BATCH, ranks, by_place))
    apart = min(fetched(order, BATCH, ranks, striding))
    what = f"part of the data that a node fetches, {ranks} ranks"
    return Figure(what, "of 1", (most,), (4 / ranks,), "allowed", 1.0, below=True, others={"striding over samples": (apart,)})


def planning() -> float:
    """Seconds until the first draw is known."""
    counts = np.full(10_000, 10_000)
    began = time.perf_counter()
    Order(counts.tolist(), 0).at(np.arange(1))
    return time.perf_counter() - began


def draw_time(resampled: bool) -> float:
    """Seconds a draw, one batch after another."""
    order = Order([10_000] * 10_000, 0, resampled=resampled)
    order.at(np.arange(1))
    began = time.perf_counter()
    for first in range(0, DRAWS, BATCH):
        order.at(np.arange(first, first + BATCH))
    return (time.perf_counter() - began) / DRAWS
