"""One source's records in its order, for one rank of several: read ahead by threads, in the order of the draws, from any draw on."""

from __future__ import annotations

import contextlib
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
from shards.windows import OpenWindow

T = TypeVar("T")
U = TypeVar("U")

AHEAD = 4  # batches on their way, at least; more where the workers are more


class Stream(Generic[T]):
    """Batches without end: what `finish` makes of what `work` makes of this rank's samples. A bad record leaves a hole in its batch.

    batch: records over all ranks. first: the draw to begin with; `draw` is the next one not given out, and all that resuming needs.
    workers: threads that read and work; 0: done when asked for. finish: of a batch's list, which may be empty, in a thread of its own, so
    that the consumer does not wait for its tensors to be stacked. Raises, while it is iterated, BudgetError where more records are bad than
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
        work: Callable[[Sample], Any] = lambda sample: sample,
        finish: Callable[[list[Any]], T] = list,
    ) -> None:
        for name, value, least in (("batch", batch, 1), ("workers", workers, 0), ("first", first, 0)):
            if value < least:
                raise RequestError(f"{name}: expected at least {least}, found {value}")
        if len(order.counts) != len(data.shards):
            raise RequestError(f"order: expected one of {len(data.shards)} shards, found one of {len(order.counts)}")
        self.data, self.order, self.batch, self.rank, self.ranks, self.workers = data, order, batch, rank, ranks, workers
        self.draw, self.work, self.finish = first, work, finish
        self.budget = budget or Budget(where=data.place.url, shards=data.sizes)
        self.bytes = 0  # of the records given out

    def __iter__(self) -> Iterator[T]:
        pool, finisher = Pool(self.workers, "stream"), Pool(min(1, self.workers), "stream-finish")
        window = OpenWindow(self.data, self.order, self.rank, self.ranks)
        coming: deque[Future[_Batch]] = deque()
        planned = self.draw
        try:
            while True:
                while len(coming) < (max(AHEAD, self.workers) if self.workers else 1):
                    window.enter(planned, planned + self.batch)
                    coming.append(finisher.submit(partial(self._finished, self._submitted(pool, planned))))
                    planned += self.batch
                batch = self._result(coming.popleft())
                self._judge(batch.read)
                window.leave(self.draw)
                self.draw += self.batch
                yield batch.made
        finally:
            pool.close()
            finisher.close()

    def _submitted(self, pool: Pool, draw: int) -> list[Future[list[_Read]]]:
        """The batch in as many parts as there are workers, so that the first one is soon there."""
        share = self.order.share(np.arange(draw, draw + self.batch), self.rank, self.ranks, turn=draw // self.batch)
        cuts = np.array_split(np.arange(len(share.draws)), max(1, self.workers))
        parts = [Share(*(column[cut] for column in share)) for cut in cuts if len(cut)]
        return [pool.submit(partial(_read, self.data, part, self.work)) for part in parts]

    def _finished(self, parts: list[Future[list[_Read]]]) -> _Batch:
        found = [read for part in parts for read in self._result(part)]
        made = self.finish([read.made for read in found if read.error is None])
        return _Batch(made, [read._replace(made=None) for read in found])

    def _result(self, future: Future[U]) -> U:
        patience = 4 * retry.deadline()  # a part may wait for a shard that another process brings, and then for its own
        try:
            return future.result(patience)
        except TimeoutError:
            if future.done():
                raise  # the work's own, not the wait's
            raise StoreError(f"{self.data.place.url}: expected records within {patience:g} s, found none") from None

    def _judge(self, found: Sequence[_Read]) -> None:
        """In the order of the places, so that a run of bad records is one whichever thread was first."""
        for read in found:
            self.bytes += read.bytes
            if read.error is None:
                self.budget.good()
            else:
                self.budget.bad(read.error, read.key)


class _Read(NamedTuple):
    made: Any
    bytes: int = 0
    error: Exception | None = None
    key: str | None = None


class _Batch(NamedTuple):
    made: Any
    read: list[_Read]


def _ask(data: Shards, share: Share) -> None:
    """Have the disk read all records at once, instead of one after the other as they are wanted."""
    for number in dict.fromkeys(share.shard.tolist()):
        with contextlib.suppress(ShardError):  # raised again where a record is read
            data.shards[number].soon(share.row[share.shard == number].tolist())


def _read(data: Shards, share: Share, work: Callable[[Sample], Any]) -> list[_Read]:
    """In a worker. What is wrong with one record is told, what is wrong with the store is raised."""
    _ask(data, share)
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
