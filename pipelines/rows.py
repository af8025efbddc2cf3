"""Rows: the byte ranges of the rows of JSON files, so that a gigabyte is split in a second and decoded a row at a time.

A list or an object of lists is split by msgspec, over a memory map. What msgspec refuses as a whole (NaN, a lone surrogate, a
trailing comma) is split again by `scan`, which only looks at strings and brackets: then just the bad row is refused, when it is decoded.
A file cut in the middle is a SourceError that names line and byte.
"""

from __future__ import annotations

import bisect
import json
import mmap
import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from pipelines import nearby
from schemas import Reject, SourceError

T = TypeVar("T")
BOM = b"\xef\xbb\xbf"
REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what msgspec raises on a file that `scan` may still split
_GAP = re.compile(rb"[\s,]*")
_NAN = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")|-?Infinity|NaN', re.S)
_SPACE = re.compile(rb"\s*")
_ONE_KEY = re.compile(rb'\s*,?\s*"[^"\\]*(?:\\.[^"\\]*)*"\s*:\s*', re.S)
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rb'[\[{](?:[^"\[\]{}]++|' + _STRING + rb")*+[\]}]"
_NESTED = rb'[\[{](?:[^"\[\]{}]++|' + _STRING + rb"|" + _FLAT + rb")*+[\]}]"
# A string, a whole list or object that nests at most one more (eight times as fast as going in), or a single mark.
_TOKEN = re.compile(_STRING + rb"|" + _NESTED + rb'|[\[\]{},:"]', re.S)


class Rows(Sequence[memoryview]):
    """The rows of one or more files, in order, as raw JSON. Picklable: files are mapped where they are read."""

    def __init__(self, paths: Sequence[Path], ranges: Sequence[np.ndarray]) -> None:
        """ranges[k]: int64 (rows of paths[k], 2), start and stop byte."""
        self.paths = tuple(paths)
        self.first = np.cumsum([0, *(len(part) for part in ranges)])  # row number at which each file begins
        self.ranges = np.concatenate([*ranges, np.empty((0, 2), np.int64)])

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, index: Any) -> Any:
        start, stop = self.ranges[index]
        return self._views[self._file(index)][int(start) : int(stop)]

    def __iter__(self) -> Iterator[memoryview]:
        for view, first, stop in zip(self._views, self.first[:-1], self.first[1:], strict=True):
            for start, end in self.ranges[first:stop]:
                yield view[start:end]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_views"}

    def part(self, indices: range) -> Iterator[tuple[str, int, memoryview]]:
        """File name, row number within it and raw JSON of a contiguous part of the rows."""
        for (start, stop), index in zip(self.ranges[indices.start : indices.stop].tolist(), indices, strict=True):
            file = self._file(index)
            yield self.paths[file].name, index - self._first[file], self._views[file][start:stop]

    def where(self, index: int) -> tuple[str, int]:
        """File name and row number within it."""
        file = self._file(index)
        return self.paths[file].name, index - int(self.first[file])

    def _file(self, index: int) -> int:
        return bisect.bisect_right(self._first, index) - 1

    @cached_property
    def _first(self) -> list[int]:
        return self.first.tolist()

    @cached_property
    def _views(self) -> list[memoryview]:
        return [memoryview(mapped(path)) for path in self.paths]


def rows(paths: Sequence[Path]) -> Rows:
    """The rows of JSON lists and of JSONL files. Raises SourceError for anything else, and where there is no row at all."""
    found = Rows(paths, [_ranges(path) for path in paths])
    if not len(found):
        raise SourceError(f"{nearby.called(paths[0]) if paths else 'annotations'}: expected at least one row, found an empty list")
    return found


def raw_rows(path: Path) -> Iterator[msgspec.Raw | bytes]:
    """The rows of one file, one after another, without their positions."""
    data = mapped(path)
    if first_byte(data) != b"[":
        return (data[start:stop] for start, stop in _lines(path, data))
    try:
        return iter(msgspec.json.decode(_text(data), type=list[msgspec.Raw]))
    except REFUSED:
        return (data[start:stop] for start, stop in scan_list(path, data).tolist())


