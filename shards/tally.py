"""A source's distributions, counted shard by shard in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shards.columns import Columns
from shards.values import Values

PER_RECORD = ("images", "text_length", "regions")
PER_PICTURE = ("width", "height", "aspect", "image_bytes", "similarity")
QUANTILES = (0, 10, 50, 90, 100)


@dataclass
class Tally:
    """How many records, and how their numbers are distributed."""

    records: int = 0
    values: dict[str, Values] = field(default_factory=lambda: {name: Values() for name in (*PER_RECORD, *PER_PICTURE)})

    def merge(self, other: Tally) -> None:
        """Count what another has counted."""
        self.records += other.records
        for name, values in other.values.items():
            self.values[name].merge(values)

    def spread(self, name: str) -> dict[str, float] | None:
        """Mean and quantiles; None where there is nothing."""
        found = self.values[name]
        if not len(found):
            return None
        return {"mean": round(found.mean, 3), **{f"p{q}": round(found.quantile(q / 100), 3) for q in QUANTILES}}


class Tallies(dict[str, Tally]):
    """By source."""

    def add(self, columns: Columns) -> None:
        """Count a shard's records."""
        for code, source in enumerate(columns.sources):
            rows = columns.source == code
            pictures = rows[columns.record]
            tally = self.setdefault(source, Tally())
            tally.records += int(rows.sum())
            for name in PER_RECORD:
                tally.values[name].add(getattr(columns, name)[rows])
            for name in PER_PICTURE:
                tally.values[name].add(_column(columns, name)[pictures])

    def merge(self, other: Tallies) -> None:
        """Count what another has counted."""
        for source, tally in other.items():
            self.setdefault(source, Tally()).merge(tally)


def _column(columns: Columns, name: str) -> np.ndarray:
    """A number of each picture, or record. What is continuous is rounded, so that distinct values stay few."""
    if name == "aspect":
        return np.round(columns.width / np.maximum(1, columns.height), 3)
    return np.round(columns.similarity, 4) if name == "similarity" else getattr(columns, name)


def shard_row(name: str, size: int, columns: Columns) -> dict[str, Any]:
    """What is told of one shard: counts, and means of its records and pictures."""
    row: dict[str, Any] = {"name": name, "records": len(columns), "images": len(columns.record), "bytes": size}
    for what in ("text_length", "regions", *PER_PICTURE):
        numbers = _column(columns, what)
        kept = numbers[~np.isnan(numbers)] if numbers.dtype.kind == "f" else numbers
        row[what] = round(float(kept.mean()), 3) if len(kept) else None
    return row
