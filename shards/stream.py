"""One source's records in its order, for one rank of several: read ahead by threads, in the order of the draws, from any draw on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from schemas import RecordError, RequestError, ShardError, StoreError
from shards import retry
from shards.budget import Budget
from shards.order import Order, Share
from shards.reader import Sample, Shards
from shards.threads import Pool

T = TypeVar("T")

AHEAD = 4  # batches on their way, at least; more where the workers are more


class Stream(Generic[T]):
    """Batches without end: lists of what `work` makes of this rank's samples. A bad record leaves a hole in its batch.

    batch: records over all ranks. first: the draw to begin with; `draw` is the next one not given out, and all that resuming needs.
    workers: threads that read and work; 0: done when asked for. Raises, while it is iterated, BudgetError where more records are bad than
    the budget allows, StoreError where the store does not answer. Iterating again goes on.
    """

    def __init__(
        self,
        data: Shards,
        order: Order,
        *,
        batch: int,
        rank: int = 0,
        ranks: int = 1,
        first: int = 0,
        workers: int = 2,
        budget: Budget | None = None,
        work: Callable[[Sample], T] = lambda sample: sample,
    ) -> None:
        for name, value, least in (("batch", batch, 1), ("workers", workers, 0), ("first", first, 0)):
            if value < least:
                raise RequestError(f"{name}: expected at least {least}, found {value}")
        if len(order.counts) != len(data.shards):
            raise RequestError(f"order: expected one of {len(data.shards)} shards, found one of {len(order.counts)}")
        self.data, self.order, self.batch, self.rank, self.ranks, self.workers = data, order, batch, rank, ranks, workers
        self.draw, self.work = first, work
        self.budget = budget or Budget(where=data.place.url)
        self.bytes = 0  # of the records given out

    def __iter__(self) -> Iterator[list[T]]:
        pool, window = Pool(self.workers, "stream"), OpenWindow(self.data, self.order, self.rank, self.ranks)
        coming: deque[list[Future[list[_Read]]]] = deque()
        planned = self.draw
        try:
            while True:
                while len(coming) < (max(AHEAD, self.workers) if self.workers else 1):
                    window.enter(planned, planned + self.batch)
                    coming.append(self._submitted(pool, planned))
                    planned += self.batch
                made = self._judged([read for future in coming.popleft() for read in self._result(future)])
                window.leave(self.draw)
                self.draw += self.batch
                yield made
        finally:
            pool.close()

    def _submitted(self, pool: Pool, draw: int) -> list[Future[list[_Read]]]:
        """The batch in as many parts as there are workers, so that the first one is soon there."""
        share = self.order.share(np.arange(draw, draw + self.batch), self.rank, self.ranks, turn=draw // self.batch)
        cuts = np.array_split(np.arange(len(share.draws)), max(1, self.workers))
        parts = [Share(*(column[cut] for column in share)) for cut in cuts if len(cut)]
        return [pool.submit(partial(_read, self.data, part, self.work)) for part in parts]

    def _result(self, future: Future[list[_Read]]) -> list[_Read]:
        patience = 4 * retry.deadline()  # a part may wait for a shard that another process brings, and then for its own
        try:
            return future.result(patience)
        except TimeoutError:
            if future.done():
                raise  # the work's own, not the wait's
            raise StoreError(f"{self.data.place.url}: expected records within {patience:g} s, found none") from None

    def _judged(self, found: Sequence[_Read]) -> list[T]:
        """In the order of the places, so that a run of bad records is one whichever thread was first."""
        for read in found:
            self.bytes += read.bytes
            if read.error is None:
                self.budget.good()
            else:
                self.budget.bad(read.error, read.key)
        return [read.made for read in found if read.error is None]


class OpenWindow:
    """Keeps open the shards that a rank's draws come from, reads ahead those of the next window, closes those that are behind."""

    def __init__(self, data: Shards, order: Order, rank: int = 0, ranks: int = 1) -> None:
        self.data, self.order, self.rank, self.ranks = data, order, rank, ranks
        self._opened: dict[int, set[int]] = {}  # the first draw of each window in use: the shards that were opened for it
        self._left = -1  # the first draw of the window that was left last

    def enter(self, first: int, last: int) -> None:
        """Draws first:last are about to be read."""
        while first < last:
            window = self.order.window_at(first)
            if window.first not in self._opened:
                self._opened[window.first] = set(window.shards.tolist())
                now, ahead = (of(first, self.rank, self.ranks).tolist() for of in (self.order.open_shards, self.order.next_shards))
                self.data.prefetch([*now, *ahead])
            first = window.first + window.draws

    def leave(self, draw: int) -> None:
        """No draw before this one is still to be read."""
        begin = self.order.window_at(draw).first
        if begin == self._left:
            return
        self._left = begin
        behind = [self._opened.pop(first) for first in [first for first in self._opened if first < begin]]
        keep = set(self.order.next_shards(draw).tolist()).union(*self._opened.values())
        for number in set().union(*behind) - keep:
            self.data.shards[number].close()


class _Read(NamedTuple):
    made: Any
    bytes: int = 0
    error: Exception | None = None
    key: str | None = None


def _read(data: Shards, share: Share, work: Callable[[Sample], Any]) -> list[_Read]:
    """In a worker. What is wrong with one record is told, what is wrong with the store is raised."""
    found = []
    for number, row in zip(share.shard.tolist(), share.row.tolist(), strict=True):
        shard, key = data.shards[number], None
        try:
            sample = shard[row]
            key = sample.key
            found.append(_Read(work(sample), shard.index.lengths[row]))
        except (RecordError, ShardError) as error:
            found.append(_Read(None, error=error, key=key or f"{shard.name} row {row}"))
    return found
