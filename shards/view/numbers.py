"""The numbers page: distributions per source and per shard, counted for as long as a request may take, and gone on with by the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from schemas import ShardError
from shards import columns as shard_columns
from shards import pace
from shards.tally import Tallies, Tally, shard_row
from shards.view import plots
from shards.view.desk import Desk
from shards.view.ledger import Ledger
from shards.view.plots import Plot

TITLES = {
    "images": ("Images per record", "images"),
    "text_length": ("Text length", "code points"),
    "regions": ("Regions per record", "regions"),
    "width": ("Width", "pixels"),
    "height": ("Height", "pixels"),
    "aspect": ("Aspect, width to height", "ratio"),
    "image_bytes": ("Picture size", "bytes"),
    "similarity": ("Similarity to the text", "similarity"),
}
PER_SHARD = {  # title, unit
    "records": ("Records", "records"),
    "images": ("Images", "images"),
    "text_length": ("Mean text length", "code points"),
    "regions": ("Mean regions", "regions"),
    "width": ("Mean width", "pixels"),
    "height": ("Mean height", "pixels"),
    "aspect": ("Mean aspect", "width to height"),
    "image_bytes": ("Mean picture size", "bytes"),
    "similarity": ("Mean similarity", "similarity"),
}
UNITS = ((86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
PER_RECORD = {"images", "text_length", "regions"}


class Numbers:
    """What is counted so far. Holds distributions and a row a shard, never the shards."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._lock = desk, threading.Lock()
        self.tallies, self.shards, self.damaged = Tallies(), list[dict[str, Any]](), list[str]()
        self.done = 0

    @property
    def total(self) -> int:
        """Shards in all."""
        return len(self._desk.data.shards)

    def advance(self, seconds: float, progress: Callable[[], object] = lambda: None) -> None:
        """Count the next shard, and more until the time is up. A damaged one is named, and left out."""
        until = time.monotonic() + seconds
        with self._lock:
            while self.done < self.total:
                self._count(self.done)
                self.done += 1
                progress()
                if time.monotonic() > until:
                    break

    def _count(self, at: int) -> None:
        shard = self._desk.data.shards[at]
        try:
            columns = shard_columns.read(shard)
        except ShardError as error:
            self.damaged.append(str(error))
            return
        finally:
            shard.close()
        self.tallies.add(columns)
        self.shards.append(shard_row(shard.name, shard.info.bytes, columns))

    def sources(self) -> Iterator[tuple[str, Tally, list[Plot]]]:
        """Each source with its histograms; what is the same for all, such as no regions, is left out."""
        for name in sorted(self.tallies):
            tally = self.tallies[name]
            yield name, tally, [_histogram(tally, what) for what in TITLES if _told(tally, what)]

    def per_shard(self) -> list[Plot]:
        """Means of each shard, in order; what no shard has is left out."""
        series = {what: [row[what] for row in self.shards] for what in PER_SHARD}
        told = {what: values for what, values in series.items() if any(value for value in values) and len(values) > 1}
        return [
            plots.lines(f"{title} by shard", {title: told[what]}, unit, x="shard")
            for what, (title, unit) in PER_SHARD.items()
            if what in told
        ]


class Conversion(NamedTuple):
    """What became of the input."""

    totals: dict[str, int]
    kept: float  # written / read
    families: dict[str, list[plots.Share]]  # what was rejected, dropped, mended, noted: by reason
    by_unit: Plot | None  # share written, over the input
    pace: str  # in words
    over_time: list[Plot]


def conversion(desk: Desk, ledger: Ledger, families: dict[str, dict[str, int]]) -> Conversion:
    """Read = written + rejected, every reason counted, and where in the input it went wrong."""
    totals = desk.data.manifest.totals
    written: dict[str, int] = {}
    for shard in desk.data.manifest.shards:
        unit = shard.name[:6]
        written[unit] = written.get(unit, 0) + shard.records
    units = sorted(written | ledger.by_unit)
    share = [written.get(unit, 0) / max(1, written.get(unit, 0) + ledger.by_unit.get(unit, 0)) for unit in units]
    plot = plots.lines("Share written, over the input", {"share written": share}, "share", x="unit") if len(units) > 1 else None
    told = {family: plots.shares(counts) for family, counts in families.items() if counts}
    found = pace.pace(desk.data.place, desk.data.manifest)
    return Conversion(totals, totals["written"] / max(1, totals["read"]), told, plot, pace.told(found), _over_time(found))


def _over_time(found: pace.Pace) -> list[Plot]:
    """Records and megabytes a second, over the time at work; nothing where the times tell nothing."""
    if found.mean is None:
        return []
    size, unit = next((size, name) for size, name in UNITS if found.seconds >= 3 * size or size == 1)
    ends = [min((at + 1) * found.step, found.seconds) / size for at in range(len(found.records_per_second))]
    shown = {"records a second": found.records_per_second, "megabytes a second": [rate / 1e6 for rate in found.bytes_per_second]}
    return [
        plots.histogram(
            f"Conversion: {title}",
            list(zip([0.0, *ends], ends, rates, strict=False)),
            f"{unit} at work, from the first unit on",
            records=title,
        )
        for title, rates in shown.items()
    ]


def _told(tally: Tally, what: str) -> bool:
    values = tally.values[what]
    return len(values) > 0 and not (what == "regions" and values.quantile(1) == 0)


def _histogram(tally: Tally, what: str) -> Plot:
    title, unit = TITLES[what]
    spread = tally.spread(what) or {}
    summary = f"median {plots.short(spread['p50'])}, from {plots.short(spread['p0'])} to {plots.short(spread['p100'])}"
    counted = "records" if what in PER_RECORD else "pictures"
    return plots.histogram(title, tally.values[what].bins(), unit, records=counted, summary=summary)
