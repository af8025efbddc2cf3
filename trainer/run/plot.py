"""A run's losses as a picture: loss.png in the run folder, a line a source, points where held-out sources were measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

POINTS = 2000  # of a line: more can not be told apart


class _Line(msgspec.Struct):
    """What the plot shows of a line of log.jsonl."""

    step: int
    loss_by_source: dict[str, float] = {}
    held_out: dict[str, float | None] = {}


def draw(log: Path, to: Path) -> None:
    """Draw this log.jsonl; nothing where it has no loss, or matplotlib is not installed. The picture is written aside and renamed."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    lines = list(_lines(log))
    trained = _curves((line.step, line.loss_by_source) for line in lines)
    measured = _curves((line.step, line.held_out) for line in lines)
    if trained or measured:
        aside = to.with_name(f".{to.name}.part")
        _figure(log.resolve().parent.name, trained, measured).savefig(aside, format=to.suffix[1:], dpi=120)
        aside.replace(to)


def _lines(log: Path) -> Iterator[_Line]:
    decode = msgspec.json.Decoder(_Line).decode
    with log.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield decode(line)


def _curves(found: Any) -> dict[str, np.ndarray]:
    """Step and loss, (points, 2), by source."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for step, losses in found:
        for name, loss in losses.items():
            if loss is not None:
                curves.setdefault(name, []).append((step, loss))
    return {name: np.array(points, float) for name, points in curves.items()}


def _figure(title: str, trained: Mapping[str, np.ndarray], measured: Mapping[str, np.ndarray]) -> Any:
    from matplotlib.figure import Figure  # without pyplot there is no state that threads share, and no display is looked for

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys([*trained, *measured]))}
    for name, points in trained.items():
        smooth = _smoothed(points)
        axes.plot(*_thinned(points).T, color=colours[name], alpha=0.25, linewidth=0.8)
        axes.plot(*_thinned(smooth).T, color=colours[name], label=f"{name}: {smooth[-1, 1]:.3f}")
    for name, points in measured.items():
        axes.plot(*points.T, "o--", color=colours[name], markersize=4, label=f"{name}, held out: {points[-1, 1]:.3f}")
    axes.set(title=title, xlabel="optimizer step", ylabel="loss per supervised token")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _smoothed(points: np.ndarray) -> np.ndarray:
    """The mean over the last fiftieth of the points before each."""
    width = max(1, len(points) // 50)
    sums = np.concatenate([[0.0], np.cumsum(points[:, 1])])
    ends = np.arange(1, len(points) + 1)
    begins = np.maximum(0, ends - width)
    return np.column_stack([points[:, 0], (sums[ends] - sums[begins]) / (ends - begins)])


def _thinned(points: np.ndarray) -> np.ndarray:
    """Every so manieth point, and the last."""
    stride = max(1, len(points) // POINTS)
    return np.concatenate([points[:-1][::stride], points[-1:]])
