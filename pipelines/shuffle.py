"""Shuffle: every record of a conversion at a position that a seed decides, in a second pass over a staged data set.

The first pass is the conversion as it always is, into `_shuffle/` below the place, its units committed one by one. The second writes
the units themselves: as many, of as many items each. Of n input items, number i goes to position permuted(i) of range(n), by a keyed
Feistel network that is never held (shards.splitmix), so that a unit knows where its records come from, and anybody where one went. It
commits them as any conversion does. So both passes go on where they were killed, and the bytes do not depend on who did what.

A reject has a position, too: its key is the one that its record would have had, and a gap is left there. The ledger, and what was dropped
or mended, stay with the unit of the input, so rejects.parquet lists its rows in the order of the input, and all sums are those of the
conversion. Where a record came from say its images' `origin`, its meta, and `Order.item` of its key.

    _shuffle/UUUUUU-PPP.tar ...    the staged shards, their indexes and commits
    _shuffle/spots                 where each item's record lies in them: 28 bytes an item

What it takes: the data set's size once more, in the place, until it is done; memory for AHEAD pieces of PIECE bytes, or of one record.
"""

from __future__ import annotations

import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
from isal import isal_zlib

from pipelines.duplicates import REASONS
from schemas import ShardError
from schemas.record import decode
from shards import durable, manifest, splitmix, ustar
from shards.manifest import UNITS, RejectRow, Unit
from shards.place import Place, below, clear
from shards.reader import Shard
from shards.sink import Buffer
from shards.write import Item

FOLDER = "_shuffle"
SPOTS = "spots"
PIECE = 1 << 20  # bytes of records that one thread reads at a time
AHEAD = 16  # pieces
READERS = 8  # threads: each record is somewhere else, on a cold disk as on object storage
_SPOT = np.dtype([("offset", "<u8"), ("length", "<u8"), ("crc32", "<u4"), ("unit", "<u4"), ("part", "<u4")])  # length 0: a reject
_KEY = re.compile(r"\b[0-9]{6}-[0-9]{8}\b")
Permute = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Order:
    """Which item of the input is where: a pure function of the seed and of the units' sizes."""

    def __init__(self, seed: int, sizes: Sequence[int]) -> None:
        """sizes: items of each unit."""
        self.first = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._key = splitmix.key(seed, "shuffle")

    def items(self, unit: int) -> np.ndarray:
        """int64 (n,): the numbers, in the input, of the items that are in this unit, in its order."""
        return self._moved(splitmix.unpermuted, np.arange(self.first[unit], self.first[unit + 1]))

    def keys(self, items: Sequence[int] | np.ndarray) -> list[str]:
        """The keys of input items, given by number."""
        position = self._moved(splitmix.permuted, np.asarray(items, np.int64))
        unit = np.searchsorted(self.first, position, side="right") - 1
        rows = position - self.first[unit]
        return [f"{u:06d}-{row:08d}" for u, row in zip(unit.tolist(), rows.tolist(), strict=True)]

    def item(self, key: str) -> int:
        """The number, in the input, of the item with this key."""
        return int(self._moved(splitmix.unpermuted, np.array([self.number(key)]))[0])

    def number(self, key: str) -> int:
        """The position that a key stands for; in the input, that of the item whose key it is there."""
        return int(self.first[int(key[:6])]) + int(key[7:])

    def _moved(self, step: Permute, numbers: np.ndarray) -> np.ndarray:
        return step(numbers, np.full(len(numbers), self.first[-1]), np.full(len(numbers), self._key, np.uint64))


