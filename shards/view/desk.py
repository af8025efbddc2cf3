"""The data set on the desk: a few of its records, shards and columns at a time, whatever its size."""

from __future__ import annotations

import bisect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from itertools import accumulate
from typing import Generic, NamedTuple, TypeVar

from shards import columns as shard_columns
from shards.columns import Columns
from shards.reader import Sample, Shard, Shards
from shards.view.filter import Filter

SAMPLES, SHARDS, COLUMNS = 32, 8, 32  # kept: a record's bytes; an open index, some MB; a shard's numbers, about 500 kB
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Found(NamedTuple):
    """Numbers of records, and where to go on looking: None at the end."""

    numbers: list[int]
    resume: int | None


class Kept(Generic[Key, Value]):
    """The last few of something, made when asked for. For several threads; two may make the same one."""

    def __init__(self, most: int, make: Callable[[Key], Value], drop: Callable[[Value], None] = lambda _: None) -> None:
        self._most, self._make, self._drop = most, make, drop
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: Key) -> Value:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = self._make(key)
        with self._lock:
            self._kept[key] = made
            dropped = [self._kept.popitem(last=False)[1] for _ in range(len(self._kept) - self._most)]
        for value in dropped:
            self._drop(value)
        return made


class Desk:
    """Records by number and by key, and the numbers of those that a filter passes. Raises as `shards.open`'s result does."""

    def __init__(self, data: Shards) -> None:
        self.data = data
        self.first = list(accumulate((len(shard) for shard in data.shards), initial=0))
        self.sample: Kept[int, Sample] = Kept(SAMPLES, self._sample)
        self.columns: Kept[int, Columns] = Kept(COLUMNS, self._columns)
        self._shard: Kept[int, Shard] = Kept(SHARDS, data.shards.__getitem__, Shard.close)

    def __len__(self) -> int:
        return self.first[-1]

    def where(self, number: int) -> tuple[int, int]:
        """Shard and row of a record. Raises IndexError."""
        if not 0 <= number < len(self):
            raise IndexError(f"record {number}: expected one below {len(self)}")
        shard = bisect.bisect_right(self.first, number) - 1
        return shard, number - self.first[shard]

    def key(self, shard: int, row: int) -> str:
        """The key that the index gives. Raises ShardError."""
        return self._shard(shard).index.keys[row]

    def number(self, key: str) -> int:
        """The number of the record with this key. Raises KeyError."""
        for at in self._candidates(key[:6]):
            keys = self._shard(at).index.keys
            row = bisect.bisect_left(keys, key)
            if row < len(keys) and keys[row] == key:
                return self.first[at] + row
        raise KeyError(key)

    def find(self, wanted: Filter, start: int, *, most: int, seconds: float, step: int = 1) -> Found:
        """At most so many records that pass, from `start` on, in order; step -1: backwards. After the time is up: those found so far."""
        if not 0 <= start < len(self):
            return Found([], None)
        if wanted.is_open:
            numbers = list(range(start, len(self) if step > 0 else -1, step)[: most + 1])
            return Found(numbers[:most], numbers[most] if len(numbers) > most else None)
        return self._search(wanted, start, most, time.monotonic() + seconds, step)

    def _search(self, wanted: Filter, start: int, most: int, until: float, step: int) -> Found:
        numbers: list[int] = []
        for at in range(self.where(start)[0], len(self.data.shards) if step > 0 else -1, step):
            rows = wanted.match(self.columns(at)) + self.first[at]
            rows = rows[rows >= start] if step > 0 else rows[rows <= start][::-1]
            numbers += rows[: most + 1 - len(numbers)].tolist()
            if len(numbers) > most:
                return Found(numbers[:most], numbers[most])
            following = self.first[at + 1] if step > 0 else self.first[at] - 1
            if time.monotonic() > until and 0 <= following < len(self):
                return Found(numbers, following)
        return Found(numbers, None)

    def _candidates(self, unit: str) -> Iterable[int]:
        """Shards that may hold the keys of this unit; of tars made elsewhere the likeliest first: damaged ones before it are missing."""
        if self.data.manifest.layout is None:
            return [at for at, shard in enumerate(self.data.shards) if shard.name[:6] == unit]
        return range(min(int(unit), len(self.data.shards) - 1), -1, -1) if unit.isascii() and unit.isdecimal() else ()

    def _sample(self, number: int) -> Sample:
        shard, row = self.where(number)
        return self._shard(shard)[row]

    def _columns(self, at: int) -> Columns:
        return shard_columns.read(self._shard(at))
