"""Duplicates: records and pictures whose content an earlier one has, found by a pass over the input before anything is written.

The pass makes every record as the conversion will (source, filters, resizing, validation), so that what is refused never stands in for
what is kept, and writes nothing of it but hashes. A split is not looked at: what is on one side of it has no double on the other.

Every unit leaves one spill: the XXH3-128 of its records and pictures, sorted, each once, and which of its own later ones are the same.
Then a range of hashes at a time is compared across all units: of equal ones the lowest input position wins. What is left for a worker is,
for its unit, which rows and pictures have lost, and to which record.

    _duplicates/UUUUUU            a unit's spill
    _duplicates/lost-LLL-HHH      who has lost among the hashes whose first byte is in [L, H), by unit

    records     a record with the pictures, text, regions and maps of an earlier one is a reject, duplicate_record. Not compared are key,
                meta, and where a picture comes from
    images      the same, and a picture with an earlier one's bytes is dropped, with what hangs on it: images_dropped, duplicate_image; a
                record that has none left is a reject, duplicate_image

The first of equal pictures is never in a record that is refused as a duplicate: that one's picture would have come first. So nothing is
lost altogether. Memory: a unit's hashes in a worker, and about three times TOGETHER bytes where they are compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
import xxhash

from pipelines.curation import Curation
from pipelines.drop import without
from pipelines.source import Row, Sample, Source
from pipelines.spool import Left
from schemas import Record, RecordError, Reject
from shards import run
from shards.executor import Executor, Queue, Watch
from shards.place import Place, below, clear
from shards.writer import ready

KINDS = ("records", "images")
REASONS = ("duplicate_record", "duplicate_image")
FOLDER = "_duplicates"
RECORD = -1  # where a record's own hash stands beside those of its pictures, which are numbered from 0
BUCKETS = 256  # by the first byte of a hash
TOGETHER = 64 << 20  # bytes of hashes that are compared at a time
_FIRST = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u4"), ("place", "<i4")])  # of equal hashes in a unit, the first
_AGAIN = np.dtype([("row", "<u4"), ("place", "<i4"), ("first", "<u4")])  # another; which of the firsts it equals
_LOST = np.dtype([("first", "<u4"), ("unit", "<u4"), ("row", "<u4")])  # which of a unit's firsts; to which record
_NUMBER = np.dtype("<u4")
Lost = dict[int, dict[int, str]]  # row to place (RECORD, or a picture's) to the key of the record that was first


@dataclass(frozen=True)
class Duplicates:
    """What has lost, as the pass left it. Without a place: nothing has."""

    place: Place | None = None
    units: int = 0
    groups: tuple[tuple[int, int], ...] = ()  # ranges of buckets that were compared together

    def of(self, number: int) -> Lost:
        """What has lost in the unit of this number."""
        found: Lost = {}
        if self.place is not None:
            for row, place, key in _lost(self.place, number, np.concatenate([self._losers(number, group) for group in self.groups])):
                found.setdefault(row, {})[place] = key
        return found

    def _losers(self, number: int, group: tuple[int, int]) -> np.ndarray:
        """_LOST (n,)."""
        assert self.place is not None
        return _part(self.place, _lost_name(group), self.units, _LOST, number, number + 1)[1]


NONE = Duplicates()


def less(sample: Sample, lost: dict[int, str] | None) -> Sample:
    """The sample without what has lost in its row. Raises Reject."""
    if not lost:
        return sample
    if RECORD in lost:
        raise Reject("duplicate_record", f"expected another content than record {lost[RECORD]}, found the same")
    if len(lost) == len(sample.files):
        raise Reject("duplicate_image", f"expected a picture that no earlier record has, found that of record {lost[0]}")
    sample.counts.note("images_dropped", "duplicate_image", len(lost))
    return without(sample, lost)


@dataclass(frozen=True)
class Search:
    """What is looked for, and in what."""

    place: Place  # of the data set
    run: str  # its fingerprint
    kind: str  # one of KINDS
    source: Source
    curation: Curation

    @property
    def folder(self) -> Place:
        """Where the pass leaves what it finds."""
        return below(self.place, FOLDER)


def planned(search: Search, units: Sequence[Any], on: Executor, watch: Watch) -> Duplicates:
    """What has lost among all units, found by as many workers as there are, or gone on with where that was interrupted.

    What it leaves beneath the place is for `done` to remove. Raises SourceError, RequestError, StoreError, OSError.
    """
    folder = search.folder
    there = {name for name, _ in folder.names()}
    todo = Left(units, [number for number in range(len(units)) if _spill_name(number) not in there])
    on.share(partial(_spill, search, todo), len(todo), watch)
    groups = _groups(sum(size for name, size in folder.names() if name.isdecimal()))
    missing = [group for group in groups if _lost_name(group) not in there]
    for _ in on.map(partial(_compare, folder, len(units)), missing):
        pass
    return Duplicates(folder, len(units), tuple(groups))


def done(place: Place) -> None:
    """Remove what the pass has left."""
    clear(below(place, FOLDER))


def _groups(size: int) -> list[tuple[int, int]]:
    """Ranges of buckets, each of about TOGETHER bytes: hashes are spread evenly."""
    number = min(BUCKETS, max(1, -(-size // TOGETHER)))
    return [(at * BUCKETS // number, (at + 1) * BUCKETS // number) for at in range(number)]


def _spill_name(number: int) -> str:
    return f"{number:06d}"


def _lost_name(group: tuple[int, int]) -> str:
    return f"lost-{group[0]:03d}-{group[1]:03d}"


def _spill(search: Search, units: Left, queue: Queue) -> None:
    """Leave the spills of units, one after the other until none is left to take."""
    run.seen(search.place, search.run)
    while (position := queue.take()) is not None:
        number, unit = units[position]
        found = _Hashes()
        for index, row in enumerate(search.source.rows(unit)):
            found.add(search, f"{number:06d}-{index:08d}", index, row)
        search.folder.write(_spill_name(number), found.spill())
        queue.count(position, found.read, found.read - found.made, found.size)
        queue.done(position)


class _Hashes:
    """The hashes of all that a unit would write, in its order."""

    def __init__(self) -> None:
        self.read = self.made = self.size = 0
        self._hashes: list[bytes] = []
        self._rows: list[int] = []
        self._places: list[int] = []

    def add(self, search: Search, key: str, index: int, row: Row) -> None:
        """Those of one item; none where it is refused."""
        self.read += 1
        try:
            sample = search.curation.applied(key, row, search.source.sample(row))
            record, _ = ready(sample.record, key, sample.files, sample.maps)
        except (Reject, RecordError):
            return
        self.made += 1
        self.size += sum(map(len, sample.files))
        pictures = [xxhash.xxh3_128_digest(data) for data in sample.files]
        found = [_content(record, pictures, sample.maps), *(pictures if search.kind == "images" else ())]
        self._hashes += found
        self._rows += [index] * len(found)
        self._places += range(RECORD, len(found) - 1)

    def spill(self) -> bytes:
        """With how many firsts each bucket begins (_NUMBER, BUCKETS + 1), the firsts by hash, the others."""
        found = np.empty(len(self._rows), _FIRST)
        found["high"], found["low"] = np.frombuffer(b"".join(self._hashes), ">u8").reshape(-1, 2).T
        found["row"], found["place"] = self._rows, self._places
        found = found[np.lexsort((found["low"], found["high"]))]  # stable: equal ones keep their order
        again = _as_before(found)
        others = np.empty(int(again.sum()), _AGAIN)
        others["row"], others["place"] = found["row"][again], found["place"][again]
        others["first"] = (np.cumsum(~again) - 1)[again]
        firsts = found[~again]
        starts = np.searchsorted(firsts["high"] >> np.uint64(56), np.arange(BUCKETS + 1, dtype=np.uint64))
        return starts.astype(_NUMBER).tobytes() + firsts.tobytes() + others.tobytes()


_pack = msgspec.msgpack.Encoder().encode


def _content(record: Record, pictures: Collection[bytes], maps: Collection[bytes]) -> bytes:
    """A hash of what a record says."""
    drawn = [(map.image, map.kind, map.encoding, map.ignore, map.classes, map.segments) for map in record.maps]
    pixels = [*pictures, *(xxhash.xxh3_128_digest(data) for data in maps)]
    said = (record.language, record.turns, record.choices, record.regions, record.expressions, record.relations)
    return xxhash.xxh3_128_digest(_pack((pixels, [image.seconds for image in record.images], said, drawn)))


def _as_before(found: np.ndarray) -> np.ndarray:
    """bool (n,): whether the hash is that of the one before."""
    same = np.zeros(len(found), bool)
    same[1:] = (found["high"][1:] == found["high"][:-1]) & (found["low"][1:] == found["low"][:-1])
    return same


def _part(place: Place, name: str, parts: int, items: np.dtype[Any], low: int, high: int) -> tuple[int, np.ndarray]:
    """The items of parts low:high of a file that begins with how many come before each part (_NUMBER, parts + 1); how many come before."""
    starts = np.frombuffer(place.read_range(name, low * _NUMBER.itemsize, (high - low + 1) * _NUMBER.itemsize), _NUMBER)
    begin, end = int(starts[0]), int(starts[-1])
    data = place.read_range(name, (parts + 1) * _NUMBER.itemsize + begin * items.itemsize, (end - begin) * items.itemsize)
    return begin, np.frombuffer(data, items)


def _compare(folder: Place, units: int, group: tuple[int, int]) -> None:
    """Of all units' hashes in these buckets: leave which have lost."""
    parts = [_part(folder, _spill_name(unit), BUCKETS, _FIRST, *group) for unit in range(units)]
    unit = np.repeat(np.arange(units, dtype=_NUMBER), [len(part) for _, part in parts])
    first = np.concatenate([np.arange(start, start + len(part), dtype=_NUMBER) for start, part in parts])
    found = np.concatenate([part for _, part in parts])
    del parts
    order = np.lexsort((found["low"], found["high"]))  # stable: of equal ones the lowest unit comes first
    same = _as_before(found[order])
    winner = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))[same]]
    loser = order[same]
    by_unit = np.argsort(unit[loser], kind="stable")
    winner, loser = winner[by_unit], loser[by_unit]
    lost = np.empty(len(loser), _LOST)
    lost["first"], lost["unit"], lost["row"] = first[loser], unit[winner], found["row"][winner]
    starts = np.searchsorted(unit[loser], np.arange(units + 1))
    folder.write(_lost_name(group), starts.astype(_NUMBER).tobytes() + lost.tobytes())


def _lost(folder: Place, number: int, losers: np.ndarray) -> Iterator[tuple[int, int, str]]:
    """Row, place and the winner's key of everything in a unit that has lost, to another unit or to its own."""
    spill = folder.read(_spill_name(number))
    firsts_at = (BUCKETS + 1) * _NUMBER.itemsize
    many = int(np.frombuffer(spill, _NUMBER, BUCKETS + 1)[-1])
    firsts = np.frombuffer(spill, _FIRST, many, firsts_at)
    again = np.frombuffer(spill, _AGAIN, -1, firsts_at + firsts.nbytes)
    unit, row = np.full(many, number, _NUMBER), firsts["row"].copy()
    unit[losers["first"]], row[losers["first"]] = losers["unit"], losers["row"]
    for found, first in ((firsts[losers["first"]], losers["first"]), (again, again["first"])):
        for at, place, u, r in zip(*(column.tolist() for column in (found["row"], found["place"], unit[first], row[first])), strict=True):
            yield at, place, f"{u:06d}-{r:08d}"
