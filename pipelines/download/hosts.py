"""Hosts: what all processes together ask of a host: so many requests at once, so many a second, none while it wants to be left alone.

A table in a mapped file, a row a host by the hash of its name (two that meet in a row share its limits), a column a process, so that what
a killed process was asking is forgotten with its column. A row is locked by the kernel, which lets go of it when its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from pipelines.download.status import Failure

ROWS = 8192
AGAIN = 0.05  # seconds until it is asked again whether one of the running requests has ended


def create(path: Path, processes: int) -> None:
    """An empty table."""
    with path.open("wb") as file:
        file.truncate(ROWS * (2 * 8 + processes * 2))


def forget(path: Path, processes: int, process: int) -> None:
    """Nothing is asked by this process any more."""
    _columns(path, processes)[2][process] = 0


def _columns(path: Path, processes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """When the next request may begin, until when there may be none, and how many run, by process."""
    times = np.memmap(path, np.float64, "r+", 0, (2, ROWS))
    return times[0], times[1], np.memmap(path, np.uint16, "r+", ROWS * 16, (processes, ROWS))


def _row(host: str) -> int:
    return xxhash.xxh3_64_intdigest(host.encode()) % ROWS


class Hosts:
    """The table as one process sees it, from several threads. Times are those of the monotonic clock, which all processes share."""

    def __init__(self, path: Path, processes: int, process: int, at_once: int, rate: int) -> None:
        self._next, self._hold, running = _columns(path, processes)
        self._running, self._mine = running, running[process]
        self._at_once, self._rate = at_once, rate
        self._file, self._lock = os.open(path, os.O_RDWR), threading.Lock()

    @contextlib.contextmanager
    def turn(self, host: str, deadline: float) -> Iterator[None]:
        """One of the host's requests. Waits for it; raises Failure(deadline, http_429) where its turn comes too late."""
        row = _row(host)
        begin = self._reserved(row, host, deadline)
        while True:
            time.sleep(max(0.0, begin - time.monotonic()))
            wait = self._begun(row)
            if wait is None:
                break
            begin = self._in_time(row, host, time.monotonic() + wait, deadline)
        try:
            yield
        finally:
            with self._locked(row):
                self._mine[row] -= 1

    def leave(self, host: str, seconds: float) -> None:
        """The host wants to be left alone for so long."""
        row = _row(host)
        with self._locked(row):
            self._hold[row] = max(float(self._hold[row]), time.monotonic() + seconds)

    def _reserved(self, row: int, host: str, deadline: float) -> float:
        """When this request may begin, by the host's rate."""
        with self._locked(row):
            begin = self._in_time(row, host, max(time.monotonic(), float(self._next[row]), float(self._hold[row])), deadline)
            self._next[row] = begin + 1 / self._rate
        return begin

    def _begun(self, row: int) -> float | None:
        """Begin now: None; or the seconds to wait."""
        with self._locked(row):
            wait = float(self._hold[row]) - time.monotonic()
            if wait > 0:
                return wait
            if int(self._running[:, row].sum()) >= self._at_once:
                return AGAIN * (0.5 + random.random())
            self._mine[row] += 1
            return None

    def _in_time(self, row: int, host: str, begin: float, deadline: float) -> float:
        if begin < deadline:
            return begin
        if self._hold[row] >= deadline:
            raise Failure("http_429", f"{host} asked to be left alone until after the shard's deadline")
        raise Failure("deadline", f"expected a turn at {host} within the shard's deadline, found none")

    @contextlib.contextmanager
    def _locked(self, row: int) -> Iterator[None]:
        with self._lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, row)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, row)
