"""The reader: a data set by its index. Whole shards in order, one record by key or number; local tars are memory-mapped.

A reader knows each shard's size and each record's CRC-32, so a cut or altered shard is a ShardError that names shard and key, never a
shorter epoch.
"""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import msgspec
from isal import isal_zlib

from schemas import Record, RequestError, ShardError
from schemas.record import decode
from shards import index, manifest
from shards.manifest import Manifest, ShardInfo


class Sample:
    """One record and the payloads of its members, as views into the shard: copy what must outlive the data set."""

    __slots__ = ("_row", "_shard", "record")

    def __init__(self, shard: Shard, row: int, record: Record) -> None:
        self._shard, self._row, self.record = shard, row, record

    @property
    def key(self) -> str:
        """The record's key."""
        return self.record.key

    def image(self, position: int) -> memoryview:
        """The bytes of the record's image at this position, as they were upstream."""
        return self.member(self.record.images[position].member)

    def map(self, position: int) -> memoryview:
        """The PNG bytes of the record's label map at this position."""
        return self.member(self.record.maps[position].member)

    def member(self, name: str) -> memoryview:
        """The payload of a member, by full name. Raises KeyError where the index knows none of this name."""
        for member, offset, size in self._shard.members(self._row):
            if member == name:
                return self._shard.view[offset : offset + size]
        raise KeyError(name)


class Shard:
    """One tar with its index. Opened when first used. Raises ShardError where it is damaged."""

    def __init__(self, folder: Path, info: ShardInfo) -> None:
        self.folder, self.info = folder, info

    @property
    def name(self) -> str:
        """The tar's file name."""
        return self.info.name

    def __len__(self) -> int:
        return self.info.records

    @cached_property
    def index(self) -> index.Index:
        """The shard's index, checked against the manifest's count."""
        found = index.read((self.folder / self.name).with_suffix(".parquet"), self.info.index_sha256)
        if found.tar_bytes != self.info.bytes:
            raise ShardError(self.name, None, "tar size in the index", self.info.bytes, found.tar_bytes)
        if len(found.keys) != self.info.records:
            raise ShardError(self.name, None, "index rows", self.info.records, len(found.keys))
        return found

    @cached_property
    def view(self) -> memoryview:
        """The tar's bytes, mapped, of the size that the manifest states."""
        try:
            with (self.folder / self.name).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ShardError(self.name, None, "shard unreadable", f"{self.info.bytes} bytes", error) from error
        if len(mapped) != self.info.bytes:
            raise ShardError(self.name, None, "shard size", self.info.bytes, len(mapped))
        return memoryview(mapped)

    def members(self, row: int) -> list[tuple[str, int, int]]:
        """Name, offset and size of each member of a record; its JSON last."""
        found = self.index
        rows = slice(found.first_member[row], found.first_member[row + 1])
        return list(zip(found.member_names[rows], found.member_offsets[rows], found.member_sizes[rows], strict=True))

    def __getitem__(self, row: int) -> Sample:
        """The record in this row, its bytes checked. Raises ShardError, IndexError."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.name} row {row}: expected one from 0 to {len(self) - 1}")
        found = self.index
        offset = found.offsets[row]
        checksum = isal_zlib.crc32(self.view[offset : offset + found.lengths[row]])
        if checksum != found.crc32[row]:
            raise ShardError(self.name, found.keys[row], "record altered", f"crc32 {found.crc32[row]:08x}", f"{checksum:08x}")
        json = found.first_member[row + 1] - 1
        start = found.member_offsets[json]
        try:
            record = decode(self.view[start : start + found.member_sizes[json]])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ShardError(self.name, found.keys[row], "record unreadable", "a record of format 1", error) from error
        return Sample(self, row, record)

    def __iter__(self) -> Iterator[Sample]:
        """Every record in written order."""
        return (self[row] for row in range(len(self)))


class Shards:
    """A finished data set: a sequence of samples. Raises ShardError, with shard and key, where one is damaged."""

    def __init__(self, folder: Path, found: Manifest) -> None:
        self.folder, self.manifest = folder, found
        self.shards = [Shard(folder, info) for info in found.shards]
        self._first = [0]
        for shard in self.shards:
            self._first.append(self._first[-1] + len(shard))

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, number: int) -> Sample:
        """The record of this number, counted over all shards; negative counts from the end. Raises IndexError."""
        number = number + len(self) if number < 0 else number
        if not 0 <= number < len(self):
            raise IndexError(f"record {number}: expected one below {len(self)}")
        shard = bisect.bisect_right(self._first, number) - 1
        return self.shards[shard][number - self._first[shard]]

    def __iter__(self) -> Iterator[Sample]:
        """Every record in order, each once."""
        for shard in self.shards:
            yield from shard

    def get(self, key: str) -> Sample:
        """The record with this key: its unit says which shards to look in. Raises KeyError."""
        for shard in self.shards:
            if shard.name.startswith(f"{key[:6]}-"):
                row = bisect.bisect_left(shard.index.keys, key)
                if row < len(shard) and shard.index.keys[row] == key:
                    return shard[row]
        raise KeyError(key)


def open(place: str | Path) -> Shards:
    """The data set at a place. Raises RequestError where there is no finished one, ShardError where its manifest is damaged."""
    folder = local(place)
    return Shards(folder, manifest.read(folder))


def local(place: str | Path) -> Path:
    """The directory that a place names. Raises RequestError for a URL of a store that this version does not reach."""
    text = str(place)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if "://" in text:
        raise RequestError(f"{text}: expected a directory, found a URL: object storage is not reached by this version")
    return Path(text)
