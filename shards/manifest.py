"""The manifest, and the unit commits that it is made from.

`_units/UUUUUU.json` is written after a unit's tars and indexes: a unit without it never happened. `manifest.json` is written last of all,
so its presence means complete. It proves read = written + rejected.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import msgspec

from schemas import RecordError, Reject, RequestError, ShardError
from shards.place import Place, at

FORMAT = 1
MANIFEST = "manifest.json"
UNITS = "_units"
INDEXED = "_index/"  # where the indexes of tars made elsewhere lie: img2dataset's own NAME.parquet stands beside its NAME.tar
MAX_DETAIL = 500  # characters of a reject's detail that are kept
READS = 16  # commits read at a time
_COMMIT = re.compile(rf"{UNITS}/\d{{6,}}\.json")
_NUMBERED = re.compile(r"\d+-\d+")
_HASH = re.compile(rb'("manifest_sha256": ")([0-9a-f]{64})(")')


Name = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z_][0-9A-Za-z_.-]*\.tar$")]  # of a file beside the manifest, and of no other
Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class ShardInfo(msgspec.Struct, frozen=True):
    """A finished shard: file name, what it holds, its size, and the hashes of tar and index."""

    name: Name
    records: Number
    images: Number
    bytes: Number
    sha256: str
    index_sha256: str


class RejectRow(msgspec.Struct, frozen=True, array_like=True):
    """An input that did not become a record: file and row number, its would-be key, why, and the details."""

    file: str
    row: int
    key: str
    reason: str
    detail: str


def reject(file: str, row: int, key: str, error: Reject | RecordError) -> RejectRow:
    """The ledger's row of an input that was refused; its detail is cut, and made text that UTF-8 can hold."""
    return RejectRow(file, row, key, error.reason, error.detail[:MAX_DETAIL].encode("utf-8", "backslashreplace").decode())


class RejectRun(RejectRow, frozen=True, array_like=True):
    """Neighbours that were refused alike, as a commit holds them: the first of them, and how many. A split leaves long runs."""

    times: Annotated[int, msgspec.Meta(ge=1, le=2**53)] = 1

    def keys(self) -> list[str]:
        """Of all of them."""
        if self.times == 1:
            return [self.key]
        unit, _, index = self.key.rpartition("-")
        return [f"{unit}-{number:08d}" for number in range(int(index), int(index) + self.times)]

    def rows(self) -> Iterator[RejectRow]:
        """One by one."""
        return (RejectRow(self.file, self.row + at, key, self.reason, self.detail) for at, key in enumerate(self.keys()))


def runs(rows: Iterable[RejectRow]) -> list[RejectRun]:
    """The rows, neighbours that were refused alike as one."""
    found: list[RejectRun] = []
    for row in rows:
        last = found[-1] if found else None
        if last is not None and _follows(last, row):
            found[-1] = msgspec.structs.replace(last, times=last.times + 1)
        else:
            found.append(RejectRun(row.file, row.row, row.key, row.reason, row.detail))
    return found


def _follows(last: RejectRun, row: RejectRow) -> bool:
    if (row.file, row.row, row.reason, row.detail) != (last.file, last.row + last.times, last.reason, last.detail):
        return False
    unit, _, index = last.key.rpartition("-")
    return index.isdecimal() and row.key == f"{unit}-{int(index) + last.times:08d}"


class Unit(msgspec.Struct):
    """The commit of one unit."""

    unit: Number
    run: str  # fingerprint of the run it belongs to
    read: Number
    written: Number
    images: Number
    runs: list[RejectRun] = msgspec.field(name="rejects")
    dropped: dict[str, dict[str, int]]  # family -> reason -> number
    shards: list[ShardInfo]
    suffixes: list[str]

    @property
    def rejects(self) -> list[RejectRow]:
        """The inputs that became no record, one by one."""
        return [row for run in self.runs for row in run.rows()]

    def refused(self) -> int:
        """How many they are."""
        return sum(run.times for run in self.runs)


