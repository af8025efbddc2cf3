"""Sidecars: what other readers want beside the tars, made from our indexes without reading a tar again.

energon  `.nv-meta/` and `NAME.tar.idx`, so that `energon prepare` is not needed
         https://github.com/NVIDIA/Megatron-Energon/blob/develop/docs/source/basic/data_prep.md
wids     `wids.json`; https://github.com/webdataset/webdataset/blob/main/wids/wids_specs.py. wids never looks at the md5sum that its own
         index has of each shard, so it is left out: for it alone the tars would have to be read (`md5` does)
dali     `NAME.idx` of nvidia.dali.fn.readers.webdataset; https://github.com/NVIDIA/DALI/blob/main/tools/wds2idx.py

Samples of tars made elsewhere that became no record are there for other readers all the same: energon gets them as excluded.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import struct
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from schemas import RequestError
from shards import foreign_tar, reader
from shards.place import Place
from shards.reader import Shard, Shards

ENERGON = "7.4.1"  # whose format this is
NV_META = ".nv-meta/"
MAX_NAME = 100  # bytes that wids and DALI read of a name
_TABLES = """
CREATE TABLE samples (
    tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL, byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (
    tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, content_byte_offset INTEGER, content_byte_size INTEGER);
"""
_INDEXES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full
    ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


class _Sample(NamedTuple):
    """What other readers see of a record: the tar's own key, and its members without it."""

    key: str
    offset: int
    end: int
    parts: list[tuple[str, int, int]]  # suffix, offset and size of the payload
    excluded: bool


def sidecars(place: str | Path, readers: Sequence[str], *, md5: bool = False) -> list[str]:
    """Write the sidecars of these readers: the names of the files, relative to the place.

    Raises RequestError: an unknown reader, a place that is no finished data set, or one that the reader can not read.
    """
    unknown = [name for name in readers if name not in READERS]
    if unknown or not readers:
        raise RequestError(f"--for: expected some of {', '.join(READERS)}, found {', '.join(unknown) or 'none'}")
    data = reader.open(place)
    return [name for wanted in dict.fromkeys(readers) for name in READERS[wanted](data, md5)]


def _samples(shard: Shard) -> list[_Sample]:
    """In order of offset."""
    index = shard.index
    found: list[_Sample] = []
    for row, (offset, length) in enumerate(zip(index.offsets, index.lengths, strict=True)):
        parted = [(_parted(name), at, size) for name, at, size in shard.members(row)]
        parts = [(suffix, at, size) for (_, suffix), at, size in parted]
        found.append(_Sample(parted[0][0][0], offset, offset + length, parts, excluded=False))
    for offset, key in json.loads((index.table.schema.metadata or {}).get(b"skipped", b"[]")):
        found.append(_Sample(key, offset, offset, [], excluded=True))
    return sorted(found, key=lambda sample: sample.offset)


def _parted(name: str) -> tuple[str, str]:
    found = foreign_tar.split(name)
    if found is None:
        raise RequestError(f"{name}: expected a member's name with a key and a suffix, found none")
    return found[0], name[len(found[0]) + 1 :]


def _energon(data: Shards, _: bool) -> Iterator[str]:
    """`.tar.idx` of every shard, and the folder that `energon prepare` would make."""
    place, counts, excluded = data.place, {}, []
    with tempfile.TemporaryDirectory(prefix="shardweave-") as folder:
        path = Path(folder) / "index.sqlite"
        database = sqlite3.connect(path)
        try:
            database.executescript(_TABLES)
            for number, shard in enumerate(data.shards):
                samples = _samples(shard)
                counts[shard.name] = len(samples)
                excluded += [f"{shard.name}/{sample.key}" for sample in samples if sample.excluded]
                starts = [sample.offset for sample in samples]
                place.write(f"{shard.name}.idx", struct.pack(f"<{len(starts) + 1}Q", *starts, samples[-1].end))
                yield f"{shard.name}.idx"
                _insert(database, number, samples)
            database.executescript(_INDEXES)
            database.commit()
        finally:
            database.close()
        place.upload(f"{NV_META}index.sqlite", path)
    for name, text in (
        ("index.uuid", str(uuid.uuid5(uuid.NAMESPACE_OID, data.manifest.fingerprint))),
        ("dataset.yaml", "__module__: megatron.energon\n__class__: CrudeWebdataset\n"),
        ("split.yaml", _split([shard.name for shard in data.shards], excluded)),
        (".info.json", json.dumps({"energon_version": ENERGON, "shard_counts": counts}, indent=2)),
    ):
        place.write(f"{NV_META}{name}", text.encode())
    yield from (f"{NV_META}{name}" for name in ("index.sqlite", "index.uuid", "dataset.yaml", "split.yaml", ".info.json"))


def _insert(database: sqlite3.Connection, number: int, samples: Sequence[_Sample]) -> None:
    ends = [*(sample.offset for sample in samples[1:]), samples[-1].end]
    rows = [(number, one.key, at, one.offset, end - one.offset) for at, (one, end) in enumerate(zip(samples, ends, strict=True))]
    parts = ((number, at, *part) for at, sample in enumerate(samples) for part in sample.parts)
    try:
        database.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", rows)
    except sqlite3.IntegrityError as error:
        raise RequestError(f"energon: expected keys that occur once in the data set, found one again: {_again(database, rows)}") from error
    database.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", parts)


def _again(database: sqlite3.Connection, rows: Sequence[tuple[int, str, int, int, int]]) -> str:
    """A key that stands there twice: rows before it are inserted, it itself is not."""
    for number, key, at, *_ in rows:
        place = database.execute("SELECT tar_file_id, sample_index FROM samples WHERE sample_key = ?", (key,)).fetchone()
        if place != (number, at):
            return key[:100]
    return "none"


def _split(shards: Sequence[str], excluded: Sequence[str]) -> str:
    """All of it is for training. JSON strings are YAML's; braces would be expanded."""
    lines = ["exclude: []"] if not excluded else ["exclude:", *(f"- {json.dumps(_literal(name))}" for name in excluded)]
    return "\n".join([*lines, "split_parts:", "  train:", *(f"  - {json.dumps(name)}" for name in shards), "  val: []", "  test: []", ""])


def _literal(name: str) -> str:
    return re.sub(r"([{},\\])", r"\\\1", name)


def _wids(data: Shards, md5: bool) -> Iterator[str]:
    """`wids.json`: shards by name, so that the place may move."""
    shardlist = []
    for shard in data.shards:
        samples = _samples(shard)
        _short(shard, samples, "wids")
        row = {"url": shard.name, "nsamples": len(samples), "filesize": shard.info.bytes}
        shardlist.append(row | ({"md5sum": _md5(data.place, shard.name)} if md5 else {}))
    whole = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shardlist, "name": data.manifest.source}
    data.place.write("wids.json", (json.dumps(whole, indent=2) + "\n").encode())
    yield "wids.json"


