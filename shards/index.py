"""The index of a shard: UUUUUU-PPP.parquet, one row a record, so that nobody has to read the tar to know what is in it.

Columns: key; offset, length and crc32 of the record's bytes in the tar, headers included; members (name, offset and size of the payload);
images (width, height, bytes, xxh3 of the payload as 16 bytes, similarity); text_length in code points; regions; source; source_id
(upstream's). The file's metadata holds the tar's size and sha256.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, cast, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas import Record, ShardError
from shards.sink import Buffer, write_all

_MEMBER = pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
_IMAGE = pa.struct(
    [
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("xxh3", pa.binary(16)),
        ("similarity", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("crc32", pa.uint32()),
        ("members", pa.list_(_MEMBER)),
        ("images", pa.list_(_IMAGE)),
        ("text_length", pa.int32()),
        ("regions", pa.int32()),
        ("source", pa.string()),
        ("source_id", pa.string()),
    ]
)


class Entry(NamedTuple):
    """A record's row but for what only hashing knows."""

    key: str
    offset: int
    length: int
    members: list[tuple[str, int, int]]  # name, offset, size of the payload
    images: list[tuple[int, int, int, float | None]]  # width, height, bytes, similarity
    text_length: int
    regions: int
    source: str
    source_id: str | None


def entry(record: Record, offset: int, length: int, members: list[tuple[str, int, int]], source_id: str | None) -> Entry:
    """The row of a record that stands at these bytes."""
    images = [(image.width, image.height, image.bytes, image.similarity) for image in record.images]
    turns = record.turns + [turn for choice in record.choices for turn in choice.turns]
    text_length = sum([len(part.text) for turn in turns for part in turn.parts if part.text is not None])
    return Entry(record.key, offset, length, members, images, text_length, len(record.regions), record.source, source_id)


@dataclass
class IndexBuilder:
    """Rows as they come; `encode` makes the file's bytes, the same for the same rows."""

    entries: list[Entry] = field(default_factory=list)

    def encode(
        self, crc32: list[int], xxh3: list[bytes], tar_bytes: int, tar_sha256: str, skipped: list[tuple[int, str]] | None = None
    ) -> bytes:
        """The parquet file. crc32: one a record; xxh3: one a picture, in order.

        skipped: samples of a tar made elsewhere that became no record, by offset and key.
        """
        return _encoded(self._batch(crc32, xxh3), tar_bytes, tar_sha256, skipped)

    def pack(self, crc32: list[int], xxh3: list[bytes], folder: Path) -> Packed:
        """The same rows in an unnamed file of this folder, for a shard that waits for its hash. Raises OSError."""
        with contextlib.ExitStack() as unless_done:
            file = unless_done.enter_context(tempfile.TemporaryFile(prefix="shardweave-", dir=folder, buffering=0))
            stream = pa.BufferOutputStream()
            with pa.ipc.new_stream(stream, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)) as writer:
                writer.write_batch(self._batch(crc32, xxh3))
            write_all(file.fileno(), [stream.getvalue()])
            unless_done.pop_all()
        return Packed(len(self.entries), file)

    def _batch(self, crc32: list[int], xxh3: list[bytes]) -> pa.RecordBatch:
        rows = self.entries
        columns = [
            pa.array([row.key for row in rows], pa.string()),
            pa.array([row.offset for row in rows], pa.int64()),
            pa.array([row.length for row in rows], pa.int64()),
            pa.array(crc32, pa.uint32()),
            _lists((row.members for row in rows), _MEMBER),
            _lists((row.images for row in rows), _IMAGE, {3: pa.array(xxh3, pa.binary(16))}),
            pa.array([row.text_length for row in rows], pa.int32()),
            pa.array([row.regions for row in rows], pa.int32()),
            pa.array([row.source for row in rows], pa.string()),
            pa.array([row.source_id for row in rows], pa.string()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


class Packed(NamedTuple):
    """An index that lacks its tar's hash."""

    records: int
    file: io.FileIO  # of no name: gone when it is closed

    def encode(self, tar_bytes: int, tar_sha256: str) -> bytes:
        """The parquet file. Raises OSError."""
        return _one_thread().submit(self._encoded, tar_bytes, tar_sha256).result()

    def _encoded(self, tar_bytes: int, tar_sha256: str) -> bytes:
        self.file.seek(0)
        with pa.ipc.open_stream(self.file.read(), options=pa.ipc.IpcReadOptions(use_threads=False)) as reader:
            return _encoded(reader.read_next_batch(), tar_bytes, tar_sha256)


@cache
def _one_thread() -> ThreadPoolExecutor:
    """Arrow keeps a heap for each thread that it has worked in, and many wait to commit."""
    return ThreadPoolExecutor(1, "index")


os.register_at_fork(after_in_child=_one_thread.cache_clear)  # the thread does not live on in the child, which would wait for it for ever


def _encoded(batch: pa.RecordBatch, tar_bytes: int, tar_sha256: str, skipped: list[tuple[int, str]] | None = None) -> bytes:
    metadata = {"tar_bytes": str(tar_bytes), "tar_sha256": tar_sha256}
    if skipped:
        metadata["skipped"] = json.dumps(skipped)
    table = pa.Table.from_arrays(batch.columns, schema=SCHEMA.with_metadata(metadata))
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def _lists(rows: Iterable[list[tuple[Any, ...]]], struct: pa.StructType, given: dict[int, pa.Array] | None = None) -> pa.ListArray:
    """A list column from tuples, flattened first: ten times as fast as handing pyarrow dicts. `given` columns are not in the tuples."""
    rows = list(rows)
    flat = [item for row in rows for item in row]
    given = given or {}
    taken = list(zip(*flat, strict=True)) if flat else [()] * (struct.num_fields - len(given))
    names = [field.name for field in struct]
    from_tuples = iter(taken)
    columns = [given[i] if i in given else pa.array(next(from_tuples), struct[i].type) for i in range(len(names))]
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=list(struct)))


