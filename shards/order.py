"""Which record a draw serves: a pure function of (seed, draw number), so there is nothing to save but the number.

Epoch: shards permuted by (seed, epoch), laid out in windows of at most W shards; a window is served in blocks, each with its even part of
every shard of the window, the shards' records in an order of their own, the block's records mixed. Every record once an epoch.

Resampled: shards permuted by (seed, round), laid end to end, cut into W strips of equally many records; a block visits one shard of
each strip, drawn in proportion to its records, and serves `quota` records of it, the block's records mixed. Every record has the same rate
whatever its shard's size, every stretch of draws comes from all over the data, and in a round a strip's shards are the same ranks'.

Only a block is ever held: memory does not grow with records, and any draw is found in the same time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from schemas import RequestError
from shards import splitmix

_BLOCKS = 16  # kept: about 100 kB each


class Window(NamedTuple):
    """Shards that are open together, one visit each."""

    first: int  # the draw it begins with
    draws: int
    shards: np.ndarray  # int64 (w,)
    sizes: np.ndarray  # int64 (w,): records of each
    bounds: np.ndarray  # float64 (w + 1,): from 0 to 1, each visit's share of the draws
    key: int


class Block(NamedTuple):
    """The draws first:first + len(shard), in order."""

    first: int
    shard: np.ndarray  # int64 (draws,)
    row: np.ndarray  # int64 (draws,)
    place: np.ndarray  # float64 (draws,): 0 to 1, where the record lies in its window


class Share(NamedTuple):
    """What one rank reads of some draws, int64 (n,) each, in the order in which it lies in the window."""

    draws: np.ndarray
    shard: np.ndarray
    row: np.ndarray


class _Epoch(NamedTuple):
    number: int
    shards: np.ndarray  # int64 (s,): permuted
    starts: np.ndarray  # int64 (s + 1,): the position in the epoch with which each begins


class Order:
    """The order of a source's records.

    counts: records of each shard, zero allowed. window: shards open at a time. quota: records that one visit of a shard serves. Raises
    RequestError where there are no records, or a number is out of range.
    """

    def __init__(self, counts: Sequence[int], seed: int, *, window: int = 16, resampled: bool = False, quota: int = 256) -> None:
        self.counts = np.asarray(counts, np.int64).reshape(-1)
        self.seed, self.window, self.resampled, self.quota = seed, window, resampled, quota
        for name, value in (("window", window), ("quota", quota)):
            if value < 1:
                raise RequestError(f"order: {name}: expected at least 1, found {value}")
        self.records = int(self.counts.sum())
        if self.records < 1 or self.counts.min() < 0:
            raise RequestError(f"order: expected shards with records, found {self.records} records in {len(self.counts)} shards")
        self._full = np.flatnonzero(self.counts)  # shards that hold any
        self._blocks: dict[int, Block] = {}  # the newest last; replaced, never changed, so that threads may share an order
        self._open: Window | None = None
        self._epoch: _Epoch | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (self.counts, self.seed, self.window, self.resampled, self.quota)

    def at(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard number and row in the shard of each draw; int64 of the draws' length. Draws may come in any order, from 0 without end."""
        shard, row, _ = self.located(draws)
        return shard, row

    def located(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shard, row and place of each draw. Place is where the record lies in its window, 0 to 1: ranks cut a step's draws by it."""
        draws = np.asarray(draws, np.int64)
        if len(draws) and draws.min() < 0:
            raise ValueError(f"draw {draws.min()}: expected 0 or more")
        shard, row, place = np.empty_like(draws), np.empty_like(draws), np.empty(len(draws))
        by_number = np.argsort(draws, kind="stable")
        ordered = draws[by_number]
        at = 0
        while at < len(ordered):
            block = self._block(int(ordered[at]))
            stop = int(np.searchsorted(ordered, block.first + len(block.shard)))
            into, inside = by_number[at:stop], ordered[at:stop] - block.first
            shard[into], row[into], place[into] = block.shard[inside], block.row[inside], block.place[inside]
            at = stop
        return shard, row, place

    def share(self, draws: np.ndarray, rank: int, ranks: int, turn: int = 0) -> Share:
        """This rank's part of these draws: sorted by place, cut contiguously, so that a shard is not read by every node.

        Parts differ by at most one record; the `len(draws) % ranks` that are over go to the ranks from `turn` on, one each.
        """
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank}: expected one from 0 to {ranks - 1}")
        shard, row, place = self.located(draws)
        mine = np.lexsort((draws, place))[_part_of(len(draws), rank, ranks, turn)]
        return Share(draws[mine], shard[mine], row[mine])

    def open_shards(self, draw: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """The shards of the window that this draw falls into, in its order; of them those that this rank's cut is likely to touch."""
        return _touched(self.window_at(draw), rank, ranks)

    def next_shards(self, draw: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """The shards of the window after that, for reading ahead."""
        window = self.window_at(draw)
        return _touched(self.window_at(window.first + window.draws), rank, ranks)

    def _block(self, draw: int) -> Block:
        """The block that holds this draw, kept or made."""
        window = self.window_at(draw)
        number, count, first = (0, 1, window.first) if self.resampled else _part(window, draw, self.quota)
        block = self._blocks.get(first)
        if block is None:
            block = _resampled(window, self.quota) if self.resampled else _served(window, number, count, first)
            kept = self._blocks
            self._blocks = {**dict(itertools.islice(kept.items(), max(0, len(kept) - _BLOCKS + 1), None)), first: block}
        return block

    def window_at(self, draw: int) -> Window:
        """The window that holds this draw."""
        window = self._open
        if window is None or not window.first <= draw < window.first + window.draws:
            window = self._open = self._visits(draw) if self.resampled else self._opened(draw)
        return window

    def _opened(self, draw: int) -> Window:
        """Epoch: the window of consecutive shards of the epoch's permutation. All windows have about as many."""
        number, position = divmod(draw, self.records)
        epoch = self._laid(number)
        at = int(np.searchsorted(epoch.starts, position, side="right")) - 1  # of the shard that this position falls into
        windows, shards = -(-len(epoch.shards) // self.window), len(epoch.shards)
        place = ((at + 1) * windows - 1) // shards  # the window w with w * shards // windows <= at < (w + 1) * shards // windows
        low, high = place * shards // windows, (place + 1) * shards // windows
        chosen = epoch.shards[low:high]
        starts = epoch.starts[low : high + 1] - epoch.starts[low]
        first, draws = number * self.records + int(epoch.starts[low]), int(starts[-1])
        return Window(first, draws, chosen, self.counts[chosen], starts / draws, splitmix.key(self.seed, "window", number, place))

    def _visits(self, draw: int) -> Window:
        """Resampled: a shard of each strip. A round's points lie evenly in it: a shard's visits are in proportion to its records."""
        length, strips = self.window * self.quota, np.arange(self.window)
        number, blocks = draw // length, -(-self.records // length)  # of a round
        epoch = self._laid(number // blocks)
        keys = splitmix.bits(splitmix.key(self.seed, "strips", epoch.number), strips)
        point = splitmix.permuted(np.full(self.window, number % blocks), np.full(self.window, blocks), keys)
        offset = (splitmix.bits(keys, strips) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        record = ((strips + (point + offset) / blocks) * (self.records / self.window)).astype(np.int64)
        chosen = epoch.shards[np.searchsorted(epoch.starts, np.minimum(record, self.records - 1), side="right") - 1]
        bounds, key = np.arange(self.window + 1) / self.window, splitmix.key(self.seed, "visits", number)
        return Window(number * length, length, chosen, self.counts[chosen], bounds, key)

    def _laid(self, number: int) -> _Epoch:
        """The shards of this epoch or round, end to end."""
        kept = self._epoch
        if kept is None or kept.number != number:
            permuted = self._full[splitmix.shuffled(splitmix.key(self.seed, "shards", number), len(self._full))]
            kept = _Epoch(number, permuted, np.concatenate([[0], np.cumsum(self.counts[permuted])]))
            self._epoch = kept
        return kept


def _part_of(count: int, rank: int, ranks: int, turn: int) -> slice:
    part, over = divmod(count, ranks)
    larger = [(other - turn) % ranks < over for other in range(rank + 1)]
    start = rank * part + sum(larger[:rank])
    return slice(start, start + part + larger[rank])


def _again(counts: np.ndarray, seed: int, window: int, resampled: bool, quota: int) -> Order:
    return Order(counts.tolist(), seed, window=window, resampled=resampled, quota=quota)


def _touched(window: Window, rank: int, ranks: int) -> np.ndarray:
    """Half an average shard on either side of the rank's cut belongs to it: stretches of draws are not quite even."""
    slack = 0.5 / len(window.shards) if ranks > 1 else 0.0
    return window.shards[(window.bounds[:-1] < (rank + 1) / ranks + slack) & (window.bounds[1:] > rank / ranks - slack)]


def _part(window: Window, draw: int, quota: int) -> tuple[int, int, int]:
    """Of the block that holds this draw: its number in the window, how many the window has, and the draw it begins with."""
    count = -(-window.draws // (len(window.shards) * quota))
    number = (draw - window.first) * count // window.draws
    first, after = _cut(window, number, count).sum(), _cut(window, number + 1, count).sum()
    while window.first + after <= draw:  # parts are rounded down, so the draw may be in the next
        number, first, after = number + 1, after, _cut(window, number + 2, count).sum()
    return number, count, window.first + int(first)


def _cut(window: Window, number: int, count: int) -> np.ndarray:
    """How many records of each shard come before block `number` of `count`."""
    return window.sizes * number // count


def _served(window: Window, number: int, count: int, first: int) -> Block:
    """Epoch: an even part of every shard, the same permutation of the shard's rows in all its blocks."""
    before = _cut(window, number, count)
    return _mixed(window, first, before, _cut(window, number + 1, count) - before, splitmix.key(window.key, number))


def _resampled(window: Window, quota: int) -> Block:
    """Resampled: `quota` records of each visit, another permutation each time; where the shard has fewer, some again."""
    nothing = np.zeros_like(window.sizes)
    return _mixed(window, window.first, nothing, nothing + quota, window.key)


def _mixed(window: Window, first: int, before: np.ndarray, counts: np.ndarray, key: int) -> Block:
    """Slots before:before + counts of each visit's permutation, so mixed that every stretch takes evenly from all visits."""
    visit = np.repeat(np.arange(len(counts)), counts)
    slot = np.arange(len(visit)) - np.repeat(np.cumsum(counts) - counts, counts)
    mixed = np.argsort(splitmix.spread(splitmix.key(key, "mix"), len(visit)), kind="stable")
    visit, slot = visit[mixed], slot[mixed]
    size = window.sizes[visit]
    rows = splitmix.bits(splitmix.key(window.key, "rows"), np.arange(len(counts)))
    row = splitmix.permuted((before[visit] + slot) % size, size, rows[visit])
    place = window.bounds[visit] + (row / size) * np.diff(window.bounds)[visit]
    return Block(first, window.shards[visit], row, place)
