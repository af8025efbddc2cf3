"""Reads ahead: threads read, decode and render the records of the steps to come; a step is handed out when it is whole.

    planner, in one thread       which records a step takes (trainer/data/mixture.py), and which of them are this rank's
    workers, `workers` threads   a record's bytes, checked; its text to tokens, its pictures to pixels
    the planner's thread again   holes, counts, budget, batches, in the order of the draws, whichever record was ready first

At most `prefetch` steps are read ahead, and one is being used: that bounds the memory. Every wait ends after `timeout` seconds with a
StalledError that says what was waited for. The next step always has the same records, whatever the number of workers.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import xxhash

from schemas import RecordError, ShardError, ShardweaveError
from shards import Shards, threads
from shards.budget import Budget
from shards.windows import OpenWindow
from trainer.data.mixture import Mixture, Planned, Position, Share
from trainer.data.sources import Data, Sample
from trainer.data.webdataset_source import WebdatasetSource
from trainer.text.rendered import LeftOut

T = TypeVar("T")
U = TypeVar("U")


class StalledError(ShardweaveError):
    """What should have come did not, within the time that it was given."""


@dataclass(kw_only=True)
class Counts:
    """Of one source in one step, on this rank."""

    drawn: int = 0
    served: int = 0
    left_out: int = 0  # by the source's own rules
    bad: int = 0
    seconds_waiting: float = 0.0  # that the consumer waited for this source's records
    bytes_read: int = 0  # from object storage, since the start
    cache_hits: int = 0  # since the start
    cache_misses: int = 0


@dataclass(kw_only=True)
class Step(Generic[U]):
    """A step's records on this rank."""

    number: int
    made: U  # what was made of them
    counts: dict[str, Counts]
    position: Position  # to go on with the next step
    digest: int  # below 2**32: the sum, over the records, of a hash of source and key
    seconds_waiting: float = 0.0


class _Made(NamedTuple):
    """A record, or why there is none."""

    key: str
    value: Any
    error: RecordError | ShardError | None = None


@dataclass
class _Coming:
    """A step that is being read."""

    planned: Planned
    futures: dict[str, list[Future[_Made]]]


class _End:
    """There are no more steps."""


@dataclass(kw_only=True)
class Feed(Generic[T, U]):
    """What is read, and what is made of it: of each record by a worker, of the step by the planner's thread."""

    mixture: Mixture
    data: Mapping[str, Data]  # by source
    make: Callable[[str, int, Sample], T]  # source, draw, sample; called by several threads; RecordError and ShardError leave a hole
    finish: Callable[[dict[str, list[T]]], U]  # a step's records by source, in the order of their share, holes left out
    budgets: Mapping[str, Budget]  # by source


