"""The index of a shard: UUUUUU-PPP.parquet, one row a record, so that nobody has to read the tar to know what is in it.

Columns: key; offset, length and crc32 of the record's bytes in the tar, headers included; members (name, offset and size of the payload);
images (width, height, bytes, xxh3 of the payload as 16 bytes, similarity); text_length in code points; regions; source; source_id
(upstream's). The file's metadata holds the tar's size and sha256.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas import Record, ShardError

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
    turns = [*record.turns, *(turn for choice in record.choices for turn in choice.turns)]
    text_length = sum(len(part.text) for turn in turns for part in turn.parts if part.text is not None)
    return Entry(record.key, offset, length, members, images, text_length, len(record.regions), record.source, source_id)


@dataclass
class IndexBuilder:
    """Rows as they come; `encode` makes the file's bytes, the same for the same rows."""

    entries: list[Entry] = field(default_factory=list)

    def encode(self, crc32: list[int], xxh3: list[bytes], tar_bytes: int, tar_sha256: str) -> bytes:
        """The parquet file. crc32: one a record; xxh3: one a picture, in order."""
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
        metadata = {"tar_bytes": str(tar_bytes), "tar_sha256": tar_sha256}
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(metadata)), stream, compression="zstd")
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


class Index(NamedTuple):
    """A shard's index in memory: flat columns, so that a record's row costs no Python object before it is asked for.

    Row r of n: members first_member[r]:first_member[r + 1], pictures first_image[r]:first_image[r + 1].
    """

    table: pa.Table
    keys: list[str]
    offsets: list[int]
    lengths: list[int]
    crc32: list[int]
    first_member: list[int]
    member_names: list[str]
    member_offsets: list[int]
    member_sizes: list[int]
    first_image: list[int]
    tar_bytes: int
    tar_sha256: str


def read(path: Path, sha256: str) -> Index:
    """The index in this file. Raises ShardError where it is missing, or is not the one with this hash, or points outside of its tar."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ShardError(path.name, None, "index unreadable", "a parquet index", error.strerror) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:  # a parquet reader is not made for damaged files: it only sees the one that was written
        raise ShardError(path.name, None, "index altered", f"sha256 {sha256}", found)
    try:
        table = parquet(pa.BufferReader(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ShardError(path.name, None, "index unreadable", "a parquet index", str(error)[:200]) from error
    if not table.schema.equals(SCHEMA, check_metadata=False):
        raise ShardError(path.name, None, "index columns", SCHEMA.names, table.schema.names)
    metadata = table.schema.metadata or {}
    try:
        tar_bytes, tar_sha256 = int(metadata[b"tar_bytes"]), metadata[b"tar_sha256"].decode()
    except (KeyError, ValueError) as error:
        raise ShardError(path.name, None, "index metadata", "tar_bytes and tar_sha256", dict(metadata)) from error
    members, images = _combined(table, "members"), _combined(table, "images")
    flat = members.flatten()
    _sound(path.name, table, members, images, tar_bytes)
    return Index(
        table=table,
        keys=table["key"].to_pylist(),
        offsets=table["offset"].to_pylist(),
        lengths=table["length"].to_pylist(),
        crc32=table["crc32"].to_pylist(),
        first_member=members.offsets.to_pylist(),
        member_names=flat.field("name").to_pylist(),
        member_offsets=flat.field("offset").to_pylist(),
        member_sizes=flat.field("size").to_pylist(),
        first_image=images.offsets.to_pylist(),
        tar_bytes=tar_bytes,
        tar_sha256=tar_sha256,
    )


def parquet(source: Any) -> pa.Table:
    """The whole table, read by this thread alone: small files need no pool, and a pool can abort a process that ends at once."""
    with pq.ParquetFile(source, pre_buffer=False) as file:
        return file.read(use_threads=False)


def _sound(name: str, table: pa.Table, members: pa.ListArray, images: pa.ListArray, tar_bytes: int) -> None:
    """Raise ShardError unless every number is there and every record and payload lies inside the tar, the payloads inside their record."""
    columns = [table[column] for column in SCHEMA.names if column != "source_id"]
    columns += [*members.flatten().flatten(), *images.flatten().flatten()[:4]]
    if any(column.null_count for column in columns):
        raise ShardError(name, None, "index columns", "no nulls", "nulls")
    start, length = table["offset"].to_numpy(), table["length"].to_numpy()
    number = np.diff(members.offsets.to_numpy())
    inside = (start >= 0) & (start <= tar_bytes) & (length >= 0) & (length <= tar_bytes - start) & (number > 0)
    at, size = (members.flatten().field(field).to_numpy() for field in ("offset", "size"))
    begin, end = np.repeat(start, number), np.repeat(start + length, number)
    if not inside.all() or not ((begin <= at) & (at <= end) & (size >= 0) & (size <= end - at)).all():
        raise ShardError(name, None, "index offsets", f"members inside of their record, records inside of {tar_bytes} bytes", "others")


def _combined(table: pa.Table, column: str) -> pa.ListArray:
    combined = table[column].combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined
