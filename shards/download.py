"""Downloads: pieces of an object in order, several requests at a time; a whole shard, hashed as it comes."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import IO

from schemas import ShardError
from shards.manifest import ShardInfo
from shards.place import Place

PIECE = 8 << 20  # bytes of a request
REQUESTS = 4  # at a time


class Stop:
    """Whether whoever waits for bytes still wants them: not after `set`, and not while the interpreter ends."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Nobody wants them any more."""
        self._event.set()

    def check(self) -> None:
        """Raise CancelledError where nobody wants them."""
        if self._event.is_set() or not threading.main_thread().is_alive():
            raise CancelledError

    def wait(self, seconds: float) -> None:
        """Sleep, and check."""
        self._event.wait(seconds)
        self.check()


def download(place: Place, info: ShardInfo, file: IO[bytes], stop: Stop | None = None) -> None:
    """Write a whole shard into `file`. Raises ShardError where it is missing or not the one that the manifest states, StoreError."""
    digest = hashlib.sha256()
    size = tar_size(place, info)
    if size != info.bytes:
        raise ShardError(info.name, None, "shard size", info.bytes, size)
    for piece in pieces(place, info, _spans(size, stop or Stop())):
        digest.update(piece)
        file.write(piece)
    file.flush()
    if digest.hexdigest() != info.sha256:
        raise ShardError(info.name, None, "shard altered", f"sha256 {info.sha256}", digest.hexdigest())


def _spans(size: int, stop: Stop) -> Iterator[tuple[int, int]]:
    for start in range(0, size, PIECE):
        stop.check()
        yield start, min(PIECE, size - start)


def tar_size(place: Place, info: ShardInfo) -> int:
    """Bytes of the shard's tar. Raises ShardError where there is none."""
    try:
        return place.size(info.name)
    except FileNotFoundError as error:
        raise missing(info) from error


def read_piece(place: Place, info: ShardInfo, offset: int, length: int) -> memoryview:
    """These bytes of the shard's tar. Raises ShardError where they are not all there."""
    try:
        found = memoryview(place.read_range(info.name, offset, length))
    except FileNotFoundError as error:
        raise missing(info) from error
    if len(found) != length:
        raise ShardError(info.name, None, f"bytes at {offset}", length, len(found))
    return found


def pieces(place: Place, info: ShardInfo, spans: Iterable[tuple[int, int]]) -> Iterator[memoryview]:
    """The bytes of each (offset, length), in order, while the next ones are on their way."""
    coming: deque[Future[memoryview]] = deque()
    pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="shardweave-download")
    try:
        for offset, length in spans:
            coming.append(_submitted(pool, place, info, offset, length))
            if len(coming) > REQUESTS:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submitted(pool: ThreadPoolExecutor, place: Place, info: ShardInfo, offset: int, length: int) -> Future[memoryview]:
    try:
        return pool.submit(read_piece, place, info, offset, length)
    except RuntimeError as error:  # the interpreter ends
        raise CancelledError from error


def missing(info: ShardInfo) -> ShardError:
    """The error that says that a shard is not there."""
    return ShardError(info.name, None, "shard missing", f"{info.bytes} bytes", "no such file")
