"""A shard's numbers as arrays: what statistics, filters and plots are made of. From its index alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas import ShardError
from shards.reader import Shard
from shards.sink import Buffer

_READ = ["text_length", "regions", "source", "images"]


@dataclass(frozen=True)
class Columns:
    """n records, p pictures. `source` counts in `sources`, `record` is the row that a picture belongs to."""

    sources: list[str]
    source: np.ndarray  # int (n,)
    text_length: np.ndarray  # int (n,): code points
    regions: np.ndarray  # int (n,)
    images: np.ndarray  # int (n,)
    record: np.ndarray  # int (p,)
    width: np.ndarray  # int (p,): pixels
    height: np.ndarray  # int (p,)
    image_bytes: np.ndarray  # int (p,)
    similarity: np.ndarray  # float (p,): NaN where upstream gives none
    xxh3: np.ndarray  # uint64 (p, 2): two halves of the content's hash

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def longest_side(self) -> np.ndarray:
        """int (n,): pixels of the longest side of any of a record's pictures; 0 where it has none."""
        longest = np.zeros(len(self), np.int64)
        np.maximum.at(longest, self.record, np.maximum(self.width, self.height))
        return longest


def read(shard: Shard) -> Columns:
    """The shard's columns; they do not keep its index. Raises ShardError, StoreError."""
    table = _table(*shard.index.file)
    images = np.diff(np.asarray(shard.index.first_image, np.int64))
    pictures = table["images"].combine_chunks().flatten()
    names = table["source"].combine_chunks().dictionary_encode()
    hashes = pictures.field("xxh3")
    return Columns(
        sources=names.dictionary.to_pylist(),
        source=names.indices.to_numpy(),
        text_length=table["text_length"].to_numpy(),
        regions=table["regions"].to_numpy(),
        images=images,
        record=np.repeat(np.arange(len(images)), images),
        width=pictures.field("width").to_numpy().copy(),
        height=pictures.field("height").to_numpy().copy(),
        image_bytes=pictures.field("bytes").to_numpy().copy(),
        similarity=pictures.field("similarity").to_numpy(zero_copy_only=False).astype(np.float64),
        xxh3=np.frombuffer(hashes.buffers()[1] or b"", np.uint64).reshape(-1, 2)[hashes.offset : hashes.offset + len(hashes)].copy(),
    )


def _table(name: str, data: Buffer) -> pa.Table:
    """These columns of an index whose hash was right: the others take longer than all of these."""
    try:
        with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
            table = file.read(_READ, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ShardError(name, None, "index unreadable", "a parquet index", str(error)[:200]) from error
    pictures = table["images"].combine_chunks().flatten()
    if any(column.null_count for column in [*table.columns, *pictures.flatten()[:4]]):
        raise ShardError(name, None, "index columns", "no nulls", "nulls")
    return table