def first_rows(path: Path, most: int) -> list[bytes]:
    """The first rows of one file, for a look at what it is: reads no further. Raises SourceError as `rows` does."""
    data = mapped(path)
    if first_byte(data) != b"[":
        return [data[start:stop] for start, stop in islice(_lines(path, data), most)]
    return [data[start:stop] for start, stop in _scan(path, data, data.find(b"["), most)[0].tolist()]


def cells(path: Path, kind: type[T]) -> Iterator[T | None]:
    """Every row of one file as `kind`, a struct of just the fields wanted; None where a row is of another kind.

    Decoded at once where the whole file allows it, which costs half the time of splitting first; fields typed msgspec.Raw keep a wrong
    value in one row from making that impossible.
    """
    data = mapped(path)
    try:
        if first_byte(data) == b"[":
            yield from msgspec.json.decode(_text(data), type=list[kind])
        else:
            yield from msgspec.json.Decoder(kind).decode_lines(_text(data))
    except REFUSED:
        yield from readable(raw_rows(path), msgspec.json.Decoder(kind))


def readable(raws: Iterable[msgspec.Raw | bytes], decoder: msgspec.json.Decoder[T]) -> Iterator[T | None]:
    """Each row decoded; None where it can not be."""
    for raw in raws:
        try:
            yield decode(raw, decoder)
        except Reject:
            yield None


def tables(path: Path, names: Sequence[str]) -> dict[str, Rows]:
    """The lists with these names in a JSON object, {} where the object lacks one. Raises SourceError if it is no object."""
    data = mapped(path)
    if first_byte(data) != b"{":
        raise SourceError(f"{nearby.called(path)}: expected a JSON object with {', '.join(names)}, found {_begins(data)}")
    wanted = msgspec.defstruct("Tables", [(name, list[msgspec.Raw], msgspec.field(default_factory=list)) for name in names])
    try:
        decoded = msgspec.json.decode(_text(data), type=wanted)
    except msgspec.ValidationError as error:
        raise SourceError(f"{nearby.called(path)}: expected lists named {', '.join(names)}, found {error}") from error
    except REFUSED:
        return {name: Rows([path], [ranges]) for name, ranges in scan_tables(path, data, names).items()}
    _stated_once(path, data)
    return {name: Rows([path], [_offsets(data, getattr(decoded, name))]) for name in names if getattr(decoded, name)}


def _stated_once(path: Path, data: mmap.mmap | bytes) -> None:
    """Raise SourceError where a file states a field of its object twice: parsers keep the last, and lose the first in silence."""
    view = _text(data)
    try:
        fields = msgspec.json.decode(view, type=dict[str, msgspec.Raw])
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: expected UTF-8, found {error}") from error
    base = np.frombuffer(view, np.uint8).ctypes.data - (len(data) - len(view))
    spans = sorted((int(np.frombuffer(raw, np.uint8).ctypes.data) - base, len(memoryview(raw))) for raw in fields.values())
    end = data.find(b"{") + 1
    for start, length in spans:
        if not _ONE_KEY.fullmatch(data, end, start):
            where = position(path, data, end)
            raise SourceError(f"{where}: expected every field once, found {bytes(data[end : end + 30])!r}, which comes again")
        end = start + length


def once(data: Any, names: Sequence[str]) -> None:
    """Raise Reject(repeated_field) where an object in a row states one of these fields twice: which is meant, nobody knows."""
    text = bytes(data)
    for name in names:
        if text.count(_quoted(name)) > 1 and _repeats(text, name):
            raise Reject("repeated_field", f"expected {name} once, found it twice")


@lru_cache(1000)
def _quoted(name: str) -> bytes:
    return f'"{name}"'.encode()


