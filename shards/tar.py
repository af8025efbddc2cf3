"""The bytes of one shard's tar, wherever it lies: mapped from local disk or from the cache, or by ranges from object storage."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

from schemas import ShardError
from shards.cache import Cache
from shards.download import Stop, download, missing, pieces, read_piece
from shards.manifest import ShardInfo
from shards.place import Place


@dataclass
class Fetched:
    """What came from object storage so far. Plain sums, no lock: CPython changes threads at calls and jumps, and `+=` has none."""

    bytes_read: int = 0  # shards, indexes, ranges; local files are mapped, and not counted
    cache_hits: int = 0  # shards opened that were in the cache, or that another process brought there meanwhile
    cache_misses: int = 0  # shards downloaded into the cache


class _Mapped(NamedTuple):
    view: memoryview
    file: os.stat_result


class Tar:
    """Reads any bytes of a tar; from several threads. Nothing is opened before it is needed."""

    __slots__ = ("_broken", "_cache", "_fetched", "_lock", "_mapped", "_verified", "coming", "info", "place")

    def __init__(self, place: Place, info: ShardInfo, cache: Cache | None, fetched: Fetched) -> None:
        self.place, self.info, self._cache, self._fetched = place, info, cache, fetched
        self._mapped: _Mapped | None = None
        self._broken: ShardError | None = None  # until it is closed, or each record would fetch it anew
        self._lock = os.getpid(), threading.Lock()
        self.coming = False  # a thread in the background opens it
        self._verified = False  # the mapped copy was hashed on its way here: it is not to blame for what is wrong

    @property
    def is_open(self) -> bool:
        """Whether reading waits for no more than the bytes themselves."""
        return self._mapped is not None or self._by_range

    @property
    def view(self) -> memoryview:
        """All bytes, mapped, of the size that the manifest states. From object storage without a cache: through a temporary file."""
        return self._map().view

    def open(self, stop: Stop | None = None) -> None:
        """Bring what `read` will need: map the file; download it into the cache. CancelledError after `stop`."""
        if not self.is_open:
            self._map(stop)

    def soon(self, spans: Iterable[tuple[int, int]]) -> None:
        """Have the disk read these (offset, length) of a local file. Raises ShardError where it is not there."""
        mapped = self._map().view.obj if self.place.folder is not None else None
        if isinstance(mapped, mmap.mmap):
            for offset, length in spans:
                start = offset - offset % mmap.PAGESIZE
                mapped.madvise(mmap.MADV_WILLNEED, start, offset + length - start)

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """One thread at a time. A forked child takes a lock of its own: whoever held this one may have stayed behind."""
        process, lock = self._lock
        if process != os.getpid():
            process, lock = self._lock = os.getpid(), threading.Lock()
        with lock:
            yield

    def close(self) -> None:
        """Let go of the map; it goes when nobody has a view into it. It opens again when it is used."""
        self._mapped, self._broken, self.coming = None, None, False

    def read(self, offset: int, length: int) -> memoryview:
        """These bytes; by range, too, as long as the whole tar is on its way. Raises ShardError where they are not there, StoreError."""
        if self._mapped is None and (self._by_range or (self.place.folder is None and self.coming and not self._map_cached())):
            self._fetched.bytes_read += length
            return read_piece(self.place, self.info, offset, length)
        return self._whole(self._map().view)[offset : offset + length]

    def read_all(self, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        """Bytes that hold each (offset, length), with the offset at which they begin: fetched ahead, or the whole map."""
        if self._mapped is None and self._by_range:
            spans = list(spans)
            for (offset, length), data in zip(spans, pieces(self.place, self.info, spans), strict=True):
                self._fetched.bytes_read += length
                yield offset, data
        else:
            view = _advised(self._map().view, mmap.MADV_SEQUENTIAL)
            yield from ((0, self._whole(view)) for _ in spans)

    def renew(self, data: memoryview) -> bool:
        """Whether it is worth to read these bytes again, which were found damaged.

        It is at the store; it is from the cache, whose copy is dropped, unless that copy was hashed when it came.
        """
        mapped = self._mapped
        if mapped is None or mapped.view.obj is not data.obj:
            return self.place.folder is None
        if self._cache is None or self._verified:
            return False
        self._cache.drop(self.info, mapped.file)
        self._mapped, self._verified = None, True
        return True

    def _whole(self, view: memoryview) -> memoryview:
        """The same view, unless its file was cut meanwhile: reading behind its end would kill the process (SIGBUS)."""
        size = view.obj.size() if isinstance(view.obj, mmap.mmap) else len(view)
        if size < len(view):
            raise ShardError(self.info.name, None, "shard size", self.info.bytes, f"{size}, cut while it was read")
        return view

    @property
    def _by_range(self) -> bool:
        return self._cache is None and self.place.folder is None

    def _map(self, stop: Stop | None = None) -> _Mapped:
        mapped = self._mapped
        if mapped is None:
            with self.opening():
                mapped = self._mapped = self._mapped or self._mapped_once(stop)
        return mapped

    def _mapped_once(self, stop: Stop | None) -> _Mapped:
        if self._broken is not None:
            raise self._broken.again()
        try:
            return self._mapped_now(stop)
        except ShardError as error:
            self._broken = error.again()
            raise

    def _map_cached(self) -> bool:
        """Whether the tar is there without waiting for it."""
        file = self._cache.look(self.info) if self._cache else None
        if file is not None:
            with file:
                self._mapped = _mapped(self.info, file)
            self._fetched.cache_hits += 1
        return self._mapped is not None

    def _mapped_now(self, stop: Stop | None) -> _Mapped:
        with self._open(stop) as file:
            return _mapped(self.info, file)

    def _open(self, stop: Stop | None) -> IO[bytes]:
        if self.place.folder is not None:
            return self._local(self.place.folder / self.info.name)
        if self._cache is not None:
            entry = self._cache.open(self.place, self.info, stop)
            self._fetched.cache_misses += entry.downloaded
            self._fetched.cache_hits += not entry.downloaded
            self._fetched.bytes_read += entry.downloaded * self.info.bytes
            self._verified = entry.downloaded
            return entry.file
        file = tempfile.TemporaryFile(prefix="shardweave-")  # noqa: SIM115  the caller closes it
        self._fetched.bytes_read += self.info.bytes
        download(self.place, self.info, file, stop)
        return file

    def _local(self, path: os.PathLike[str]) -> IO[bytes]:
        try:
            return open(path, "rb")
        except FileNotFoundError as error:
            raise missing(self.info) from error
        except OSError as error:
            raise ShardError(self.info.name, None, "shard unreadable", f"{self.info.bytes} bytes", error.strerror) from error


def _mapped(info: ShardInfo, file: IO[bytes]) -> _Mapped:
    stat = os.fstat(file.fileno())
    if stat.st_size != info.bytes:
        raise ShardError(info.name, None, "shard size", info.bytes, stat.st_size)
    if not stat.st_size:
        return _Mapped(memoryview(b""), stat)
    return _Mapped(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), stat)


def _advised(view: memoryview, advice: int) -> memoryview:
    """The same view; the kernel knows how it will be read."""
    if isinstance(view.obj, mmap.mmap):
        view.obj.madvise(advice)
    return view
