"""The reject ledger, rejects.parquet: one row an input that did not become a record.

A split leaves most of its input here, so rows are encoded a group at a time, and neighbours by what differs between them: 1 or 2 bytes for
each of a million rows that were refused alike.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas import ShardError
from shards.index import parquet
from shards.manifest import RejectRow, RejectRun

REJECTS = "rejects.parquet"
GROUP = 1 << 16  # rows of a row group, and what a run has beyond
SCHEMA = pa.schema(
    [
        ("file", pa.string()),  # annotation file, by name
        ("row", pa.int64()),  # number within the file, from 0
        ("key", pa.string()),  # what its record would have been called
        ("reason", pa.string()),  # short and fixed: what the manifest counts
        ("detail", pa.string()),  # expected and found
    ]
)
_REPEATED: Any = ["file", "reason", "detail"]  # its stubs know only bool
_RISING = {"row": "DELTA_BINARY_PACKED", "key": "DELTA_BYTE_ARRAY"}


def encode(rows: Iterable[RejectRow]) -> bytes:
    """The ledger's bytes, the same for the same rows; a RejectRun stands for all of its own."""
    stream = io.BytesIO()
    with pq.ParquetWriter(stream, SCHEMA, compression="zstd", use_dictionary=_REPEATED, column_encoding=_RISING) as writer:
        for columns in _groups(rows):
            writer.write_table(pa.table(columns, SCHEMA))
    return stream.getvalue()


def _groups(rows: Iterable[RejectRow]) -> Iterator[dict[str, list[Any]]]:
    """Columns of about GROUP rows."""
    group: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in rows:
        keys = row.keys() if isinstance(row, RejectRun) else [row.key]
        group["key"] += keys
        group["row"] += range(row.row, row.row + len(keys))
        for name in _REPEATED:
            group[name] += [getattr(row, name)] * len(keys)
        if len(group["key"]) >= GROUP:
            yield group
            group = {name: [] for name in SCHEMA.names}
    if group["key"]:
        yield group


def decode(data: bytes) -> pa.Table:
    """The ledger in these bytes. Raises ShardError where they are damaged."""
    try:
        return parquet(pa.BufferReader(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ShardError(REJECTS, None, "rejects unreadable", "a parquet table", str(error).splitlines()[0][:200]) from error
