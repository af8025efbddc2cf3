"""Plots as geometry: what templates/plots.html draws as SVG. Read in light and dark, at phone width, and without colour."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Bins = Sequence[tuple[float, float, float]]  # shards.values.Bin, or a rate in place of a number

WIDTH, HEIGHT = 400, 222
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 44  # room for the axes and what they are called
POINTS, CROWDED = 240, 60  # of a line, and of each of several: longer ones are averaged
LINES = 8  # told apart by dashes and marks


class Bar(NamedTuple):
    """A rectangle, and what it says when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    title: str


class Tick(NamedTuple):
    """A mark on an axis."""

    at: float
    text: str


class Line(NamedTuple):
    """A series: its name, its style from 0, where it goes, and where its marks stand."""

    name: str
    style: int
    path: str
    marks: list[tuple[float, float]]
    last: str


class Plot(NamedTuple):
    """Bars or lines between two axes, and the same as a table."""

    title: str
    across: str  # what the axes are called
    up: str
    bars: list[Bar]
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    columns: list[str]
    rows: list[list[str]]
    summary: str


class Share(NamedTuple):
    """A row of a chart of shares: drawn from the left."""

    name: str
    value: float
    part: float  # of the longest: 0 to 1
    text: str


def histogram(title: str, bins: Bins, unit: str, *, records: str = "records", summary: str = "") -> Plot:
    """Bars as high as their numbers."""
    most = max((number for _, _, number in bins), default=0)
    top, y_ticks = _y_axis(0, most, whole=all(number == int(number) for _, _, number in bins))
    wide = min(48.0, (WIDTH - LEFT - RIGHT) / max(1, len(bins)))
    bars, rows = [], []
    for at, (low, high, number) in enumerate(bins):
        height = (HEIGHT - TOP - BOTTOM) * number / top
        height = max(1.5, height) if number else 0.0  # what is there is seen
        said, count = _range(low, high), _number(number)
        bars.append(Bar(LEFT + at * wide, HEIGHT - BOTTOM - height, max(1.0, wide - 1.5), height, f"{said} {unit}: {count} {records}"))
        rows.append([said, count])
    return Plot(title, unit, records, bars, [], _bin_ticks(bins, wide), y_ticks, [unit, records], rows, summary)


def lines(
    title: str,
    series: Mapping[str, Sequence[float | None] | array[float] | np.ndarray],
    unit: str,
    *,
    x: str = "step",
) -> Plot:
    """A line a series over positions 0, 1, ...; None is a gap. Long ones are averaged piecewise."""
    points = POINTS if len(series) == 1 else CROWDED
    kept = {name: _averaged(values, points) for name, values in list(series.items())[:LINES]}
    count = max((len(values) for values in series.values()), default=0)
    shown = np.array([value for values in kept.values() for value in values if np.isfinite(value)])
    low, high = (min(0.0, float(shown.min())), float(shown.max())) if len(shown) else (0.0, 1.0)
    top, y_ticks = _y_axis(low, high)
    drawn = [_line(name, style, values, low, top, told=x == "step") for style, (name, values) in enumerate(kept.items())]
    size = max((len(values) for values in kept.values()), default=0)
    every = -(-count // points) or 1
    rows = [
        [f"{at * every:,}", *(_number(values[at]) if at < len(values) else "" for values in kept.values())]
        for at in range(0, size, max(1, size // 20))
    ]
    x_ticks = [
        Tick(LEFT + (WIDTH - LEFT - RIGHT) * part, f"{round(part * max(0, count - 1)):,}")
        for part in ((0.0, 0.5, 1.0) if count > 4 else (0.0, 1.0))
    ]
    return Plot(
        title,
        x,
        unit,
        [],
        drawn,
        x_ticks if count > 1 else x_ticks[:1],
        y_ticks,
        [x, *kept],
        rows,
        f"means of {every:,} {x}s" if every > 1 else "",
    )


def shares(values: Mapping[str, float], text: str = "{:,.0f}") -> list[Share]:
    """Values beside their names, the longest all the way."""
    most = max(values.values(), default=0) or 1
    return [Share(name, value, max(0.0, value / most), text.format(value)) for name, value in values.items()]


def _averaged(values: Sequence[float | None] | array[float] | np.ndarray, points: int) -> np.ndarray:
    """At most so many means of neighbours; NaN where there is nothing."""
    numbers = np.array([math.nan if value is None else value for value in values], float)
    every = -(-len(numbers) // points) or 1
    padded = np.concatenate([numbers, np.full(-len(numbers) % every, math.nan)]).reshape(-1, every)
    there = np.isfinite(padded)
    sums = np.where(there, padded, 0.0).sum(1)
    return np.divide(sums, there.sum(1), out=np.full(len(padded), math.nan), where=there.any(1))


def _line(name: str, style: int, values: np.ndarray, low: float, top: float, told: bool) -> Line:
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    at = LEFT + across * np.arange(len(values)) / max(1, len(values) - 1)
    height = TOP + down * (1 - (values - low) / (top - low))
    path, pen = [], "M"
    for x, y in zip(at.tolist(), height.tolist(), strict=True):
        if math.isfinite(y):
            path.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L" if math.isfinite(y) else "M"
    there = np.flatnonzero(np.isfinite(height))
    chosen = there[:: max(1, len(there) // 6)]
    marks = [(float(at[n]), float(height[n])) for n in chosen]
    return Line(name, style, " ".join(path), marks, _number(float(values[there[-1]])) if told and len(there) else "")


def _y_axis(low: float, high: float, *, whole: bool = False) -> tuple[float, list[Tick]]:
    """Where the axis ends, and three or four ticks; whole: between which nothing lies."""
    if high <= low:
        high = low + 1
    rough = (high - low) / 3
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * (1 - 1e-9))
    step = max(1.0, float(math.ceil(step))) if whole else step
    top = low + math.ceil((high - low) / step - 1e-9) * step
    down = HEIGHT - TOP - BOTTOM
    values = [low + n * step for n in range(round((top - low) / step) + 1)]
    return top, [Tick(TOP + down * (1 - (value - low) / (top - low)), short(value)) for value in values]


def _bin_ticks(bins: Bins, wide: float) -> list[Tick]:
    """A few bins' names: where single numbers are counted under their middle, otherwise where they begin."""
    if not bins:
        return []
    single = all(_single(low, high) for low, high, _ in bins)
    every = max(1, -(-len(bins) // 6))
    middle = wide / 2 if single else 0.0
    return [Tick(LEFT + at * wide + middle, short(bins[at][0])) for at in range(0, len(bins), every)]


def _single(low: float, high: float) -> bool:
    return high - low == 1 and low == math.floor(low)


def _range(low: float, high: float) -> str:
    return _number(low) if _single(low, high) else f"{_number(low)} to {_number(high)}"


def amount(value: float) -> str:
    """A number as people write it: 16,670, 33.3, 0.00015."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:,.4g}"


def short(value: float) -> str:
    """A number in few letters: 12k, 3.5M, 2e-05."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
