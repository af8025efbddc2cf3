"""The reader: a data set by its index. Whole shards in order, one record by key or number.

A reader knows each shard's size and each record's CRC-32, so a cut or altered shard is a ShardError that names shard and key, never a
shorter epoch. Of a shard on object storage it reads the records' byte ranges, or, with a cache, the whole shard once a machine. Everything
here may be used from several threads, and a data set pickles. A forked child may use what its parent has opened if it is a directory: the
clients of object storage do not live on in it.
"""

from __future__ import annotations

import bisect
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from isal import isal_zlib

from schemas import ShardError, ShardweaveError
from shards import index, manifest
from shards.cache import Cache
from shards.download import PIECE, Stop
from shards.index import Index
from shards.manifest import Manifest, ShardInfo
from shards.place import Place, at
from shards.sample import Sample
from shards.tar import Fetched, Tar

AHEAD = 4  # shards that are opened in the background at a time
OPEN = 256  # shards that random access keeps open: each takes a file descriptor
log = logging.getLogger(__name__)


class Shard:
    """One tar with its index. Opened when first used. Raises ShardError where it is damaged, StoreError where the store does not answer."""

    __slots__ = ("_broken", "_fetched", "_index", "_index_name", "_sample", "info", "place", "tar")

    def __init__(
        self, place: Place, info: ShardInfo, *, layout: str | None = None, cache: Cache | None = None, fetched: Fetched | None = None
    ) -> None:
        self.place, self.info, self._fetched = place, info, fetched or Fetched()
        self.tar = Tar(place, info, cache, self._fetched)
        self._index_name, self._sample = manifest.index_name(info.name, layout), _sample(layout)
        self._index: Index | None = None
        self._broken: ShardError | None = None  # until it is closed

    @property
    def name(self) -> str:
        """The tar's file name."""
        return self.info.name

    def __len__(self) -> int:
        return self.info.records

    @property
    def is_open(self) -> bool:
        """Whether reading a record waits for no more than its bytes."""
        return self._index is not None and self.tar.is_open

    @property
    def index(self) -> Index:
        """The shard's index, checked against the manifest."""
        found = self._index
        if found is None:
            with self.tar.opening():
                found = self._index = self._index or self._index_once()
        return found

    @property
    def view(self) -> memoryview:
        """The tar's bytes, of the size that the manifest states; a remote one's are brought here whole."""
        return self.tar.view

    def members(self, row: int) -> list[tuple[str, int, int]]:
        """Name, offset and size of each member of a record; its JSON last."""
        return self.index.members(row)

    def open(self, stop: Stop | None = None) -> None:
        """Do now what the first record would wait for. Raises CancelledError after `stop`."""
        if stop:
            stop.check()
        _ = self.index
        self.tar.open(stop)

    def ask(self) -> None:
        """Have the disk read the index of a local shard: of several, each would wait for its own."""
        if self.place.folder is not None:
            with contextlib.suppress(OSError):  # told where it is opened
                descriptor = os.open(self.place.folder / self._index_name, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)

    def soon(self, rows: Sequence[int]) -> None:
        """Have the disk read what these rows take, all at once; a remote shard's come when they are asked for. Raises as `shard[row]`."""
        if self.place.folder is not None:
            found = self.index
            self.tar.soon((found.offsets[row], found.lengths[row]) for row in rows)

    def close(self) -> None:
        """Let go of map and index. Samples stay good, and the shard opens again when it is used."""
        self._index = self._broken = None
        self.tar.close()

    def __getitem__(self, row: int) -> Sample:
        """The record in this row, its bytes checked. Raises ShardError, IndexError."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.name} row {row}: expected one from 0 to {len(self) - 1}")
        found = self.index
        offset, length = found.offsets[row], found.lengths[row]
        data = self.tar.read(offset, length)
        checksum = isal_zlib.crc32(data)
        if checksum != found.crc32[row] and self.tar.renew(data):
            data = self.tar.read(offset, length)
            checksum = isal_zlib.crc32(data)
        if checksum != found.crc32[row]:
            raise ShardError(self.name, found.keys[row], "record altered", f"crc32 {found.crc32[row]:08x}", f"{checksum:08x}")
        return self._sample(found, row, data)

    def __iter__(self) -> Iterator[Sample]:
        """Every record in written order."""
        found, crc32, sample = self.index, isal_zlib.crc32, self._sample
        runs = _runs(found)
        for run, (base, data) in zip(runs, self.tar.read_all((run.start, run.stop - run.start) for run in runs), strict=True):
            part = slice(run.rows.start, run.rows.stop)
            columns = (found.offsets[part].tolist(), found.lengths[part].tolist(), found.crc32[part].tolist())
            for row, offset, length, checksum in zip(run.rows, *columns, strict=True):
                record = data[offset - base : offset - base + length]
                yield sample(found, row, record) if crc32(record) == checksum else self[row]

    def _index_once(self) -> Index:
        if self._broken is not None:
            raise self._broken.again()
        try:
            return self._read_index()
        except ShardError as error:
            self._broken = error.again()
            raise

    def _read_index(self) -> Index:
        name = self._index_name
        try:
            data = self.place.read(name)
        except OSError as error:
            raise ShardError(name, None, "index unreadable", "a parquet index", error.strerror or "no such file") from error
        if self.place.folder is None:
            self._fetched.bytes_read += len(data)
        found = index.decode(name, data, self.info.index_sha256)
        for what, expected, seen in (
            ("tar size in the index", self.info.bytes, found.tar_bytes),
            ("tar sha256 in the index", self.info.sha256, found.tar_sha256),
            ("index rows", self.info.records, len(found.keys)),
        ):
            if expected != seen:
                raise ShardError(self.name, None, what, expected, seen)
        return found


class _Run(NamedTuple):
    rows: range
    start: int  # byte in the tar
    stop: int


def _sample(layout: str | None) -> Callable[[Index, int, memoryview], Sample]:
    """What makes a sample of a record's bytes."""
    if layout is None:
        return Sample
    from shards.foreign_sample import ForeignSample

    return partial(ForeignSample, layout=layout)


