"""How fast a data set was converted: its units over the times at which their commits were written.

No file of a data set holds a time, or its bytes would not depend on the input alone. What is left is when `_units/UUUUUU.json` was last
changed; of a copy it says how fast that was made, or nothing. How long the first commit took, or the first one behind an interruption,
nobody knows: its records are left out, as are interruptions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shards.manifest import UNITS, Manifest
from shards.place import Place

BINS = 40
LEAST = 1.0  # seconds of work: below, the times are a copy's, or there is too little to tell
AT_ONCE = 1.0  # seconds: shards that were hashed side by side are committed together
PAUSE, LONGER = 60.0, 10.0  # a wait of so many seconds, and so many times the usual one, is an interruption
_COMMIT = re.compile(rf"{UNITS}/(\d{{6,}})\.json")


class Pace(NamedTuple):
    """Records and bytes of tars a second, in bins of the seconds at work; without bins, `problem` says why."""

    units: int
    seconds: float = 0.0  # at work, from the first commit to the last
    pauses: Sequence[float] = ()  # seconds of each interruption
    step: float = 0.0  # seconds of a bin; the last one is what is left
    records_per_second: Sequence[float] = ()
    bytes_per_second: Sequence[float] = ()
    mean: tuple[float, float] | None = None  # records and bytes a second, over all
    problem: str | None = None


def pace(place: Place, found: Manifest) -> Pace:
    """The pace of a finished data set: its commits are listed, and none is read. Raises StoreError."""
    times = {unit[1]: at for name, at in place.modified(f"{UNITS}/") if (unit := _COMMIT.fullmatch(name))}
    if not times:
        return Pace(0, problem="there are no commits of units")
    times = dict(sorted(times.items(), key=lambda item: item[1]))
    at_U = np.array(list(times.values()))
    at_U -= at_U[0]
    if at_U[-1] < LEAST:
        return Pace(len(times), problem="all units were committed within a second: a copy's times, or too little to tell")
    return _binned(at_U, _held(found, list(times)), len(times))


def told(found: Pace) -> str:
    """The pace in a line."""
    if found.mean is None:
        return f"conversion rate unknown: {found.problem}"
    records, size = found.mean
    count = len(found.pauses)
    pauses = f"; {count} interruption{'s' * (count > 1)}, {spoken(sum(found.pauses))} in all, left out" if count else ""
    return f"converted at {plain(records)} records/s, {plain(size / 1e6)} MB/s over {spoken(found.seconds)}{pauses}"


def plain(value: float) -> str:
    """A rate in few digits: 12,345, 33.3, 0.0015."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spoken(seconds: float) -> str:
    """A length of time as people say it."""
    for size, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"


def _held(found: Manifest, units: list[str]) -> np.ndarray:
    """Records and bytes of each unit, float (n, 2)."""
    held = {unit: np.zeros(2) for unit in units}
    for shard in found.shards:
        unit = shard.name.partition("-")[0]
        if unit in held:
            held[unit] += (shard.records, shard.bytes)
    return np.array(list(held.values()))


def _binned(at_U: np.ndarray, held_U2: np.ndarray, units: int) -> Pace:
    """What was committed, spread evenly over the time since the commits before."""
    _, first_G, group_U = np.unique(np.floor(at_U / min(AT_ONCE, at_U[-1] / 60)), return_index=True, return_inverse=True)
    at_G, gained_G2 = at_U[first_G], np.zeros((len(first_G), 2))
    np.add.at(gained_G2, group_U, held_U2)
    waits = np.diff(at_G)
    pause = waits > max(PAUSE, LONGER * float(np.quantile(waits, 0.5, method="lower")))
    behind = np.concatenate([[True], pause])  # how long these took, nobody knows
    gained_G2[behind] = 0
    done_G2, elapsed_G = np.cumsum(gained_G2, 0), np.concatenate([[0.0], np.cumsum(np.where(pause, 0.0, waits))])
    kept = np.concatenate([[True], ~pause])
    done, elapsed, seconds = done_G2[kept], elapsed_G[kept], float(elapsed_G[-1])
    step = _step(seconds / min(BINS, len(elapsed) - 1))
    edges = np.append(np.arange(0, seconds, step), seconds)
    rates = [(np.diff(np.interp(edges, elapsed, column)) / np.diff(edges)).round(3).tolist() for column in done.T]
    records, size = (done[-1] / seconds).round(3).tolist()
    return Pace(units, round(seconds, 3), waits[pause].round(3).tolist(), step, *rates, mean=(records, size))


def _step(least: float) -> float:
    """A step of so many seconds at least that people count in."""
    steps = [size * factor for size in (0.01, 0.1, 1, 10) for factor in (1, 2, 5)]
    steps += [size * factor for size in (60, 3600) for factor in (0.5, 1, 2, 5, 10, 20, 30)]
    return next((step for step in sorted(steps) if step >= least), math.ceil(least / 86_400) * 86_400.0)
