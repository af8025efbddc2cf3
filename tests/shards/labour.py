"""What executors are asked to do in tests. Apart from them, because every process imports it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from schemas import ShardError
from shards.executor import Queue


def square(number: int) -> tuple[int, int]:
    """And who computed it. The first is done last."""
    time.sleep(0.05 if number == 0 else 0)
    return number * number, os.getpid()


def refuse(number: int) -> int:
    if number == 3:
        raise ShardError("000003-000.tar", "000003-00000000", "size", 7, 8)
    return number


def kill(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def work(folder: Path, queue: Queue) -> None:
    """A file an item; a second one is an error."""
    while (position := queue.take()) is not None:
        (folder / f"{position}.{os.getpid()}").touch(exist_ok=False)
        time.sleep(0.01)
        queue.count(position, 10, 1, 1000)
        queue.done(position)


def kill_shared(queue: Queue) -> None:
    while (position := queue.take()) is not None:
        kill(position)
        queue.done(position)


def fail(folder: Path, queue: Queue) -> None:
    """Whoever has item 1 fails; the others stay."""
    position = queue.take()
    (folder / str(os.getpid())).touch()
    if position == 1:
        raise OSError(28, "No space left on device", "somewhere")
    time.sleep(100)


def stay(folder: Path, queue: Queue) -> None:
    queue.take()
    (folder / str(os.getpid())).touch()
    time.sleep(100)