class Rejects(msgspec.Struct, frozen=True):
    """The reject ledger's size and hash."""

    rows: Number
    sha256: str


class Manifest(msgspec.Struct):
    """manifest.json, as far as programs read it. `dropped` families stand beside these under their own names."""

    format: int
    source: str
    options: dict[str, Any]
    inputs: list[dict[str, Any]]
    versions: dict[str, str]
    shards: list[ShardInfo]
    totals: dict[str, Number]
    rejected: dict[str, int]
    images_dropped: dict[str, int]
    regions_dropped: dict[str, int]
    rejects: Rejects
    fingerprint: str
    manifest_sha256: str
    suffixes: list[str] = []
    layout: str | None = None  # of tars made elsewhere and indexed in place: a name in shards/layouts; ours have none


# Made here and not where they are used: msgspec 0.22 ends the process where two threads are the first to decode a struct.
_unit, _manifest = msgspec.json.Decoder(Unit), msgspec.json.Decoder(Manifest)
_encoder = json.JSONEncoder(indent=1, ensure_ascii=False, default=msgspec.structs.asdict)


def index_name(shard: str, layout: str | None) -> str:
    """Where a shard's index lies, relative to the place."""
    return (INDEXED if layout else "") + shard.removesuffix(".tar") + ".parquet"


def ledger_name(layout: str | None) -> str:
    """Where the reject ledger lies, relative to the place."""
    return (INDEXED if layout else "") + "rejects.parquet"


def fingerprint(shards: Iterable[ShardInfo]) -> str:
    """The data's fingerprint: sha256 of the ordered (name, records, bytes, sha256, index_sha256), as compact JSON."""
    digest = hashlib.sha256(b"[")
    for number, shard in enumerate(shards):
        row = [shard.name, shard.records, shard.bytes, shard.sha256, shard.index_sha256]
        digest.update(b"," * (number > 0) + json.dumps(row, separators=(",", ":")).encode())
    digest.update(b"]")
    return digest.hexdigest()


def commit(where: str | Path | Place, unit: Unit) -> None:
    """Write the unit's commit."""
    at(where).write(_commit_name(unit.unit), _sealed(msgspec.json.encode(unit)))


_SEAL = b',"commit_sha256":"'


def _sealed(data: bytes) -> bytes:
    """A JSON object with the hash of what it is without it: other things than sums can be altered."""
    return data[:-1] + _SEAL + hashlib.sha256(data).hexdigest().encode() + b'"}'


def _opened(name: str, data: bytes) -> Unit:
    """The commit in these bytes. Raises ShardError where they are not those that were written."""
    body = data.rpartition(_SEAL)[0] + b"}"
    if _sealed(body) != data:
        found = data[-70:].decode("ascii", "backslashreplace")
        raise ShardError(name, None, "commit altered", f"a commit that ends in its sha256, {hashlib.sha256(body).hexdigest()}", found)
    return decode_unit(name, data)


def unit(where: str | Path | Place, number: int) -> Unit:
    """The commit of this unit. Raises ShardError where it is damaged, FileNotFoundError where there is none."""
    name = _commit_name(number)
    return _opened(name, at(where).read(name))


def committed(where: str | Path | Place, numbers: Iterable[int] | None = None) -> dict[int, Unit]:
    """The units that are committed, by number; of these numbers, or all. Raises ShardError where a commit is damaged."""
    return {unit.unit: unit for unit in each(where, numbers)}


def each(where: str | Path | Place, numbers: Iterable[int] | None = None) -> Iterator[Unit]:
    """The same, in order, a few of them held at a time."""
    place = at(where)
    wanted = None if numbers is None else {_commit_name(number) for number in numbers}
    names = (name for name, _ in place.names(f"{UNITS}/") if _COMMIT.fullmatch(name) and (wanted is None or name in wanted))
    with ThreadPoolExecutor(READS) as pool:
        while some := list(itertools.islice(names, READS)):
            yield from pool.map(lambda name: _opened(name, place.read(name)), some)


def _commit_name(unit: int) -> str:
    return f"{UNITS}/{unit:06d}.json"


