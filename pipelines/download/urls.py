"""URL lists: parquet files with a column of URLs, as LAION and others publish them, cut into shards and read as a stream.

Of a list's columns those are kept that hold plain values: url, caption, and all others under their names but for the ones that img2dataset
gives itself. A column md5, sha256 or sha512 is what the pictures' bytes must hash to.
"""

from __future__ import annotations

import bisect
import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import nearby
from pipelines.download.ledger import EXPECTED, RESULTS
from schemas import RequestError, SourceError

HASHES = ("sha256", "sha512", "md5")
CAPTIONS = ("caption", "text")
TAKEN = frozenset((*RESULTS.names, *HASHES, "url", "caption", "key"))
BATCH = 10_000  # rows that are read at a time
BROKEN = (OSError, pa.ArrowException, ValueError, OverflowError)  # what pyarrow makes of a damaged file


class Range(NamedTuple):
    """A shard: rows of one file."""

    number: int
    file: Path
    start: int
    rows: int


class _Columns(NamedTuple):
    """Names in the file, and what they are called from here on."""

    names: list[str]
    called: list[str]


class UrlList:
    """The URLs of one or more parquet files, or folders of them, in shards of at most `size`.

    Of a limit only the shards that it touches are there. Raises RequestError, SourceError.
    """

    files = False  # their pictures go into tars

    def __init__(self, paths: Sequence[Path], url: str, caption: str, size: int, limit: int | None = None) -> None:
        self._url, self._caption, self._size = url, caption, size
        self._lists = [file for path in paths for file in _files(path)]
        self._digits = max(1, len(str(size - 1)))
        self._shards = list(self._cut(limit))
        if not self._shards:
            raise SourceError(f"{nearby.called(paths[0])}: expected at least one URL, found none")

    def content(self) -> dict[str, Any]:
        """What makes it this list: the files' sizes and footers, which know of every part of them."""
        return {"files": [_identity(file) for file in self._lists], "url_column": self._url, "caption_column": self._caption}

    def shards(self) -> Sequence[Range]:
        """All of them, in order."""
        return self._shards

    def tables(self, shards: Sequence[Range]) -> Iterator[tuple[Range, pa.Table]]:
        """These shards with their rows: url, key, and what else is kept. Only the row groups that hold them are read."""
        for file, wanted in groupby(shards, lambda shard: shard.file):
            columns = self._columns(file)
            for shard, table in _tables(file, list(wanted), columns.names):
                keys = [f"{shard.number:05d}{row:0{self._digits}d}" for row in range(shard.rows)]
                named = table.select(columns.names).rename_columns(columns.called)  # they come in the file's order
                yield shard, named.append_column("key", pa.array(keys, pa.string()))

    def _cut(self, limit: int | None) -> Iterator[Range]:
        """Each file in shards of about the same size, so that none of a handful is left, which could all be dead."""
        number, left = 0, limit
        for file in self._lists:
            rows = _opened(file).metadata.num_rows
            self._columns(file)
            parts = -(-rows // self._size)
            for part in range(parts):
                if left is not None and left <= 0:
                    return
                start, end = rows * part // parts, rows * (part + 1) // parts
                yield Range(number, file, start, end - start)
                number, left = number + 1, None if left is None else left - (end - start)

    def _columns(self, file: Path) -> _Columns:
        schema = _opened(file).schema_arrow
        types = {field.name: field.type for field in schema}
        if len(types) < len(schema.names):
            raise SourceError(f"{nearby.called(file)}: expected columns of different names, found {', '.join(schema.names)}"[:500])
        url, caption = _named(types, (self._url,)), _named(types, (self._caption,) if self._caption else CAPTIONS)
        missing = [name for name, found in ((self._url, url), (self._caption, caption)) if name and found is None]
        if missing or url is None:
            found = ", ".join(f"{name} ({type})" for name, type in types.items())
            raise SourceError(
                f"{nearby.called(file)}: expected text columns {' and '.join(missing)}, found {found}; --url-column and --caption-column"[
                    :500
                ]
            )
        digest = _named(types, HASHES)
        called = {url: "url"} | ({caption: "caption"} if caption else {}) | ({digest: EXPECTED + digest.lower()} if digest else {})
        for name, type in types.items():
            if name not in called and name not in TAKEN and name not in called.values() and _plain(type):
                called[name] = name
        return _Columns(list(called), list(called.values()))


def _files(path: Path) -> list[Path]:
    if not nearby.is_folder(path):
        return [path]
    found = [path / name for name in nearby.top(path) if name.endswith(".parquet") and not name.startswith(".")]
    if not found:
        raise SourceError(f"{nearby.called(path)}: expected a URL list (.parquet) or a folder of them, found none in this folder")
    return found


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(nearby.near(file))
    except FileNotFoundError as error:
        raise RequestError(f"{nearby.called(file)}: expected a URL list (.parquet), found nothing") from error
    except BROKEN as error:
        raise SourceError(f"{nearby.called(file)}: expected a URL list in parquet, found {str(error).splitlines()[0]}"[:500]) from error


def _named(types: dict[str, pa.DataType], wanted: Sequence[str]) -> str | None:
    """The first of these text columns that there is; in other letters' case, too."""
    texts = [name for name, type in types.items() if pa.types.is_string(type) or pa.types.is_large_string(type)]
    exact = [name for name in wanted if name in texts]
    return (exact or [name for one in wanted for name in texts if name.lower() == one.lower()] or [None])[0]


def _plain(type: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(is_kind(type) for is_kind in kinds)


def _identity(file: Path) -> dict[str, Any]:
    with nearby.near(file).open("rb") as data:
        data.seek(-8, os.SEEK_END)
        length = int.from_bytes(data.read(4), "little")
        data.seek(-8 - length, os.SEEK_END)
        footer = hashlib.sha256(data.read(length)).hexdigest()
        return {"name": file.name, "bytes": data.seek(0, os.SEEK_END), "footer": footer}


def _tables(file: Path, shards: Sequence[Range], columns: Sequence[str]) -> Iterator[tuple[Range, pa.Table]]:
    at, batch, batches = 0, None, _batches(file, shards, columns)
    for shard in shards:
        pieces: list[pa.RecordBatch] = []
        have = 0
        while have < shard.rows:
            while batch is None or at + batch.num_rows <= shard.start + have:
                found = next(batches, None)
                if found is None:
                    raise SourceError(f"{nearby.called(file)}: expected {shard.start + shard.rows} rows, found fewer")
                at, batch = found
            pieces.append(batch.slice(shard.start + have - at, shard.rows - have))
            have += pieces[-1].num_rows
        table = pa.Table.from_batches(pieces).combine_chunks()
        yield shard, pa.table({name: _decent(table[name]) for name in table.column_names})


def _decent(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """The column; where a text in it is no UTF-8, with what is wrong in it replaced: one row is not to cost the others."""
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        values = column.cast(pa.large_binary()).to_pylist()
        return pa.array([None if value is None else value.decode("utf-8", "replace") for value in values], pa.string())


def _batches(file: Path, shards: Sequence[Range], columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of the row groups that these shards lie in, with the number of their first row."""
    with _opened(file) as opened:
        ends = list(accumulate(opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)))
        for group in sorted({group for shard in shards for group in _groups(ends, shard)}):
            at = ends[group - 1] if group else 0
            try:
                for batch in opened.iter_batches(BATCH, [group], list(columns), use_threads=False):
                    yield at, batch
                    at += batch.num_rows
            except BROKEN as error:
                raise SourceError(f"{nearby.called(file)}: expected readable rows, found {str(error).splitlines()[0]}"[:500]) from error


def _groups(ends: Sequence[int], shard: Range) -> range:
    """The row groups that hold rows of a shard."""
    return range(bisect.bisect_right(ends, shard.start), bisect.bisect_left(ends, shard.start + shard.rows) + 1)
