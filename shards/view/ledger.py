"""The rejects, as the page shows them: by reason, a few samples of each, where each came from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from schemas import ShardError
from shards.manifest import RejectRow, ledger_name
from shards.reader import Shards

ROWS = 50  # on a page
SAMPLES = 3  # of each reason, before one is chosen
BATCH = 8192  # rows decoded at a time


class Listed(NamedTuple):
    """Rows of a reason, their numbers in the ledger, and whether there are more."""

    rows: list[tuple[int, RejectRow]]
    more: bool


class Ledger:
    """rejects.parquet of a data set: kept as it is stored, decoded a piece at a time. Raises ShardError where it is not the one written."""

    def __init__(self, data: Shards) -> None:
        self._data = data
        self.reasons = dict(sorted(data.manifest.rejected.items(), key=lambda item: -item[1]))

    def rows(self, reason: str, skip: int = 0, most: int = ROWS) -> Listed:
        """Rows of this reason behind the first `skip`."""
        found: list[tuple[int, RejectRow]] = []
        for number, row in self._every():
            if row.reason == reason:
                skip -= 1
                if skip < 0:
                    found.append((number, row))
                if len(found) > most:
                    return Listed(found[:most], True)
        return Listed(found, False)

    def samples(self) -> dict[str, list[tuple[int, RejectRow]]]:
        """The first few of each reason, the commonest reason first."""
        found: dict[str, list[tuple[int, RejectRow]]] = {reason: [] for reason in self.reasons}
        wanted = {reason: min(SAMPLES, count) for reason, count in self.reasons.items()}
        for number, row in self._every():
            if wanted.get(row.reason, 0) > 0:
                wanted[row.reason] -= 1
                found[row.reason].append((number, row))
                if not any(wanted.values()):
                    break
        return found

    def row(self, number: int) -> RejectRow:
        """The ledger's row of this number. Raises IndexError."""
        for at, row in self._every():
            if at == number:
                return row
        raise IndexError(f"reject {number}: expected one below {self._data.manifest.rejects.rows}")

    @cached_property
    def by_unit(self) -> dict[str, int]:
        """How many inputs of each unit were rejected."""
        counts: Counter[str] = Counter()
        for batch in self._batches(["key"]):
            counts.update(key[:6] for key in batch.column("key").to_pylist())
        return dict(counts)

    def _every(self) -> Iterator[tuple[int, RejectRow]]:
        number = 0
        for batch in self._batches(None):
            for row in batch.to_pylist():
                yield number, RejectRow(*(row[name] for name in RejectRow.__struct_fields__))
                number += 1

    def _batches(self, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        try:
            with pq.ParquetFile(pa.BufferReader(self._stored), pre_buffer=False) as file:
                yield from file.iter_batches(BATCH, columns=columns, use_threads=False)
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise ShardError(self._name, None, "rejects unreadable", "a parquet table", str(error)[:200]) from error

    @cached_property
    def _stored(self) -> bytes:
        try:
            found = self._data.place.read(self._name)
        except OSError as error:
            raise ShardError(self._name, None, "rejects unreadable", "a ledger", error.strerror or "no such file") from error
        stated, seen = self._data.manifest.rejects.sha256, hashlib.sha256(found).hexdigest()
        if stated != seen:  # a parquet reader is not made for damaged files
            raise ShardError(self._name, None, "rejects altered", f"sha256 {stated}", seen)
        return found

    @property
    def _name(self) -> str:
        return ledger_name(self._data.manifest.layout)