def _repeats(text: bytes, name: str) -> bool:
    found: list[bool] = []
    try:
        json.loads(text, object_pairs_hook=lambda pairs: found.append(sum(key == name for key, _ in pairs) > 1))
    except (ValueError, RecursionError):
        return False  # decoding says what is wrong
    return any(found)


def decode(data: Any, decoder: msgspec.json.Decoder[T]) -> T:
    """The decoded row. Raises Reject: `json` where it is not JSON, `schema` where a field has another type."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise Reject("schema", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Reject("json", str(error)) from error


def decode_nan(data: Any, decoder: msgspec.json.Decoder[T]) -> tuple[T, int]:
    """The decoded row, and how many NaN and infinities in it, which Python's json writes, were read as null. Raises Reject as `decode`."""
    try:
        return decode(data, decoder), 0
    except Reject:
        nans = sum(token[1] is None for token in _NAN.finditer(data))
        if not nans:
            raise
        return decode(_NAN.sub(lambda token: token[1] or b"null", data), decoder), nans


def loosely(data: Any) -> Any:
    """The row as plain values, for rows that hold many things of which one may be bad. Raises Reject(json).

    NaN and infinities are read as such; a string that is not Unicode becomes None.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            return _unicode(json.loads(bytes(data).decode("utf-8", "surrogateescape")))
        except (ValueError, RecursionError) as error:
            raise Reject("json", str(error)) from error


def _unicode(value: Any) -> Any:
    if isinstance(value, list):
        return [_unicode(item) for item in value]
    if isinstance(value, dict):
        return {name.encode("utf-8", "replace").decode(): _unicode(item) for name, item in value.items()}
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        return None
    return value


def converted(value: Any, type: type[T]) -> T:
    """Plain values as a typed struct. Raises Reject(schema)."""
    try:
        return msgspec.convert(value, type)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise Reject("schema", str(error)) from error


def mapped(path: Path) -> mmap.mmap | bytes:
    """The file's bytes, mapped. Raises SourceError where it can not be read, or is empty."""
    try:
        with nearby.near(path).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise SourceError(f"{nearby.called(path)}: expected JSON, found an empty file") from error
    except OSError as error:
        raise SourceError(f"{nearby.called(path)}: expected a readable file, found {error.strerror}") from error


def first_byte(data: mmap.mmap | bytes) -> bytes:
    """The first byte that is neither white space nor a byte order mark."""
    return bytes(data[:64]).removeprefix(BOM).lstrip()[:1] or bytes(data[:4096]).removeprefix(BOM).lstrip()[:1]


def _begins(data: mmap.mmap | bytes) -> str:
    return repr(bytes(data[:32]))


def _text(data: mmap.mmap | bytes) -> memoryview:
    return memoryview(data)[3:] if data[:3] == BOM else memoryview(data)


def _ranges(path: Path) -> np.ndarray:
    data = mapped(path)
    if first_byte(data) != b"[":
        return np.fromiter(_lines(path, data), np.dtype((np.int64, 2)))
    try:
        return _offsets(data, msgspec.json.decode(_text(data), type=list[msgspec.Raw]))
    except REFUSED:
        return scan_list(path, data)


def _offsets(data: mmap.mmap | bytes, raws: list[msgspec.Raw]) -> np.ndarray:
    """Where raws that follow each other lie: each begins behind the comma and white space that end the one before."""
    found = np.empty((len(raws), 2), np.int64)
    if not raws:
        return found
    view, at = _text(data), 0
    base = np.frombuffer(view, np.uint8).ctypes.data
    at = np.frombuffer(raws[0], np.uint8).ctypes.data - base + len(data) - len(view)
    for index, raw in enumerate(raws):
        at = _GAP.match(data, at).end()  # pyright: ignore[reportOptionalMemberAccess] - it matches nothing, too
        found[index, 0] = at
        at += len(memoryview(raw))
        found[index, 1] = at
    return found


