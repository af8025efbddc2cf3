"""Index: tars made elsewhere get what ours have, in place: an index each, a reject ledger, a manifest. The tars are not touched.

    place/
      00000.tar  00000.parquet  00000_stats.json      what img2dataset wrote
      _index/00000.parquet  _index/rejects.parquet    ours
      manifest.json                                   ours, written last; its `layout` says how the tars hold their records

A tar is indexed whole or not at all: one that is cut or damaged is named, with the offset, and left out; the others are indexed. A sample
that can not become a record of format 1 is a reject, by reason. Keys are TAR-SAMPLE, by position in the sorted list of tars and in the tar;
the tar's own key is meta.id. The same tars give the same bytes, whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from isal import isal_zlib

from schemas import Record, RecordError, Reject, RequestError, ShardError, validate
from shards import durable, foreign_tar, layouts, manifest, rejects, run
from shards import executor as executors
from shards.foreign_tar import Tar, TarDamage, TarSample
from shards.index import IndexBuilder, entry
from shards.manifest import Manifest, RejectRow, ShardInfo
from shards.place import Place, at
from shards.sink import Buffer
from shards.write import versions

AUTO = "auto"
LOOKED_AT = 100  # samples that may have to be looked at before one shows the layout


class Problem(NamedTuple):
    """What is wrong with a tar: a damaged one is not indexed, one whose counts differ is."""

    shard: str
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.what}: expected {self.expected}, found {self.found}"


class Indexed(NamedTuple):
    """What indexing gave."""

    manifest: Manifest
    problems: list[Problem]


def index(
    place: str | Path,
    *,
    layout: str = AUTO,
    workers: int | None = 1,
    executor: str = "local",
    progress: Callable[[int], object] | None = None,
) -> Indexed:
    """Index the tars of a place; `progress` is told the bytes of every tar that is done. workers, executor: see shards.executor.

    Raises RequestError: no tars, an unknown layout, a place that holds a converted data set, no such executor, an indexing under way.
    """
    found = at(place)
    with run.alone(found.folder) if found.folder is not None and found.folder.is_dir() else contextlib.nullcontext():
        return _indexed(found, layout, workers, executor, progress)


def _indexed(found: Place, layout: str, workers: int | None, executor: str, progress: Callable[[int], object] | None) -> Indexed:
    _free(found)
    tars = [(name, size) for name, size in found.names() if name.endswith(".tar") and "/" not in name]
    if not tars:
        raise RequestError(f"{found.url}: expected tars to index, found none")
    names = [name for name, _ in tars]
    layout = _detected(found, names) if layout == AUTO else _known(layout)
    if found.folder is not None:
        _tidy(found.folder)
    done: list[_Done] = []
    with executors.executor(executor, workers, sum(size for _, size in tars)) as on:
        for (_, size), one in zip(tars, on.map(partial(_one, found, layout), enumerate(names)), strict=True):
            done.append(one)
            if progress:
                progress(size)
    return _finish(found, layout, done)


def _tidy(folder: Path) -> None:
    """Remove what a killed indexing was writing aside."""
    durable.remove_leftovers(folder / manifest.INDEXED)
    for path in folder.glob(f".{manifest.MANIFEST}.*.part"):
        path.unlink(missing_ok=True)


def _free(place: Place) -> None:
    """Raise RequestError where manifest.json is another than an earlier indexing's."""
    try:
        layout = manifest.decode(place.read(manifest.MANIFEST)).layout
    except FileNotFoundError:
        return
    except ShardError as error:
        raise RequestError(
            f"{place.url}: expected no {manifest.MANIFEST}, or that of an earlier indexing, found another ({error})"
        ) from error
    if layout is None:
        raise RequestError(f"{place.url}: expected tars made elsewhere, found a finished data set, which has its indexes")


def _known(layout: str) -> str:
    if layout not in layouts.names():
        raise RequestError(f"--layout: expected {AUTO} or one of {', '.join(layouts.names())}, found {layout!r}")
    return layout