def _runs(found: Index) -> list[_Run]:
    """Rows one behind the other, and the bytes that hold them: about a request's worth at a time."""
    begin = np.asarray(found.offsets)
    end = begin + np.asarray(found.lengths)
    cuts = np.flatnonzero(np.diff(begin // PIECE)) + 1
    rows = [range(a, b) for a, b in pairwise([0, *cuts.tolist(), len(begin)]) if a < b]
    return [_Run(run, int(begin[run.start : run.stop].min()), int(end[run.start : run.stop].max())) for run in rows]


class Shards:
    """A finished data set: a sequence of samples. Raises ShardError, with shard and key, where one is damaged.

    `fetched` counts what came from object storage. Use it as a context manager, or `close` it, where `prefetch` was called.
    """

    def __init__(self, place: Place, found: Manifest, cache: Cache | None = None) -> None:
        self.place, self.manifest, self.cache = place, found, cache
        self.fetched = Fetched()
        self.shards = [Shard(place, info, layout=found.layout, cache=cache, fetched=self.fetched) for info in found.shards]
        self._first = list(accumulate((len(shard) for shard in self.shards), initial=0))
        self._recent: set[int] = set()
        self._by_unit: dict[str, list[int]] | None = None
        self._ahead: _Ahead | None = None

    def __reduce__(self) -> tuple[type[Shards], tuple[Place, Manifest, Cache | None]]:
        return Shards, (self.place, self.manifest, self.cache)

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead and close every shard. What is used afterwards opens again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        for shard in self.shards:
            shard.close()

    def __len__(self) -> int:
        return self._first[-1]

    @property
    def sizes(self) -> dict[str, int]:
        """Records of each shard, by its name."""
        return {shard.name: len(shard) for shard in self.shards}

    def __getitem__(self, number: int) -> Sample:
        """The record of this number, counted over all shards; negative counts from the end. Raises IndexError."""
        number = number + len(self) if number < 0 else number
        if not 0 <= number < len(self):
            raise IndexError(f"record {number}: expected one below {len(self)}")
        shard = bisect.bisect_right(self._first, number) - 1
        return self._few(shard)[number - self._first[shard]]

    def __iter__(self) -> Iterator[Sample]:
        """Every record in order, each once; from object storage, the next shards come while one is read."""
        for number, shard in enumerate(self.shards):
            if self.place.folder is None:
                self.prefetch(range(number, min(number + AHEAD, len(self.shards))))
            yield from shard
            shard.close()

    def get(self, key: str) -> Sample:
        """The record with this key: its unit says which shards to look in. Raises KeyError."""
        for number in self._units.get(key[:6], ()) if self.manifest.layout is None else self._tars(key[:6]):
            shard = self._few(number)
            row = bisect.bisect_left(shard.index.keys, key)
            if row < len(shard) and shard.index.keys[row] == key:
                return shard[row]
        raise KeyError(key)

    def _tars(self, unit: str) -> Iterable[int]:
        """Of tars made elsewhere: shards that this tar may be, the likeliest first: damaged ones before it are missing."""
        return range(min(int(unit), len(self.shards) - 1), -1, -1) if unit.isdecimal() and self.shards else ()

    @property
    def _units(self) -> dict[str, list[int]]:
        """Numbers of the shards of each unit."""
        if self._by_unit is None:
            found: dict[str, list[int]] = {}
            for number, shard in enumerate(self.shards):
                found.setdefault(shard.name[:6], []).append(number)
            self._by_unit = found
        return self._by_unit

    def _few(self, number: int) -> Shard:
        """The shard of this number. Those that were asked for before are closed when they are many."""
        if number not in self._recent:
            if len(self._recent) >= OPEN:
                for other in list(self._recent):
                    self.shards[other].close()
                self._recent.clear()
            self._recent.add(number)
        return self.shards[number]

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Open these shards in background threads, a few at a time, in this order. Who uses one sooner waits for it as always.

        What fails here is logged, and fails again, and is raised, where the shard is used.
        """
        if self._ahead is None or self._ahead.process != os.getpid():
            self._ahead = _Ahead()
        wanted = [shard for shard in map(self.shards.__getitem__, numbers) if not shard.is_open]
        for shard in wanted:
            shard.ask()
        for shard in wanted:
            self._ahead.add(shard)


class _Ahead:
    """Threads of one process that open shards. They end when there is nothing left to open."""

    def __init__(self) -> None:
        self.process, self._stop, self._lock = os.getpid(), Stop(), threading.Lock()
        self._shards: deque[Shard] = deque()
        self._threads: set[threading.Thread] = set()

    def add(self, shard: Shard) -> None:
        """Open this one, unless it is or is about to be."""
        with self._lock:
            if not shard.is_open and not shard.tar.coming:
                shard.tar.coming = True
                self._shards.append(shard)
                if len(self._threads) < AHEAD:
                    thread = threading.Thread(target=self._work, name="shardweave-ahead")
                    self._threads.add(thread)
                    thread.start()

    def close(self) -> None:
        """Nothing more is begun, and what is under way is given up within a request."""
        self._stop.set()
        for thread in list(self._threads):
            thread.join()

    def _work(self) -> None:
        while (shard := self._next()) is not None:
            try:
                shard.open(self._stop)
                if not shard.tar.coming:  # used and closed meanwhile
                    shard.close()
            except CancelledError:
                continue
            except (ShardweaveError, OSError) as error:
                log.warning("read ahead: %s", error)  # whoever uses the shard gets it raised
            finally:
                shard.tar.coming = False

    def _next(self) -> Shard | None:
        with self._lock:
            while self._shards:
                shard = self._shards.popleft()
                if shard.tar.coming:  # not yet used and closed
                    return shard
            self._threads.discard(threading.current_thread())
            return None


def open(place: str | Path | Place, *, cache: Cache | None = None) -> Shards:
    """The data set at a place; with a cache, whole shards of object storage are kept on local disk.

    Raises RequestError where there is no finished one, ShardError where its manifest is damaged.
    """
    found = at(place)
    return Shards(found, manifest.read(found), cache)