def _lines(path: Path, data: mmap.mmap | bytes) -> Iterator[tuple[int, int]]:
    """One object a line. A first line that is no whole object means that this is no JSONL, a last one that the file was cut off."""
    if first_byte(data) != b"{":
        raise SourceError(f"{nearby.called(path)}: expected a JSON list or one JSON object a line, found {_begins(data)}")
    start, first = len(BOM) if data[:3] == BOM else 0, True
    while start < len(data):
        end = data.find(b"\n", start)
        stop = len(data) if end < 0 else end
        line = data[start:stop].strip()
        if line:
            if not line.endswith(b"}") and (first or end < 0):
                where = position(path, data, stop)
                raise SourceError(f"{where}: expected one whole JSON object a line, found {line[-20:]!r} at its end")
            first = False
            yield start, stop
        start = stop + 1


def scan_list(path: Path, data: mmap.mmap | bytes) -> np.ndarray:
    """Byte ranges of the rows of a file that is a list, by brackets and strings alone. Raises SourceError where the list is cut off."""
    found, end = _scan(path, data, data.find(b"["))
    _nothing_after(path, data, end)
    return found


def scan_tables(path: Path, data: mmap.mmap | bytes, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Byte ranges of the rows of an object's lists, by brackets and strings alone."""
    found: dict[str, np.ndarray] = {}
    at, depth, key, last = data.find(b"{") + 1, 1, b"", b""
    while depth:
        start, at = _token(path, data, at)
        mark = data[start : start + 1]
        name = key.strip(b'"').decode("utf-8", "replace")
        if depth == 1 and mark == b"[" and name in names:
            found[name], at = _scan(path, data, start)
        elif at - start == 1:
            depth += (mark in b"[{") - (mark in b"]}")
        key = last if depth == 1 and mark == b":" else key
        last = data[start:at] if mark == b'"' else mark
    _nothing_after(path, data, at)
    return found


def _scan(path: Path, data: mmap.mmap | bytes, begin: int, most: int = sys.maxsize) -> tuple[np.ndarray, int]:
    """Byte ranges of the rows of the list that begins here, at most so many, and where that ends."""
    found, row, at, depth = array("q"), begin + 1, begin + 1, 1
    while depth and len(found) < 2 * most:
        start, at = _token(path, data, at)
        mark = data[start : start + 1]
        if at - start == 1:
            depth += (mark in b"[{") - (mark in b"]}")
        if (depth == 1 and mark == b",") or depth == 0:
            found.extend(_trimmed(data, row, start))
            row = at
    if depth == 0 and found[-2] >= found[-1]:  # an empty list, or a comma before the bracket
        del found[-2:]
    return np.frombuffer(found, np.int64).reshape(-1, 2), at


def _token(path: Path, data: mmap.mmap | bytes, at: int) -> tuple[int, int]:
    """Start and stop of the next token. Raises SourceError where the file ends first."""
    token = _TOKEN.search(data, at)
    if token is None:
        raise SourceError(f"{position(path, data, len(data))}: expected a closing bracket, found the end of the file")
    start, stop = token.span()
    if stop - start == 1 and data[start : start + 1] == b'"':
        raise SourceError(f"{position(path, data, start)}: expected a string to end, found the end of the file")
    return start, stop


def _nothing_after(path: Path, data: mmap.mmap | bytes, end: int) -> None:
    behind = _SPACE.match(data, end).end()  # pyright: ignore[reportOptionalMemberAccess] - it matches nothing, too
    if behind < len(data):
        raise SourceError(f"{position(path, data, behind)}: expected the end of the file, found {bytes(data[behind : behind + 20])!r}")


def _trimmed(data: mmap.mmap | bytes, start: int, stop: int) -> tuple[int, int]:
    text = data[start:stop]
    return start + len(text) - len(text.lstrip()), stop - (len(text) - len(text.rstrip()))


def position(path: Path, data: mmap.mmap | bytes, at: int) -> str:
    """Where a byte stands: file, line, byte."""
    lines, start = 1, 0
    while (start := data.find(b"\n", start, at) + 1) > 0:
        lines += 1
    return f"{nearby.called(path)} line {lines}, byte {at}"