def _detected(place: Place, names: Sequence[str]) -> str:
    """The layout that the first telling sample shows."""
    seen, damage = "no sample in any tar", ""
    for name in names:
        try:
            with _opened(place, name) as tar:
                for sample in itertools.islice(foreign_tar.samples(tar, Counter()), LOOKED_AT):
                    for layout in _knowing(tar, sample):
                        return layout
                    seen = f"a sample of {', '.join(suffix for suffix, _ in sample.members)[:200]}"
        except TarDamage as error:
            damage = damage or f" ({name}: {error})"
    raise RequestError(f"{place.url}: expected a known layout ({', '.join(layouts.names())}; or give --layout), found {seen}{damage}")


def _knowing(tar: Tar, sample: TarSample) -> Iterator[str]:
    """Layouts that know such samples."""
    with contextlib.suppress(Reject):
        members = _members(tar, sample)
        yield from (layout for layout in layouts.names() if layouts.find(layout).known(members))


@dataclass
class _Done:
    """A tar's part of the manifest."""

    info: ShardInfo | None = None  # None: not indexed
    read: int = 0
    rejects: list[RejectRow] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)


def _one(place: Place, layout: str, numbered: tuple[int, str]) -> _Done:
    """Index one tar, of this number and name."""
    (number, name), done = numbered, _Done()
    try:
        msgspec.convert(name, manifest.Name)
        with _opened(place, name) as tar:
            made = _Rows(name, number, layout, tar, done)
            for sample in foreign_tar.samples(tar, done.ignored):
                made.add(sample)
            done.problems += _counts(place, name, done.read)
            done.info = made.write(place)
    except TarDamage as damage:
        found = f"{damage.found}; {done.read} whole samples stand before it"
        return _Done(problems=[Problem(name, "tar damaged", damage.expected, found), *_counts(place, name, done.read)])
    except msgspec.ValidationError:
        return _Done(problems=[Problem(name, "tar name", "letters, digits, _ - and . alone", repr(name))])
    return done


class _Rows:
    """One tar's index as it grows."""

    def __init__(self, name: str, number: int, layout: str, tar: Tar, done: _Done) -> None:
        self.name, self.number, self.layout, self.tar, self.done = name, number, layout, tar, done
        self.builder = IndexBuilder()
        self.crc32: list[int] = []
        self.xxh3: list[bytes] = []
        self.skipped: list[tuple[int, str]] = []

    def add(self, sample: TarSample) -> None:
        """The sample's row, or its reject."""
        key = f"{self.number:06d}-{self.done.read:08d}"
        try:
            made = layouts.read(self.layout, key, _text(sample.key), _members(self.tar, sample))
            validate(made.record)
            self._row(sample, made.record, made.files)
            self.done.dropped.update(made.dropped)
        except (Reject, RecordError) as error:
            self.done.rejects.append(manifest.reject(self.name, self.done.read, key, error))
            self.skipped.append((sample.start, _text(sample.key)))
        self.done.read += 1

    def _row(self, sample: TarSample, record: Record, files: Sequence[Buffer]) -> None:
        places = [(_text(member.name), member.offset, member.size) for _, member in sample.members]
        self.builder.entries.append(entry(record, sample.start, sample.end - sample.start, places, _text(sample.key)))
        self.crc32.append(isal_zlib.crc32(memoryview(self.tar)[sample.start : sample.end]))
        self.xxh3 += [xxhash.xxh3_128_digest(data) for data in files]

    def write(self, place: Place) -> ShardInfo | None:
        """The index under its name. None where there is nothing to index, which is a problem."""
        records, images = len(self.builder.entries), len(self.xxh3)
        if not records:
            self.done.problems.append(
                Problem(self.name, "records", f"at least one of layout {self.layout}", f"none in {self.done.read} samples")
            )
            return None
        sha256 = hashlib.sha256(self.tar).hexdigest()
        data = self.builder.encode(self.crc32, self.xxh3, len(self.tar), sha256, self.skipped)
        place.write(manifest.index_name(self.name, self.layout), data)
        return ShardInfo(self.name, records, images, len(self.tar), sha256, hashlib.sha256(data).hexdigest())


