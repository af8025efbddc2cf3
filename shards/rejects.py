"""The reject ledger, rejects.parquet: one row an input that did not become a record."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from schemas import ShardError
from shards.index import parquet
from shards.manifest import RejectRow

REJECTS = "rejects.parquet"
SCHEMA = pa.schema(
    [
        ("file", pa.string()),  # annotation file, by name
        ("row", pa.int64()),  # number within the file, from 0
        ("key", pa.string()),  # what its record would have been called
        ("reason", pa.string()),  # short and fixed: what the manifest counts
        ("detail", pa.string()),  # expected and found
    ]
)


def encode(rows: Iterable[RejectRow]) -> bytes:
    """The ledger's bytes, the same for the same rows."""
    rows = list(rows)
    columns = [pa.array([getattr(row, field.name) for row in rows], field.type) for field in SCHEMA]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), stream, compression="zstd")
    return stream.getvalue()


def decode(data: bytes) -> pa.Table:
    """The ledger in these bytes. Raises ShardError where they are damaged."""
    try:
        return parquet(pa.BufferReader(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ShardError(REJECTS, None, "rejects unreadable", "a parquet table", str(error).splitlines()[0][:200]) from error
