"""Check: is a data set whole, and are its bytes the ones that were written?

Every file against the manifest: presence, size, sha256, the sums that must add up. Deep: every record's CRC-32, member headers, every
payload's hash, the schema, and every picture decoded and its size compared. What is found is a list of problems, never an exception.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from schemas import Record, RecordError, Reject, ShardError, validate
from schemas.picture import measure
from shards import executor as executors
from shards import manifest, rejects, ustar
from shards.manifest import Manifest, ShardInfo
from shards.place import Place, at
from shards.reader import Shard
from shards.sample import Sample


class Problem(NamedTuple):
    """Something that is not as the manifest or format 1 says."""

    shard: str  # file name
    key: str | None
    what: str
    expected: str
    found: str


class Report(NamedTuple):
    """What a check saw. records and images are those that the shards' indexes really hold."""

    ok: bool
    records: int
    images: int
    problems: list[Problem]


def check(
    place: str | Path | Place,
    *,
    deep: bool = False,
    workers: int | None = 1,
    executor: str = "local",
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Verify a finished data set; `progress` is told the bytes of every shard that is done. workers, executor: see shards.executor.

    Raises RequestError where there is no finished data set to verify, or no such executor.
    """
    place = at(place)
    data = manifest.read_bytes(place)
    problems = list(_manifest_hash(data))
    try:
        found = manifest.decode(data)
    except ShardError as error:
        return Report(False, 0, 0, [*problems, _problem(error)])
    problems += [*_sums(found), *_strangers(place, found), *_ledger(place, found)]
    records = images = 0
    before = ""
    with executors.executor(executor, workers, sum(info.bytes for info in found.shards)) as on:
        for info, seen in zip(found.shards, on.map(partial(_shard, place, found.layout, deep), found.shards), strict=True):
            problems += seen.problems
            records, images = records + seen.records, images + seen.images
            if seen.first <= before and seen.records:
                problems.append(Problem(info.name, seen.first, "keys", f"keys above {before}", seen.first))
            before = max(before, seen.last)
            if progress:
                progress(info.bytes)
    return Report(not problems, records, images, problems)


def _problem(error: ShardError) -> Problem:
    return Problem(error.shard, error.key, error.what, str(error.expected), str(error.found))


def _differs(shard: str, key: str | None, what: str, expected: Any, found: Any) -> Iterator[Problem]:
    if expected != found:
        yield Problem(shard, key, what, str(expected), str(found))


def _manifest_hash(data: bytes) -> Iterator[Problem]:
    stated, found = manifest.own_hash(data)
    yield from _differs(manifest.MANIFEST, None, "manifest altered", f"sha256 {stated}", f"sha256 {found}")


def _sums(found: Manifest) -> Iterator[Problem]:
    """read = written + rejected, and every total is the sum of its parts."""
    totals, where = found.totals, manifest.MANIFEST
    written, rejected = totals.get("written", -1), totals.get("rejected", -1)
    yield from _differs(where, None, "read = written + rejected", totals.get("read"), written + rejected)
    yield from _differs(where, None, "records of all shards", written, sum(shard.records for shard in found.shards))
    yield from _differs(where, None, "images of all shards", totals.get("images"), sum(shard.images for shard in found.shards))
    yield from _differs(where, None, "rejected by reason", rejected, sum(found.rejected.values()))
    yield from _differs(where, None, "fingerprint", found.fingerprint, manifest.fingerprint(found.shards))


def _strangers(place: Place, found: Manifest) -> Iterator[Problem]:
    """Files that a glob over the place would take for part of the data set."""
    known = {name for info in found.shards for name in (info.name, manifest.index_name(info.name, found.layout))}
    known.add(rejects.REJECTS)
    # Beside tars made elsewhere lies what their maker put there; a tar that is not indexed is no part of the data set.
    ours = (".tar", ".parquet") if found.layout is None else (".tar",)
    for name, _ in place.names():
        if name not in known and "/" not in name and name.endswith(ours):
            yield Problem(name, None, "stranger", "only files that the manifest names", name)


def _ledger(place: Place, found: Manifest) -> Iterator[Problem]:
    try:
        data = place.read(manifest.ledger_name(found.layout))
        digest = hashlib.sha256(data).hexdigest()
        yield from _differs(rejects.REJECTS, None, "rejects altered", found.rejects.sha256, digest)
        if found.rejects.sha256 == digest:  # a parquet reader is not made for damaged files
            yield from _differs(rejects.REJECTS, None, "rejects rows", found.rejects.rows, rejects.decode(data).num_rows)
    except OSError as error:
        yield Problem(rejects.REJECTS, None, "rejects missing", f"{found.rejects.rows} rows", str(error.strerror))
    except ShardError as error:
        yield _problem(error)


class _Seen(NamedTuple):
    """Problems of one shard, and what its index holds."""

    problems: list[Problem]
    records: int = 0
    images: int = 0
    first: str = ""  # key
    last: str = ""


def _shard(place: Place, layout: str | None, deep: bool, info: ShardInfo) -> _Seen:
    with _near(place, info, layout) if deep else contextlib.nullcontext(place) as place:
        return _looked_at(place, info, layout, deep)


@contextlib.contextmanager
def _near(place: Place, info: ShardInfo, layout: str | None) -> Iterator[Place]:
    """A shard and its index on local disk: a copy where they lie on object storage."""
    if place.folder is not None:
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="shardweave-") as folder:
        for name in (info.name, manifest.index_name(info.name, layout)):
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as file:
                try:
                    for piece in place.stream(name):
                        file.write(piece)
                except FileNotFoundError:
                    path.unlink()  # found missing there, too
        yield at(folder)


def _looked_at(place: Place, info: ShardInfo, layout: str | None, deep: bool) -> _Seen:
    problems = list(_file(place, info.name, info.sha256, info.bytes))
    shard = Shard(place, info, layout=layout)
    try:
        index = shard.index
        images = len(index.table["images"].combine_chunks().flatten()) if len(shard) else 0
        problems += [
            *(_coverage(shard) if layout is None else _order(shard)),
            *_differs(info.name, None, "images in the index", info.images, images),
        ]
        if deep:
            problems += [problem for row in range(len(shard)) for problem in _record(shard, row, ours=layout is None)]
    except ShardError as error:
        return _Seen([*problems, _problem(error)])
    return _Seen(problems, len(index.keys), images, *(index.keys[row] for row in (0, -1) if index.keys))


def _file(place: Place, name: str, sha256: str, size: int) -> Iterator[Problem]:
    digest, length = hashlib.sha256(), 0
    try:
        for piece in place.stream(name):
            digest.update(piece)
            length += len(piece)
    except OSError as error:
        yield Problem(name, None, "missing" if isinstance(error, FileNotFoundError) else "unreadable", name, str(error.strerror))
        return
    yield from _differs(name, None, "size", size, length)
    yield from _differs(name, None, "sha256", sha256, digest.hexdigest())


def _coverage(shard: Shard) -> Iterator[Problem]:
    """Records lie one behind the other and fill the tar up to its two empty blocks; keys rise."""
    index, at = shard.index, 0
    yield from _differs(shard.name, None, "tar size in the index", shard.info.bytes, index.tar_bytes)
    yield from _differs(shard.name, None, "tar sha256 in the index", shard.info.sha256, index.tar_sha256)
    for key, offset, length in zip(index.keys, index.offsets, index.lengths, strict=True):
        yield from _differs(shard.name, key, "record begins", at, offset)
        at = offset + length
    yield from _differs(shard.name, None, "records end", shard.info.bytes - len(ustar.END), at)
    yield from _rising(shard)
    foreign = [key for key in index.keys if key[:7] != shard.name[:7]]
    yield from _differs(shard.name, None, "keys of another unit", [], foreign[:1])


def _order(shard: Shard) -> Iterator[Problem]:
    """Of a tar made elsewhere: records lie one behind the other, with anything between them; keys rise."""
    index, at = shard.index, 0
    for key, offset, length in zip(index.keys, index.offsets, index.lengths, strict=True):
        if offset < at:
            yield Problem(shard.name, key, "record begins", f"at {at} or behind it", str(offset))
        at = offset + length
    yield from _rising(shard)


def _rising(shard: Shard) -> Iterator[Problem]:
    if any(a >= b for a, b in pairwise(shard.index.keys)):
        yield Problem(shard.name, None, "keys", "rising keys", "keys out of order")


def _record(shard: Shard, row: int, *, ours: bool) -> Iterator[Problem]:
    key = shard.index.keys[row]
    try:
        sample = shard[row]
        validate(sample.record)
    except ShardError as error:
        yield _problem(error)
        return
    except RecordError as error:
        yield Problem(shard.name, key, error.reason, "a valid record", error.detail)
        return
    yield from _differs(shard.name, key, "key", key, sample.record.key)
    if ours:
        yield from _headers(shard, row, key)
        yield from _names(shard, row, sample)
    yield from _pictures(shard, row, sample)


def _headers(shard: Shard, row: int, key: str) -> Iterator[Problem]:
    """Members lie one behind the other, and each one's header is the one that its name and size make."""
    at = shard.index.offsets[row]
    for name, offset, size in shard.members(row):
        yield from _differs(shard.name, key, f"member {name} begins", at + ustar.BLOCK, offset)
        header = bytes(shard.view[max(0, offset - ustar.BLOCK) : offset])
        if not name.isascii() or header != ustar.header(name, size):
            yield Problem(shard.name, key, "member header", f"a ustar header of {name}, {size} bytes", repr(header[:32]))
        at = offset + size + len(ustar.padding(size))
    yield from _differs(shard.name, key, "record ends", shard.index.offsets[row] + shard.index.lengths[row], at)


def _names(shard: Shard, row: int, sample: Sample) -> Iterator[Problem]:
    record, key = sample.record, sample.key
    names = [*(image.member for image in record.images), *(map.member for map in record.maps), f"{key}.json"]
    yield from _differs(shard.name, key, "members", names, [name for name, _, _ in shard.members(row)])


def _pictures(shard: Shard, row: int, sample: Sample) -> Iterator[Problem]:
    record, key = sample.record, sample.key
    hashes = shard.index.table["images"][row].as_py()
    yield from _differs(shard.name, key, "images in the index", len(record.images), len(hashes))
    for position, known in zip(range(len(record.images)), hashes, strict=False):
        try:
            yield from _picture(shard.name, record, position, sample.image(position), known)
        except (Reject, LookupError) as error:
            yield Problem(shard.name, key, f"image {position}", "a picture that decodes", str(error))
    for position in range(len(record.maps)):
        yield from _map(shard.name, sample, position)


def _picture(shard: str, record: Record, position: int, data: memoryview, known: dict[str, Any]) -> Iterator[Problem]:
    image = record.images[position]
    yield from _differs(shard, record.key, f"image {position} hash", known["xxh3"].hex(), xxhash.xxh3_128_digest(data).hex())
    yield from _differs(shard, record.key, f"image {position} bytes", image.bytes, len(data))
    found = measure(data, "decode")
    yield from _differs(shard, record.key, f"image {position}", (image.format, image.width, image.height), tuple(found))


def _map(shard: str, sample: Sample, position: int) -> Iterator[Problem]:
    image = sample.record.images[sample.record.maps[position].image]
    try:
        found = measure(sample.map(position), "decode")
    except (Reject, LookupError) as error:
        yield Problem(shard, sample.key, f"map {position}", "a map that decodes", str(error))
        return
    yield from _differs(shard, sample.key, f"map {position}", ("png", image.width, image.height), tuple(found))


def first(problems: Iterable[Problem], number: int) -> list[str]:
    """The first problems, one line each."""
    lines = (f"{p.shard}{' ' + p.key if p.key else ''}: {p.what}: expected {p.expected}, found {p.found}" for p in problems)
    return [line for _, line in zip(range(number), lines, strict=False)]
