"""How many bad records a reader puts up with: each is logged and counted, and leaves a hole; over the budget the reading ends."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import PurePosixPath

from schemas import ShardError

log = logging.getLogger(__name__)


class BudgetError(ShardError):
    """More records were bad than the budget allows."""

    def __reduce__(self) -> tuple[type[BudgetError], tuple[object, ...]]:
        return BudgetError, (self.shard, self.key, self.what, str(self.expected), str(self.found))


class Budget:
    """Counts good and bad records of one source. Threads may share it.

    rate: bad records of the last `last` that are put up with, as a part of them. run: this many bad ones in a row are one too many, so
    that a dead source ends the reading at once. where: the source or place that the messages name.

    shards: records of each of the source's shards, by name. Where they are given, a shard that is missing or damaged as a whole is told
    once, and is lost as a whole: all of its records together are put up with, up to `rate` of the source's. Counted one by one they would
    be over any rate while its window is read, however large the source is.
    """

    def __init__(
        self, rate: float = 0.01, run: int = 32, *, last: int = 10_000, where: str = "records", shards: Mapping[str, int] | None = None
    ) -> None:
        self.rate, self.run, self.last, self.where, self.shards = rate, run, last, where, shards or {}
        self.read, self.skipped = 0, 0  # records seen; the bad ones of them, lost ones included
        self.lost: set[str] = set()  # shards
        self._allowed, self._records = math.floor(rate * last), sum(self.shards.values())
        self._recent: deque[int] = deque()  # the numbers of the bad ones among the last
        self._in_a_row = 0
        self._lock = threading.Lock()

    def good(self, records: int = 1) -> None:
        """So many records were read well."""
        with self._lock:
            self.read += records
            self._in_a_row = 0

    def bad(self, error: Exception, key: str | None = None) -> None:
        """One record was not. Logs it; the key where the error itself names none. Raises BudgetError over the budget."""
        shard = self._with_all(error)
        if shard is not None:
            self._lose(shard, error)
        else:
            self._count(error, key)

    def _with_all(self, error: Exception) -> str | None:
        """The shard that this error is of as a whole; None where it is of a record."""
        if not isinstance(error, ShardError) or error.key is not None:
            return None
        name = f"{PurePosixPath(error.shard).stem}.tar"  # the error may name its index
        return name if name in self.shards else None

    def _lose(self, shard: str, error: Exception) -> None:
        with self._lock:
            self.read += 1
            self.skipped += 1
            new = shard not in self.lost
            self.lost.add(shard)
            lost, number = sum(self.shards[name] for name in self.lost), len(self.lost)
        if new:
            log.warning("%s: lost %d records: %s", self.where, self.shards[shard], error)
        if lost > self.rate * self._records:
            allowed = f"at most {self.rate:.3%} of {self._records:,} records"
            raise BudgetError(self.where, None, "lost shards", allowed, f"{lost:,} in {number}, the last: {error}")

    def _count(self, error: Exception, key: str | None) -> None:
        with self._lock:
            self.read += 1
            self.skipped += 1
            self._in_a_row += 1
            self._recent.append(self.read)
            while self._recent[0] <= self.read - self.last:
                self._recent.popleft()
            in_a_row, recent = self._in_a_row, len(self._recent)
        log.warning("%s: skipped: %s%s", self.where, f"{key}: " if key else "", error)
        if in_a_row >= self.run:
            raise self._over(error, key, f"fewer than {self.run} in a row", f"{in_a_row}, the last: {error}")
        if recent > self._allowed:
            among = min(self.read, self.last)
            raise self._over(
                error, key, f"at most {self._allowed} of {self.last:,} ({self.rate:.3%})", f"{recent} of {among:,}, the last: {error}"
            )

    def _over(self, error: Exception, key: str | None, expected: str, found: str) -> BudgetError:
        named = key or (error.key if isinstance(error, ShardError) else None)
        return BudgetError(self.where, named, "bad records", expected, found)