class Texts(Sequence[str]):
    """A column of strings that makes one when it is asked for."""

    __slots__ = ("_bounds", "_letters")

    def __init__(self, column: pa.StringArray) -> None:
        _, bounds, letters = column.buffers()
        self._bounds = _numbers(bounds, "i", column.offset, len(column) + 1 if len(column) else 1)
        self._letters = memoryview(letters or b"")

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        rows = range(len(self))[row]
        return [self._text(at) for at in rows] if isinstance(rows, range) else self._text(rows)

    def _text(self, row: int) -> str:
        return str(self._letters[self._bounds[row] : self._bounds[row + 1]], "utf-8")


_PLACES = ["members.list.element.offset", "members.list.element.size"]
_READ = ["key", "offset", "length", "crc32", *_PLACES, "images.list.element.width"]  # what reading records takes
_NAMES = ["members.list.element.name"]


@dataclass(slots=True)
class Index:
    """A shard's index in memory: flat columns over pyarrow's own buffers, so that a row costs no Python object before it is asked for.

    Row r of n: members first_member[r]:first_member[r + 1], pictures first_image[r]:first_image[r + 1].
    """

    shard: str  # the tar's name
    keys: Texts
    offsets: memoryview[int]
    lengths: memoryview[int]
    crc32: memoryview[int]
    first_member: memoryview[int]
    member_offsets: memoryview[int]
    member_sizes: memoryview[int]
    first_image: memoryview[int]
    tar_bytes: int
    tar_sha256: str
    file: tuple[str, Buffer]  # its name and bytes
    _table: pa.Table | None = None
    _names: Texts | None = None

    @property
    def member_names(self) -> Texts:
        """Of all members, read when first asked for: pictures are found by position. Raises ShardError."""
        if self._names is None:
            names = Texts(_combined(_table(*self.file, columns=_NAMES), "members").values.field("name"))
            if len(names) != len(self.member_offsets):
                raise ShardError(self.file[0], None, "index columns", f"{len(self.member_offsets)} member names", len(names))
            self._names = names
        return self._names

    @property
    def table(self) -> pa.Table:
        """All columns, read when first asked for. Raises ShardError where values are missing."""
        if self._table is None:
            self._table = _table(*self.file, columns=None)
        return self._table

    def members(self, row: int) -> list[tuple[str, int, int]]:
        """Name, offset and size of each member of a record, as they stand in the tar."""
        rows = range(self.first_member[row], self.first_member[row + 1])
        return [(self.member_names[at], self.member_offsets[at], self.member_sizes[at]) for at in rows]