class Loader(Generic[U]):
    """Steps from `position` up to step `stop`. Use it as a context: leaving stops its threads, whatever happened inside.

    every, first: of the steps, only those with number % every == first, counted from `position`; the others are planned and not read.
    """

    def __init__(
        self,
        feed: Feed[Any, U],
        position: Position,
        *,
        stop: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        every: int = 1,
        first: int = 0,
        workers: int = 2,
        prefetch: int = 2,
        timeout: float = 600.0,
    ) -> None:
        self.feed, self.rank, self.ranks, self.timeout = feed, rank, ranks, timeout
        orders = {source.name: source.order for source in feed.mixture.sources}
        places = {name: data for name, data in feed.data.items() if isinstance(data, Shards)}
        self._windows = {name: OpenWindow(data, orders[name], rank, ranks) for name, data in places.items()}
        self._plans = self._planned(position, stop, every, first)
        self._pool = threads.Pool(workers, "loader")
        self._ready: queue.SimpleQueue[Step[U] | BaseException | type[_End]] = queue.SimpleQueue()
        self._room = threading.Semaphore(max(1, prefetch))
        self._stopping = False
        self._expects = "the first step"
        self._planner = [threads.start(self._run, "planner")] if workers else []

    def __enter__(self) -> Loader[U]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Step[U]]:
        return self

    def __next__(self) -> Step[U]:
        """The next step. Raises what its reading has raised: BudgetError, StoreError, StalledError."""
        began = time.monotonic()
        step = self._taken() if self._planner else self._now()
        if step is None:
            raise StopIteration
        return waited(step, time.monotonic() - began)

    def close(self) -> None:
        """Stop reading. Nothing that is still on its way is waited for longer than a few seconds."""
        self._stopping = True
        self._room.release()
        for data in self.feed.data.values():
            if isinstance(data, Shards):
                data.close()  # gives up what comes from the store
        self._pool.close()
        threads.join(self._planner)

    def _taken(self) -> Step[U] | None:
        """From the planner's thread."""
        try:
            found = self._ready.get(timeout=self.timeout)
        except queue.Empty:
            raise StalledError(f"loader: expected a step within {self.timeout:g} s, found it waiting for {self._expects}") from None
        if isinstance(found, Step):
            self._room.release()
            return found
        self._ready.put(found)  # whoever asks again is told again
        if isinstance(found, BaseException):
            raise found
        return None

    def _now(self) -> Step[U] | None:
        """Without workers: read here."""
        plan = next(self._plans, None)
        return None if plan is None else self._finished(self._submitted(*plan))

    def _run(self) -> None:
        """The planner's thread."""
        try:
            for step in self._ahead():
                self._ready.put(step)
            self._ready.put(_End)
        except CancelledError:
            return  # the loader was closed: nobody asks for a next step
        except BaseException as error:  # noqa: BLE001 - raised again where the next step is asked for
            self._ready.put(error)

    def _ahead(self) -> Iterator[Step[U]]:
        """Steps in order; as many are on their way as there is room for."""
        coming: deque[_Coming] = deque()
        more = True
        while more or coming:
            while more and not self._stopping and self._room.acquire(blocking=not coming):
                plan = None if self._stopping else next(self._plans, None)
                more = plan is not None
                if plan is not None:
                    coming.append(self._submitted(*plan))
            if self._stopping:
                return
            if coming:
                yield self._finished(coming.popleft())

    def _planned(self, position: Position, stop: int | None, every: int, first: int) -> Iterator[tuple[Planned, dict[str, Share]]]:
        begin = position.step
        while stop is None or position.step < stop:
            planned = self.feed.mixture.step(position)
            if (position.step - begin) % every == first:
                yield planned, self.feed.mixture.share(planned, self.rank, self.ranks)
            position = planned.next

    def _submitted(self, planned: Planned, shares: dict[str, Share]) -> _Coming:
        futures: dict[str, list[Future[_Made]]] = {}
        for source, share in shares.items():
            if source in self._windows:
                drawn = planned.draws[source]
                self._windows[source].enter(int(drawn.min()), int(drawn.max()) + 1)
            draws = zip(share.draws.tolist(), self._samples(source, share), strict=True)
            futures[source] = [self._pool.submit(partial(_made, self.feed.make, source, draw, sample)) for draw, sample in draws]
        return _Coming(planned, futures)

    def _samples(self, source: str, share: Share) -> Sequence[Callable[[], Sample]]:
        """How to get each sample of the share."""
        data = self.feed.data[source]
        if isinstance(data, WebdatasetSource):  # they come as they come, and are asked for in order
            return [partial(_given, found) for found in data.fetch(share.draws.tolist())]
        return [partial(data.shards[shard].__getitem__, row) for shard, row in zip(share.shard.tolist(), share.row.tolist(), strict=True)]

    def _finished(self, coming: _Coming) -> Step[U]:
        """The step, when all its records are there."""
        planned, digest = coming.planned, 0
        made: dict[str, list[Any]] = {}
        counts: dict[str, Counts] = {}
        for source, futures in coming.futures.items():
            began = time.monotonic()
            found = [self._result(future, source, planned.step) for future in futures]
            waited = time.monotonic() - began
            self._judge(source, found)
            if source in self._windows:
                self._windows[source].leave(planned.oldest[source])
            served = [item for item in found if item.error is None]
            digest += sum(xxhash.xxh32_intdigest(f"{source}/{item.key}".encode()) for item in served)
            made[source] = [item.value for item in served]
            left_out = sum(isinstance(item.error, LeftOut) for item in found)
            counts[source] = Counts(drawn=len(found), served=len(served), left_out=left_out, bad=len(found) - len(served) - left_out)
            counts[source].seconds_waiting = waited
            _count_bytes(counts[source], self.feed.data[source])
        return Step(number=planned.step, made=self.feed.finish(made), counts=counts, position=planned.next, digest=digest % 2**32)

    def _result(self, future: Future[_Made], source: str, number: int) -> _Made:
        self._expects = f"step {number}, source {source}"
        try:
            return future.result(self.timeout)
        except TimeoutError:
            if future.done():
                raise  # the record's own, not the wait's
            raise StalledError(f"{source}: expected a record of step {number} within {self.timeout:g} s, found none") from None

    def _judge(self, source: str, found: Sequence[_Made]) -> None:
        """In the order of the draws, so that a run of bad records is one whichever thread was first. Raises BudgetError."""
        budget = self.feed.budgets[source]
        for item in found:
            if item.error is None or isinstance(item.error, LeftOut):
                budget.good()
            else:
                budget.bad(item.error, item.key or None)


def waited(step: Step[U], seconds: float) -> Step[U]:
    """The step that was waited for so long: shared out to its sources as their records were waited for."""
    blocked = sum(count.seconds_waiting for count in step.counts.values())
    for count in step.counts.values():
        count.seconds_waiting *= seconds / blocked if blocked else 0.0
    step.seconds_waiting = seconds
    return step


def _made(make: Callable[[str, int, Sample], Any], source: str, draw: int, sample: Callable[[], Sample]) -> _Made:
    """In a worker."""
    key = ""
    try:
        found = sample()
        key = found.key
        return _Made(key, make(source, draw, found))
    except (RecordError, ShardError) as error:
        return _Made(key, None, error)


def _given(found: Any) -> Sample:
    if isinstance(found, Exception):
        raise found
    return found


def _count_bytes(counts: Counts, data: Data) -> None:
    fetched = getattr(data, "fetched", None)
    if fetched is not None:
        counts.bytes_read, counts.cache_hits, counts.cache_misses = fetched.bytes_read, fetched.cache_hits, fetched.cache_misses