def _short(shard: Shard, samples: Sequence[_Sample], reader: str) -> None:
    for sample in samples:
        for suffix, _, _ in sample.parts:
            name = f"{sample.key}.{suffix}"
            if len(name.encode()) > MAX_NAME:
                raise RequestError(
                    f"{reader}: {shard.name}: expected names of at most {MAX_NAME} bytes, which is what it reads, found {name}"
                )


def _md5(place: Place, name: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for piece in place.stream(name):
        digest.update(piece)
    return digest.hexdigest()


def _dali(data: Shards, _: bool) -> Iterator[str]:
    """`NAME.idx`: a line a sample, `suffix offset size name` of each member."""
    for shard in data.shards:
        samples = [sample for sample in _samples(shard) if not sample.excluded]
        lines = [f"v1.2 {len(samples)}"]
        for sample in samples:
            named = [(suffix, at, size, f"{sample.key}.{suffix}") for suffix, at, size in sample.parts]
            if any(set(name) & set(" \t\n") for *_, name in named):
                raise RequestError(f"dali: {shard.name}: expected names without spaces, found {sample.key!r}")
            lines.append(" ".join(f"{suffix} {at} {size} {name}" for suffix, at, size, name in named))
        name = f"{shard.name.removesuffix('.tar')}.idx"
        data.place.write(name, ("\n".join(lines) + "\n").encode())
        yield name


READERS: dict[str, Callable[[Shards, bool], Iterator[str]]] = {"energon": _energon, "wids": _wids, "dali": _dali}