def _members(tar: Tar, sample: TarSample) -> layouts.Members:
    """Payloads by suffix. Raises Reject where a suffix stands twice: webdataset gives the whole tar up there."""
    found = {suffix: memoryview(tar)[member.offset : member.offset + member.size] for suffix, member in sample.members}
    if len(found) < len(sample.members):
        raise Reject("duplicate_member", f"{_text(sample.key)[:100]}: expected each suffix once, found one again")
    return found


def _text(name: str) -> str:
    """A name as text that UTF-8 can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def _opened(place: Place, name: str) -> Iterator[Tar]:
    """The tar's bytes, mapped; those of an object store by way of a temporary file."""
    if place.folder is not None:
        yield _mapped(place.folder / name)
        return
    with tempfile.NamedTemporaryFile(prefix="shardweave-") as file:
        for piece in place.stream(name):
            file.write(piece)
        file.flush()
        yield _mapped(Path(file.name))


def _mapped(path: Path) -> Tar:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b""
    except OSError as error:
        raise TarDamage(0, "a readable tar", error.strerror or str(error)) from error


class _Stats(msgspec.Struct):
    """What NNNNN_stats.json says."""

    successes: int


def _counts(place: Place, name: str, samples: int) -> Iterator[Problem]:
    """Where img2dataset's own files beside the tar state another number of samples than it holds."""
    stem = name.removesuffix(".tar")
    for other, count in ((f"{stem}_stats.json", _stated), (f"{stem}.parquet", _succeeded)):
        try:
            stated = count(place.read(other))
        except FileNotFoundError:
            continue
        except (msgspec.DecodeError, pa.ArrowException, OSError, ValueError, KeyError, RecursionError) as error:
            yield Problem(name, f"{other} unreadable", "img2dataset's", " ".join(str(error).split())[:200])
            continue
        if stated is not None and stated != samples:
            yield Problem(name, "samples", f"{stated}, as {other} says", str(samples))


def _stated(data: bytes) -> int:
    return msgspec.json.decode(data, type=_Stats).successes


def _succeeded(data: bytes) -> int | None:
    """None where the table is not img2dataset's."""
    with pq.ParquetFile(io.BytesIO(data), pre_buffer=False) as file:
        if "status" not in file.schema_arrow.names:
            return None
        return file.read(columns=["status"], use_threads=False)["status"].to_pylist().count("success")


def _finish(place: Place, layout: str, done: Sequence[_Done]) -> Indexed:
    """The ledger, then the manifest."""
    rows = [row for one in done for row in one.rejects]
    ledger = rejects.encode(rows)
    place.write(manifest.ledger_name(layout), ledger)
    shards = [one.info for one in done if one.info]
    problems = [problem for one in done for problem in one.problems]
    written = sum(shard.records for shard in shards)
    content: dict[str, Any] = {
        "format": manifest.FORMAT,
        "layout": layout,
        "source": layout,
        "options": {"layout": layout},
        "inputs": [],
        "versions": versions(),
        "shards": [msgspec.to_builtins(shard) for shard in shards],
        "totals": {"read": written + len(rows), "written": written, "rejected": len(rows), "images": sum(shard.images for shard in shards)},
        "rejected": dict(sorted(Counter(row.reason for row in rows).items())),
        "images_dropped": _sum(one.dropped for one in done),
        "regions_dropped": {},
        "members_ignored": _sum(one.ignored for one in done),
        "problems": [problem._asdict() for problem in problems],
        "rejects": {"rows": len(rows), "sha256": hashlib.sha256(ledger).hexdigest()},
        "fingerprint": manifest.fingerprint(shards),
    }
    data = manifest.encode(content)
    place.write(manifest.MANIFEST, data)
    return Indexed(manifest.decode(data), problems)


def _sum(counts: Iterable[Counter[str]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))
