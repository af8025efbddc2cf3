"""Rows of upstream files, by number: JSON lists, lists in an object, lines (plain, zipped, gzipped), parquet, one a file or tar member.

What is packed is unpacked as a stream, UNPACKED bytes at most; lines and members are cut at LINE. A damaged file gives what stands before
the damage.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import mmap
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from isal import igzip, isal_zlib

LARGEST = 4 << 30  # bytes of a JSON file that is split
UNPACKED = 512 << 20  # bytes that are read through for a row
LINE = 64 << 20  # bytes of a row
BATCH = 256  # rows of a parquet file that are decoded at a time
SCANNED = 256 << 20  # bytes of a list that are looked through where one of its rows is no JSON
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN = re.compile(_STRING + rb'|[\[{](?:[^"\[\]{}]++|' + _STRING + rb")*+[\]}]|[\[\]{},]", re.S)  # a string, what nests no more, a mark
BROKEN: tuple[Any, ...] = (  # isal has no types
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, isal_zlib.error, lzma.LZMAError, pa.ArrowException),
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError),
)


def read(path: Path, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Those of the rows that are there and can be reached, with their numbers, in order."""
    wanted = sorted({number for number in numbers if number >= 0})
    for endings, find in FORMATS:
        if wanted and path.name.endswith(endings):
            with contextlib.suppress(*BROKEN):
                yield from find(path, wanted)
            return


def _json(path: Path, wanted: list[int]) -> Iterator[tuple[int, bytes]]:
    if path.stat().st_size > LARGEST:
        return
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed when no row looks into it
    try:
        found = _split(data)
    except (msgspec.DecodeError, RecursionError):
        yield from _scanned(data, wanted)
        return
    yield from ((number, bytes(found[number])) for number in wanted if number < len(found))


def _split(data: mmap.mmap) -> Sequence[Any]:
    """The rows of a list, or of a list in an object (COCO's `images` first). An object without lists is one row."""
    found = msgspec.json.decode(data, type=list[msgspec.Raw] | dict[str, msgspec.Raw])
    if isinstance(found, list):
        return found
    lists = {name: value for name, value in found.items() if bytes(memoryview(value)[:1]) == b"["}
    if not lists:
        return [data[:LINE]]
    return msgspec.json.decode(lists.get("images", next(iter(lists.values()))), type=list[msgspec.Raw])


def _scanned(data: mmap.mmap, wanted: list[int]) -> Iterator[tuple[int, bytes]]:
    """Rows of a list of which one is no JSON, by brackets and strings alone. Anything else that is broken is one row."""
    begin, number, depth = data.find(b"["), 0, 0
    if data[:64].lstrip()[:1] != b"[":
        yield from _chosen([data[:LINE]], wanted)
        return
    start = begin + 1
    for token in _TOKEN.finditer(data, begin, begin + SCANNED):
        at, end = token.span()
        if end - at > 1:
            continue
        depth += (data[at] in b"[{") - (data[at] in b"]}")
        if depth == 0 or (depth == 1 and data[at] == ord(",")):
            if number in wanted:
                yield number, data[start:at].strip()
            number, start = number + 1, end
            if depth == 0 or number > wanted[-1]:
                return


def _lines(path: Path, wanted: list[int]) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as raw, _unpacked(raw) as file:
        yield from _chosen(_each_line(file), wanted)


def _each_line(file: IO[bytes]) -> Iterator[bytes]:
    """The lines that are not blank; of a long one its beginning."""
    left = UNPACKED
    while left > 0 and (line := file.readline(LINE)):
        piece = line
        left -= len(piece)
        while left > 0 and len(piece) == LINE and not piece.endswith(b"\n"):
            piece = file.readline(LINE)
            left -= len(piece)
        if line.strip():
            yield line


def _scenes(path: Path, wanted: list[int]) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as raw, _unpacked(raw) as file:
        bounded = cast(IO[bytes], _Bounded(file))
        with tarfile.open(fileobj=bounded, mode="r|") as tar:
            yield from _chosen(_members(tar), wanted)


def _members(tar: tarfile.TarFile) -> Iterator[bytes]:
    """Its JSON files. A tar that holds others too is none of scenes: who counts in it counts something else."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue] - it would remember every one
        if member.isreg() and not PurePosixPath(member.name).name.startswith("."):
            if not member.name.endswith(".json"):
                return
            yield cast(IO[bytes], tar.extractfile(member)).read(LINE)


def _parquet(path: Path, wanted: list[int]) -> Iterator[tuple[int, bytes]]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        first = 0
        for group in range(file.num_row_groups):
            stated = file.metadata.row_group(group)
            mine = [number - first for number in wanted if first <= number < first + stated.num_rows]
            if mine and stated.total_byte_size <= UNPACKED:
                batches = file.iter_batches(BATCH, row_groups=[group], use_threads=False)
                yield from ((first + at, row) for at, row in _chosen(_each_row(batches, set(mine)), mine))
            first += stated.num_rows


def _each_row(batches: Iterable[pa.RecordBatch], wanted: set[int]) -> Iterator[bytes]:
    """The wanted rows as JSON, the others empty."""
    at = 0
    for batch in batches:
        for row in range(batch.num_rows):
            yield _encoded(batch.slice(row, 1).to_pylist()[0]) if at + row in wanted else b""
        at += batch.num_rows


def _encoded(row: dict[str, Any]) -> bytes:
    plain = {name: f"{len(value):,} bytes" if isinstance(value, bytes) else value for name, value in row.items()}
    return msgspec.json.encode(plain, enc_hook=str)


def _chosen(rows: Iterable[bytes], wanted: list[int]) -> Iterator[tuple[int, bytes]]:
    """Those of the rows; nothing is asked for behind the last."""
    numbers = set(wanted)
    for number, row in enumerate(rows):
        if number in numbers:
            yield number, row
        if number >= wanted[-1]:
            return


@contextlib.contextmanager
def _unpacked(raw: IO[bytes]) -> Iterator[IO[bytes]]:
    """What is in a .gz, or the first file of a .zip, or the file itself: known by its first bytes."""
    magic = raw.read(2)
    raw.seek(0)
    if magic == b"\x1f\x8b":
        with igzip.IGzipFile(fileobj=raw) as file:
            yield cast(IO[bytes], file)
    elif magic == b"PK":
        with zipfile.ZipFile(raw) as archive:
            found = (entry for entry in archive.infolist() if not entry.is_dir() and not entry.filename.startswith("__MACOSX/"))
            first = next(found, None)
            if first is None:
                raise EOFError("an empty zip")
            with archive.open(first) as member:
                yield io.BufferedReader(cast(io.RawIOBase, member), 1 << 20)
    else:
        yield raw


class _Bounded:
    """A file of which UNPACKED bytes may be read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, UNPACKED

    def read(self, size: int) -> bytes:
        """As a file does. Raises EOFError behind the last byte that may be read."""
        self._left -= size
        if self._left < 0:
            raise EOFError(f"more than {UNPACKED} bytes")
        return self._file.read(size)


Find = Callable[[Path, list[int]], Iterator[tuple[int, bytes]]]
FORMATS: tuple[tuple[tuple[str, ...], Find], ...] = (
    ((".json",), _json),
    ((".jsonl", ".jsonl.gz", ".zip"), _lines),
    ((".parquet",), _parquet),
    ((".tar", ".tar.gz", ".tgz"), _scenes),
)
