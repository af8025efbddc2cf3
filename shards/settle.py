"""Settling: what happens to shards behind the back of whoever writes the next one. They are synced, hashed, and then committed.

The rounds of one sha256 wait for each other: 0.35 GB/s a core where the processor has no instructions for them. Sixteen streams side by
side, in the lanes of its vector registers, do not (stringzilla: AVX-512, or eight at a time with AVX2), and are several times as fast
together. So a shard that is written waits for others, in the page cache and not in this process, unless they are small or come too slowly.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

from stringzilla import Sha256s

from shards.place import Place

LANES = 16  # streams side by side
WAITING = 2 << 30  # bytes of shards that wait for others, at most
PATIENCE = 10.0  # seconds that they wait
SMALL = 1 << 20  # bytes of a shard that is not worth waiting for
_STEP = 1 << 20  # bytes of each stream at a time
_AT_ONCE = getattr(mmap, "MAP_POPULATE", 0)  # Linux: no fault for every few pages


class Settled(NamedTuple):
    """A shard that is on its way to the disk, and to its hash."""

    synced: Future[None]
    sha256: Future[str]

    def done(self) -> bool:
        """Whether `wait` would not."""
        return self.synced.done() and self.sha256.done()

    def wait(self) -> str:
        """Its sha256, when it is safely on the disk. Raises OSError."""
        self.synced.result()
        return self.sha256.result()


class _File(NamedTuple):
    """What waits to be hashed."""

    descriptor: int  # our own
    size: int
    sha256: Future[str]


class Settling:
    """Threads that sync, hash and commit. Use as a context manager: left, even by an error, everything has been tried."""

    def __init__(self, together: int = LANES) -> None:
        """together: how many shards may wait for each other; 1: none of them."""
        self.together = together
        self._syncer, self._hasher = ThreadPoolExecutor(1, "sync"), ThreadPoolExecutor(1, "sha256")
        self._committer = ThreadPoolExecutor(2 * together, "commit")
        self._commits: deque[Future[None]] = deque()
        self._files: list[_File] = []
        self._changed = threading.Condition()
        self._hurried = False

    def __enter__(self) -> Settling:
        return self

    def __exit__(self, *_: object) -> None:
        self.hurry()
        for pool in (self._syncer, self._hasher, self._committer):
            pool.shutdown()

    def put(self, file: int, size: int) -> Settled:
        """A whole file of this size, by a descriptor that is open for reading. Waits while too much waits. Raises OSError."""
        settled = Settled(self._syncer.submit(_sync, os.dup(file)), Future())
        with self._changed:
            self._changed.wait_for(lambda: self._waiting() < WAITING)
            self._files.append(_File(os.dup(file), size, settled.sha256))
            self._changed.notify_all()
        self._hasher.submit(self._take)
        return settled

    def then(self, work: Callable[[], None]) -> None:
        """Do this in a thread, where it may wait for what was put. Raises what earlier work raised."""
        while self._commits and (self._commits[0].done() or len(self._commits) >= 2 * self.together):
            self._commits.popleft().result()
        self._commits.append(self._committer.submit(work))

    def hurry(self) -> None:
        """What waits now is not to wait for others."""
        with self._changed:
            self._hurried = bool(self._files)
            self._changed.notify_all()

    def wait(self) -> None:
        """Until everything is settled and all work done. Raises what it raised."""
        self.hurry()
        while self._commits:
            self._commits.popleft().result()

    def _waiting(self) -> int:
        return sum(file.size for file in self._files)

    def _ready(self) -> bool:
        """Whether those that wait are hashed now."""
        sizes = [file.size for file in self._files]
        return self._hurried or len(sizes) >= self.together or sum(sizes) >= WAITING or min(sizes, default=0) < SMALL or gain() < 2

    def _take(self) -> None:
        with self._changed:
            self._changed.wait_for(self._ready, PATIENCE)
            files, self._files = self._files[:LANES], self._files[LANES:]
            self._hurried = self._hurried and bool(self._files)
            self._changed.notify_all()
        if files:
            _hash(files)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(files: Sequence[_File]) -> None:
    try:
        for file, digest in zip(files, sha256s([(file.descriptor, file.size) for file in files]), strict=True):
            file.sha256.set_result(digest)
    except BaseException as error:  # noqa: BLE001 - raised again where the hash is asked for
        for file in files:
            file.sha256.set_exception(error)
    finally:
        for file in files:
            os.close(file.descriptor)


def sha256s(files: Sequence[tuple[int, int]]) -> list[str]:
    """The sha256 of each file, given as descriptor and size, side by side where that is faster. Raises OSError."""
    sizes = [size for _, size in files]
    if sum(sizes) * gain() > LANES * max(sizes, default=0):
        return _side_by_side(files, max(sizes))
    return [_alone(file, size) for file, size in files]


@cache
def gain() -> float:
    """How many times as fast LANES streams are hashed side by side as one after the other. Asked of the processor, in 3 ms."""
    text = bytes(1 << 14)
    alone = min(_seconds(lambda: [hashlib.sha256(text) for _ in range(LANES)]) for _ in range(3))
    return alone / min(_seconds(lambda: Sha256s(LANES).update([text] * LANES)) for _ in range(3))


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _alone(file: int, size: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, size, _STEP):
        with _mapped(file, start, min(_STEP, size - start)) as data:
            digest.update(data)
    return digest.hexdigest()


def _side_by_side(files: Sequence[tuple[int, int]], longest: int) -> list[str]:
    lanes = Sha256s(len(files))
    for start in range(0, longest, _STEP):
        with contextlib.ExitStack() as stack:
            lanes.update([stack.enter_context(_mapped(file, start, min(_STEP, size - start))) for file, size in files])
    return lanes.hexdigest()


@contextlib.contextmanager
def _mapped(file: int, start: int, length: int) -> Iterator[memoryview]:
    """These bytes of a file, mapped: nothing is copied. None of them where the file is over."""
    if length <= 0:
        yield memoryview(b"")
        return
    try:
        mapped = mmap.mmap(file, length, mmap.MAP_PRIVATE | _AT_ONCE, mmap.PROT_READ, offset=start)
    except ValueError as error:  # the file is shorter
        raise OSError(errno.EIO, "bytes that were written are not there") from error
    with mapped, memoryview(mapped) as data:
        yield data


def settling_for(place: Place | None) -> Settling:
    """One in which shards wait for each other, unless they go to object storage: of those only two have room in the scratch folder."""
    return Settling(LANES if place is None or place.folder is not None else 1)