@dataclass(frozen=True)
class Shuffled:
    """The staged data set as a unit of the final one sees it. Pickles."""

    stage: Place
    order: Order

    def records(self, unit: int) -> Iterator[tuple[int, Item]]:
        """Row, and what is to be written, of every record of a unit of the final data set. Raises ShardError, StoreError."""
        spots = self._spots[self.order.items(unit)]
        rows = np.flatnonzero(spots["length"])
        for row, data in zip(rows.tolist(), self._read(spots[rows]), strict=True):
            yield row, _item(data)

    def carried(self, unit: int) -> tuple[list[RejectRow], dict[str, dict[str, int]]]:
        """What a unit of the input has rejected, under the keys that all have now, and the counts of what it has dropped."""
        staged = manifest.unit(self.stage, unit)
        rejects = staged.rejects
        told = {key for reject in rejects if reject.reason in REASONS for key in _KEY.findall(reject.detail)}
        old = sorted({*told, *(reject.key for reject in rejects)})
        new = dict(zip(old, self.order.keys([self.order.number(key) for key in old]), strict=True))
        return [_moved(reject, new) for reject in rejects], staged.dropped

    def _read(self, spots: np.ndarray) -> Iterator[Buffer]:
        """These records' bytes, in order, read ahead."""
        cuts = np.flatnonzero(np.diff(np.cumsum(spots["length"]) // PIECE)) + 1
        with ThreadPoolExecutor(READERS, "shuffle") as pool:
            waiting: deque[Future[list[Buffer]]] = deque()
            for piece in np.split(spots, cuts):
                waiting.append(pool.submit(self._piece, piece))
                if len(waiting) >= AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def _piece(self, spots: np.ndarray) -> list[Buffer]:
        return [self._record(*spot) for spot in spots.tolist()]

    def _record(self, offset: int, length: int, crc32: int, unit: int, part: int) -> Buffer:
        name = f"{unit:06d}-{part:03d}.tar"
        data = self.stage.read_range(name, offset, length)
        found = isal_zlib.crc32(data)
        if found != crc32 or len(data) != length:
            raise ShardError(f"{FOLDER}/{name}", None, f"record at {offset} altered", f"crc32 {crc32:08x}", f"{found:08x}")
        return data

    @cached_property
    def _spots(self) -> np.ndarray:
        """_SPOT (items,), mapped."""
        with _local(self.stage) as file:
            return np.memmap(file, _SPOT, "r") if self.order.first[-1] else np.empty(0, _SPOT)


def stage(place: Place) -> Place:
    """Where to convert to first. What a killed run was writing there goes."""
    found = below(place, FOLDER)
    if found.folder is not None:
        (found.folder / UNITS).mkdir(parents=True, exist_ok=True)
        for folder in (found.folder, found.folder / UNITS):
            durable.remove_leftovers(folder)
    return found


def prepared(place: Place, seed: int, staged: Iterable[Unit]) -> Shuffled:
    """The staged data set, ready for the second pass. staged: its units' commits, in order. Raises ShardError, StoreError, OSError."""
    stage = below(place, FOLDER)
    sizes = []
    with tempfile.NamedTemporaryFile(prefix="shardweave-") as file:
        for unit in staged:
            sizes.append(unit.read)
            file.write(_located(stage, unit).tobytes())
        file.flush()
        stage.upload(SPOTS, Path(file.name))
    return Shuffled(stage, Order(seed, sizes))


def done(place: Place) -> None:
    """Remove the staged data set."""
    clear(below(place, FOLDER))


def _located(stage: Place, unit: Unit) -> np.ndarray:
    """_SPOT (items,): where each item's record lies."""
    spots = np.zeros(unit.read, _SPOT)
    spots["unit"] = unit.unit
    for part, info in enumerate(unit.shards):
        index = Shard(stage, info).index
        rows = [int(key[7:]) for key in index.keys]
        spots["part"][rows] = part
        for column, values in (("offset", index.offsets), ("length", index.lengths), ("crc32", index.crc32)):
            spots[column][rows] = values
    return spots


def _local(stage: Place) -> IO[bytes]:
    """The spots in a local file."""
    if stage.folder is not None:
        return (stage.folder / SPOTS).open("rb")
    file = tempfile.TemporaryFile(prefix="shardweave-")  # noqa: SIM115  the caller closes it
    for piece in stage.stream(SPOTS):
        file.write(piece)
    file.flush()
    return file


def _item(data: Buffer) -> Item:
    """A record of the staged data set and its payloads, from its bytes in the tar."""
    *files, text = ustar.payloads(memoryview(data))
    record = decode(text)
    return record, files[: len(record.images)], files[len(record.images) :]


def _moved(reject: RejectRow, keys: dict[str, str]) -> RejectRow:
    detail = _KEY.sub(lambda key: keys[key[0]], reject.detail) if reject.reason in REASONS else reject.detail
    return msgspec.structs.replace(reject, key=keys[reject.key], detail=detail)
