"""Executors: who does the work of many items: this process, processes of this machine, or a Ray cluster (shards.on_ray).

    map(function, items)          the results, in order
    share(work, items, watch)     workers that take one item after the other until none is left, for what they gain by going on

Functions, items and results travel between processes, so they have to pickle; a function is best one of a module, or a partial of one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

from schemas import RequestError
from shards.processes import die_with

T = TypeVar("T")
R = TypeVar("R")
NAMES = ("local", "ray")
AHEAD = 2  # items of each worker that are under way, or done and not yet asked for
WATCHED = 0.5  # seconds between two looks at what is done
WORTH = 64 << 20  # bytes of work for which a process is begun
DIED = "a worker died (killed, or out of memory)"
KEPT = "; what is done is kept, the same command goes on"


class Counts(NamedTuple):
    """What workers have done so far."""

    read: int = 0
    rejected: int = 0
    bytes: int = 0
    done: int = 0  # items


class Queue(Protocol):
    """The items of a `share`, as a worker sees them: positions from 0 on. May be used from several threads."""

    def take(self) -> int | None:
        """The position of an item that nobody has; None where none is left."""
        ...

    def count(self, position: int, read: int, rejected: int, size: int) -> None:
        """So much more was done of an item that was taken: for progress alone."""
        ...

    def done(self, position: int) -> None:
        """It is done, and what came of it is kept whatever happens now."""
        ...


Work = Callable[[Queue], None]
Watch = Callable[[Counts], object]


class Executor(Protocol):
    """Who does the work."""

    workers: int

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The function's result of every item, in order. Raises what the function raises, RequestError where workers die.

        Items are taken as they are needed, at most a few a worker wait: memory does not grow with their number.
        """
        ...

    def share(self, work: Work, items: int, watch: Watch) -> None:
        """Have every worker call `work`, which takes items from its queue until none is left. `watch` is told now and then what is done.

        Raises what `work` raises, RequestError where workers die. An item may be begun twice, and even be worked on twice at once, where
        its worker was given up.
        """
        ...


@contextlib.contextmanager
def executor(name: str = "local", workers: int | None = None, size: int | None = None) -> Iterator[Executor]:
    """The executor of this name, as long as the context lasts. workers: None: one a core, of this machine or of the cluster.

    size: bytes of the work, where it is known: no more processes are begun here than are worth their start.

    Raises RequestError where there is none, or no Ray, or no cluster.
    """
    if name == "ray":
        with _on_ray().connected(workers) as found:
            yield found
    elif name == "local":
        workers = workers or os.cpu_count() or 1
        with contextlib.closing(Local(workers if size is None else min(workers, 1 + size // WORTH))) as found:
            yield found
    else:
        raise RequestError(f"--executor: expected one of {', '.join(NAMES)}, found {name!r}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options --workers and --executor, of every command that shares its work out."""
    parser.add_argument("--workers", type=_positive, metavar="N", help="how many (default: one a core, of this machine or of the cluster)")
    parser.add_argument("--executor", choices=NAMES, default="local", help="who runs them: this machine, or a Ray cluster")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return int(text)


def _on_ray() -> Any:
    try:
        from shards import on_ray
    except ImportError as error:
        raise RequestError(f"--executor ray: expected the package ray, found none (pip install 'shardweave[ray]'): {error}") from error
    return on_ray


class Local:
    """Processes of this machine, spawned when there is work for two of them, and gone with this one; of one worker it is this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """See Executor."""
        rest = iter(items)
        first = list(itertools.islice(rest, 2))
        everything = itertools.chain(first, rest)
        return map(function, everything) if self.workers == 1 or len(first) < 2 else self._mapped(function, everything)

    def _mapped(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(self._submit(function, item))
                if len(waiting) >= AHEAD * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            self.close()
            raise RequestError(f"{DIED}: fewer --workers need less memory") from error
        finally:
            for future in waiting:
                future.cancel()

    def share(self, work: Work, items: int, watch: Watch) -> None:
        """See Executor."""
        workers = min(self.workers, items)
        self._shared.begin(items)
        try:
            if workers > 1:
                self._shared_out(work, workers, watch)
            elif items:
                work(_Here(self._shared, watch))
            watch(self._shared.seen())
        except BaseException as error:
            self.close()  # whoever gets this raised may let go of the place that the others still write to
            if isinstance(error, BrokenProcessPool):
                raise RequestError(DIED + KEPT) from error
            raise

    def _shared_out(self, work: Work, workers: int, watch: Watch) -> None:
        left = {self._submit(_share, work) for _ in range(workers)}
        while left:
            done, left = wait(left, WATCHED, FIRST_EXCEPTION)
            for future in done:
                future.result()
            watch(self._shared.seen())

    def _submit(self, function: Callable[[T], R], item: T) -> Future[R]:
        return self._pool.submit(function, item)

    @cached_property
    def _context(self) -> Any:
        return multiprocessing.get_context("spawn")

    @cached_property
    def _shared(self) -> _Shared:
        return _Shared(self._context)

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.workers, self._context, _begin, (self._shared, os.getpid()))

    def close(self) -> None:
        """End the workers: they are idle by now, or of no use any more."""
        pool = self.__dict__.pop("_pool", None)
        self.__dict__.pop("_shared", None)  # a killed worker may hold its lock
        if pool is None:
            return
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


class _Shared:
    """A queue in memory that processes share. It is looked at without the lock: a killed worker may hold that for ever."""

    def __init__(self, context: Any) -> None:
        self._values, self._lock = context.RawArray("q", 6), context.Lock()  # Counts, the next position, the number of items

    def begin(self, items: int) -> None:
        """A new queue, of so many items."""
        self._values[:] = [*Counts(), 0, items]

    def take(self) -> int | None:
        """See Queue."""
        with self._lock:
            position = self._values[4]
            self._values[4] += 1
            return position if position < self._values[5] else None

    def count(self, position: int, read: int, rejected: int, size: int) -> None:
        """See Queue."""
        self._add(Counts(read, rejected, size))

    def done(self, position: int) -> None:
        """See Queue."""
        self._add(Counts(done=1))

    def _add(self, counts: Counts) -> None:
        with self._lock:
            for index, number in enumerate(counts):
                self._values[index] += number

    def seen(self) -> Counts:
        """What is done."""
        return Counts(*self._values[:4])


class _Here:
    """The queue of a worker that is this process: nobody else is there to watch."""

    def __init__(self, shared: _Shared, watch: Watch) -> None:
        self._shared, self._watch, self._seen = shared, watch, time.monotonic()
        self.take, self.done = shared.take, shared.done

    def count(self, position: int, read: int, rejected: int, size: int) -> None:
        """See Queue."""
        self._shared.count(position, read, rejected, size)
        if time.monotonic() - self._seen >= WATCHED:
            self._watch(self._shared.seen())
            self._seen = time.monotonic()


_queue: _Shared


def _begin(queue: _Shared, parent: int) -> None:
    """A worker's first act. It leaves Ctrl-C to the parent, and dies with it."""
    global _queue  # noqa: PLW0603 - what an initializer is for
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    _queue = queue


def _share(work: Work) -> None:
    work(_queue)