def decode_unit(name: str, data: bytes) -> Unit:
    """The commit in these bytes. Raises ShardError where it is damaged."""
    try:
        unit = _unit.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ShardError(name, None, "commit unreadable", "a unit's commit", str(error)) from error
    counted = all(run.times == 1 or _NUMBERED.fullmatch(run.key) for run in unit.runs)
    if name != _commit_name(unit.unit) or unit.read != unit.written + unit.refused() or not counted:
        found = f"unit {unit.unit}: {unit.read}, {unit.written} and {unit.refused()}"
        raise ShardError(name, None, "commit altered", "the unit of its name, read = written + rejected", found)
    return unit


def add_up(families: Iterable[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """Sum of counts by family and reason, sorted by name."""
    total: dict[str, dict[str, int]] = {}
    for counts in families:
        for family, reasons in counts.items():
            mine = total.setdefault(family, {})
            for reason, number in reasons.items():
                mine[reason] = mine.get(reason, 0) + number
    return {family: dict(sorted(total[family].items())) for family in sorted(total)}


def encode(content: dict[str, Any]) -> bytes:
    """The manifest's bytes, its own hash included. Made piece by piece: of a shard, nothing but its text is kept."""
    data = bytearray()
    for piece in _encoder.iterencode({**content, "manifest_sha256": "0" * 64}):
        data += piece.encode()
    data += b"\n"
    start = data.rindex(b"0" * 64)
    data[start : start + 64] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def own_hash(data: bytes) -> tuple[str, str]:
    """The hash that a manifest states, and the hash that its bytes have."""
    found = list(_HASH.finditer(data))
    if not found:
        return "none", hashlib.sha256(data).hexdigest()
    start, stop = found[-1].span(2)
    zeroed = data[:start] + b"0" * 64 + data[stop:]
    return data[start:stop].decode(), hashlib.sha256(zeroed).hexdigest()


def read(where: str | Path | Place) -> Manifest:
    """The manifest of a finished data set. Raises RequestError where there is none, ShardError where it is damaged."""
    data = read_bytes(where)
    stated, found = own_hash(data)
    if stated != found:
        raise ShardError(MANIFEST, None, "manifest altered", f"sha256 {stated}", found)
    return decode(data)


def read_bytes(where: str | Path | Place) -> bytes:
    """The manifest's bytes. Raises RequestError where there is none."""
    place = at(where)
    try:
        return place.read(MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(f"{place.url}: expected a finished data set, found no {MANIFEST}{_unfinished(place)}") from error
    except OSError as error:
        raise RequestError(f"{place.url}: expected a readable data set, found {error.strerror}") from error


def decode(data: bytes) -> Manifest:
    """The manifest in these bytes. Raises ShardError where they are none, or of a format that this version does not know."""
    try:
        manifest = _manifest.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ShardError(MANIFEST, None, "manifest unreadable", "a manifest", str(error)) from error
    if manifest.format != FORMAT:
        raise ShardError(MANIFEST, None, "manifest format", FORMAT, manifest.format)
    lacking = {"read", "written", "rejected", "images"} - set(manifest.totals)
    if lacking or len({shard.name for shard in manifest.shards}) < len(manifest.shards):
        found = f"no total {', '.join(sorted(lacking))}" if lacking else "a shard twice"
        raise ShardError(MANIFEST, None, "manifest unreadable", "four totals, and each shard once", found)
    return manifest


_NO_FAMILY = frozenset(("options", "versions", "totals", "rejects"))


def families(where: str | Path | Place) -> dict[str, dict[str, int]]:
    """What was rejected, dropped, mended or noted: every family of counts in a manifest, by reason. Raises as `read_bytes`."""
    content = msgspec.json.decode(read_bytes(where), type=dict[str, Any])
    return {name: counts for name, counts in content.items() if isinstance(counts, dict) and name not in _NO_FAMILY}


def _unfinished(place: Place) -> str:
    try:
        place.size("run.json")
    except OSError:
        return ""
    return " (its conversion is not finished: run it again to go on)"
