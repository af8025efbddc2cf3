"""Exact distributions in bounded memory: the values that occur, and how often each does."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

WAITING = 1 << 17  # numbers that are counted at a time
TAIL = 20  # times the median: where the largest is further away, bins double


class Bin(NamedTuple):
    """How many numbers lie in [low, high)."""

    low: float
    high: float
    number: int


class Values:
    """Numbers, counted by value. Memory grows with how many different ones there are: round what is continuous."""

    def __init__(self) -> None:
        self._values, self._counts = np.empty(0), np.empty(0, np.int64)
        self._new: list[tuple[np.ndarray, np.ndarray]] = []  # values, and how often each occurs
        self._waiting = 0

    def add(self, numbers: np.ndarray) -> None:
        """Count these. NaN is none."""
        numbers = np.asarray(numbers, np.float64)
        numbers = numbers[~np.isnan(numbers)]
        self._wait(numbers, np.ones(len(numbers), np.int64))

    def merge(self, other: Values) -> None:
        """Count what another has counted."""
        other._settle()
        self._wait(other._values, other._counts)

    def _wait(self, values: np.ndarray, counts: np.ndarray) -> None:
        self._new.append((values, counts))
        self._waiting += len(values)
        if self._waiting > max(WAITING, len(self._values)):
            self._settle()

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return self.__dict__

    def __len__(self) -> int:
        self._settle()
        return int(self._counts.sum())

    @property
    def mean(self) -> float:
        """Of all. Raises ZeroDivisionError where there are none."""
        self._settle()
        return float(self._values @ self._counts) / len(self)

    def counts(self) -> dict[float, int]:
        """How often each value occurs, by value."""
        self._settle()
        return dict(zip(self._values.tolist(), self._counts.tolist(), strict=True))

    def quantile(self, share: float) -> float:
        """The value below which this share lies, between two by straight line. Raises IndexError where there are none."""
        self._settle()
        ends = np.cumsum(self._counts)
        at = share * (ends[-1] - 1)
        low, high = (self._values[np.searchsorted(ends, int(position), "right")] for position in (np.floor(at), np.ceil(at)))
        return float(low + (high - low) * (at - np.floor(at)))

    def bins(self, most: int = 24) -> list[Bin]:
        """About so many bins that hold all: one a whole number, of one width, or doubling where the tail is long."""
        self._settle()
        if not len(self._values):
            return []
        edges = _edges(self._values, self.quantile(0.5), most)
        counts, _ = np.histogram(self._values, edges, weights=self._counts)
        return [Bin(low, high, int(count)) for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts, strict=True)]

    def _settle(self) -> None:
        if self._new:
            values = np.concatenate([self._values, *(values for values, _ in self._new)])
            counts = np.concatenate([self._counts, *(counts for _, counts in self._new)])
            self._values, place = np.unique(values, return_inverse=True)
            self._counts = np.bincount(place, counts, len(self._values)).astype(np.int64)
            self._new, self._waiting = [], 0


def _edges(values: np.ndarray, median: float, most: int) -> np.ndarray:
    """Where bins begin, and where the last ends: above the largest value."""
    low, high = float(values[0]), float(values[-1])
    whole = bool((values == np.floor(values)).all())
    if whole and low >= 0 and high > TAIL * max(1.0, median):
        return np.array([0.0, *2.0 ** np.arange(np.floor(np.log2(high)) + 2)])
    step = _round((high - low) / most, whole)
    first = np.floor(low / step)
    edges = np.round(np.arange(first, max(first + 1, np.floor(high / step) + 1) + 1) * step, 12)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # a step that is no binary fraction may miss them by a bit
    return edges


def _round(step: float, whole: bool) -> float:
    """A step that people count in, at least this large."""
    least = 1.0 if whole else 1e-3
    if step <= least:
        return least
    size = 10.0 ** np.floor(np.log10(step))
    return next(size * factor for factor in (1.0, 2.0, 5.0, 10.0) if size * factor >= step * (1 - 1e-9))
