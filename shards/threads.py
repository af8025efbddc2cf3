"""Worker threads that nobody has to wait for: they are daemons, so that one that hangs in a read does not keep the process alive."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from shards import memory

T = TypeVar("T")

GRACE = 5.0  # seconds that threads get to finish what they do


class Pool:
    """`workers` threads; with none, work is done when it is submitted. Freed memory is kept from then on (shards.memory)."""

    def __init__(self, workers: int, name: str) -> None:
        memory.keep()
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads = [start(self._run, f"{name}-{number}") for number in range(workers)]

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """What the work gives, or raises, later."""
        future: Future[T] = Future()
        if self._threads:
            self._work.put((future, work))
        else:
            _do(future, work)
        return future

    def close(self, grace: float = GRACE) -> None:
        """Cancel what has not begun, wait a little for what has."""
        while True:
            try:
                left = self._work.get_nowait()
            except queue.Empty:
                break
            if left is not None:
                left[0].cancel()
        for _ in self._threads:
            self._work.put(None)
        join(self._threads, grace)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            _do(*item)
            del item  # it holds a batch's pictures


def _do(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
        future.set_exception(error)


def start(target: Callable[[], None], name: str) -> threading.Thread:
    """A daemon thread that runs."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def join(threads: list[threading.Thread], grace: float = GRACE) -> None:
    """Wait for all of them together, no longer than `grace`."""
    until = time.monotonic() + grace
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
