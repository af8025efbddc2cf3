"""The rejects, as the page shows them: by reason, a few samples of each, where each came from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
        numbers: list[int] = []
        for first, names, codes in self._reasons():
            found = first + np.flatnonzero(codes == (names.index(reason) if reason in names else -1))
            numbers += found[skip:][: most + 1 - len(numbers)].tolist()
            skip = max(0, skip - len(found))
            if len(numbers) > most:
                break
        return Listed(self._take(numbers[:most]), len(numbers) > most)

    def samples(self) -> dict[str, list[tuple[int, RejectRow]]]:
        """The first few of each reason, the commonest reason first."""
        numbers: dict[str, list[int]] = {reason: [] for reason in self.reasons}
        for first, names, codes in self._reasons():
            for code, name in enumerate(names):
                if len(mine := numbers.setdefault(name, [])) < SAMPLES:
                    mine += (first + np.flatnonzero(codes == code)[: SAMPLES - len(mine)]).tolist()
            if all(len(numbers[reason]) >= min(SAMPLES, count) for reason, count in self.reasons.items()):
                break
        rows = dict(self._take([number for mine in numbers.values() for number in mine]))
        return {reason: [(number, rows[number]) for number in numbers[reason]] for reason in self.reasons}

    def row(self, number: int) -> RejectRow:
        """The ledger's row of this number. Raises IndexError."""
        count = self._data.manifest.rejects.rows
        if not 0 <= number < count:
            raise IndexError(f"reject {number}: expected one below {count}")
        ((_, row),) = self._take([number])
        return row

    @cached_property
    def by_unit(self) -> dict[str, int]:
        """How many inputs of each unit were rejected."""
        counts: Counter[str] = Counter()
        for _, batch in self._batches(["key"]):
            units = pc.utf8_slice_codeunits(batch.column("key"), 0, 6).value_counts()  # pyright: ignore[reportAttributeAccessIssue]
            counts.update(dict(zip(units.field("values").to_pylist(), units.field("counts").to_pylist(), strict=True)))
        return dict(counts)

    def _reasons(self) -> Iterator[tuple[int, list[str], np.ndarray]]:
        """A piece at a time: the number of its first row, the reasons in it, and which of them each row has."""
        for first, batch in self._batches(["reason"]):
            found = batch.column("reason").dictionary_encode()
            yield first, found.dictionary.to_pylist(), found.indices.to_numpy()

    def _take(self, numbers: list[int]) -> list[tuple[int, RejectRow]]:
        """The rows of these numbers that there are, with them, in order."""
        found: list[tuple[int, RejectRow]] = []
        wanted = np.array(sorted(numbers), np.int64)
        for first, batch in self._batches(None, wanted):
            for number in wanted[(wanted >= first) & (wanted < first + batch.num_rows)].tolist():
                (row,) = batch.slice(number - first, 1).to_pylist()
                found.append((number, RejectRow(*(row[name] for name in RejectRow.__struct_fields__))))
        return found

    def _batches(self, columns: list[str] | None, numbers: np.ndarray | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The ledger, a piece at a time, with the number of its first row; of row groups, if numbers are given, those that hold one."""
        try:
            with pq.ParquetFile(pa.BufferReader(self._stored), pre_buffer=False) as file:
                first = 0
                for group in range(file.num_row_groups):
                    end = first + file.metadata.row_group(group).num_rows
                    if numbers is None or ((numbers >= first) & (numbers < end)).any():
                        at = first
                        for batch in file.iter_batches(BATCH, row_groups=[group], columns=columns, use_threads=False):
                            yield at, batch
                            at += batch.num_rows
                    first = end
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