def decode(name: str, data: Buffer, sha256: str) -> Index:
    """The index in these bytes. Raises ShardError where it is not the one with this hash, or points outside of its tar."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:  # a parquet reader is not made for damaged files: it only sees the one that was written
        raise ShardError(name, None, "index altered", f"sha256 {sha256}", found)
    table = _table(name, data, columns=_READ)
    metadata = table.schema.metadata or {}
    try:
        tar = int(metadata[b"tar_bytes"]), metadata[b"tar_sha256"].decode()
    except (KeyError, ValueError) as error:
        raise ShardError(name, None, "index metadata", "tar_bytes and tar_sha256", dict(metadata)) from error
    members = _combined(table, "members")
    flat = members.values
    index = Index(
        PurePath(name).stem + ".tar",
        Texts(_combined(table, "key")),
        _column(_combined(table, "offset"), "q"),
        _column(_combined(table, "length"), "q"),
        _column(_combined(table, "crc32"), "I"),
        _bounds(members),
        _column(flat.field("offset"), "q"),
        _column(flat.field("size"), "q"),
        _bounds(_combined(table, "images")),
        *tar,
        (name, data),
    )
    _sound(name, index)
    return index


def _table(name: str, data: Buffer, columns: list[str] | None) -> pa.Table:
    """These columns, or all, of an index; none of them with holes."""
    try:
        with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
            schema = file.schema_arrow
            if not schema.equals(SCHEMA, check_metadata=False):
                raise ShardError(name, None, "index columns", SCHEMA.names, schema.names)
            table = file.read(columns, use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ShardError(name, None, "index unreadable", "a parquet index", str(error)[:200]) from error
    values = [table[column] for column in table.column_names if column != "source_id"]
    for column in {"members", "images"}.intersection(table.column_names):
        values += _combined(table, column).values.flatten()[:4]  # of an image, the similarity may be missing
    if any(column.null_count for column in values):
        raise ShardError(name, None, "index columns", "no nulls", "nulls")
    return table


def _column(array: pa.Array, kind: Literal["q", "i", "I"]) -> memoryview[int]:
    """An array's numbers where they lie: pyarrow's own ways to them import pandas."""
    return _numbers(array.buffers()[1], kind, array.offset, len(array))


def _bounds(lists: pa.ListArray) -> memoryview[int]:
    """Where each row's items begin and end among all rows' items, from 0."""
    return _column(lists.offsets, "i") if len(lists) else memoryview(bytes(4)).cast("i")


def _numbers(buffer: pa.Buffer | None, kind: Literal["q", "i", "I"], start: int, count: int) -> memoryview[int]:
    size = np.dtype(kind).itemsize
    return cast("memoryview[int]", memoryview(buffer or bytes(size * count))[start * size : (start + count) * size].cast(kind))


def parquet(source: Any) -> pa.Table:
    """The whole table, read by this thread alone: small files need no pool, and a pool can abort a process that ends at once."""
    with pq.ParquetFile(source, pre_buffer=False) as file:
        return file.read(use_threads=False)


def _sound(name: str, index: Index) -> None:
    """Raise ShardError unless every record and payload lies inside the tar, the payloads inside their record."""
    start, length, at, size = (np.asarray(column) for column in (index.offsets, index.lengths, index.member_offsets, index.member_sizes))
    number = np.diff(np.asarray(index.first_member))
    inside = (start >= 0) & (start <= index.tar_bytes) & (length >= 0) & (length <= index.tar_bytes - start) & (number > 0)
    begin, end = np.repeat(start, number), np.repeat(start + length, number)
    if not inside.all() or not ((begin <= at) & (at <= end) & (size >= 0) & (size <= end - at)).all():
        raise ShardError(
            name, None, "index offsets", f"members inside of their record, records inside of {index.tar_bytes} bytes", "others"
        )


def _combined(table: pa.Table, column: str) -> Any:
    """In one piece, which it is already as a rule: pyarrow would copy it."""
    chunks = table[column]
    return chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
