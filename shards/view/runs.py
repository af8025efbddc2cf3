"""A run folder: what log.jsonl says of every step, read as it grows, and recipe.toml. Knows the trainer by these files alone."""

from __future__ import annotations

import threading
import tomllib
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from schemas import RequestError, ShardweaveError
from shards import place, splitmix
from shards.order import Order
from shards.view import plots
from shards.view.desk import Desk
from shards.view.plots import Plot

LOG, RECIPE = "log.jsonl", "recipe.toml"
PIECE = 16 << 20  # bytes of the log that a request reads
SOURCES = 64
LAST = 12  # samples
PER_STEPS = 100_000  # steps that epochs are told for
NAN = float("nan")


class Line(msgspec.Struct):
    """A step, as far as the page shows it. What is not there is null."""

    step: int
    loss: float | None = None
    loss_by_source: dict[str, float] = {}
    lr: float | None = None
    seconds: float | None = None
    seconds_waiting: float | None = None
    tokens_supervised: int | None = None
    updated: bool = True
    served_by_source: dict[str, float] = {}
    left_out_by_source: dict[str, float] = {}
    bad_by_source: dict[str, float] = {}
    share_asked: dict[str, float] = {}


_line = msgspec.json.Decoder(Line)  # at import: two threads that are the first to decode a Struct crash msgspec 0.22


@dataclass
class Series:
    """Of a source: its loss step by step (NaN: none in this step), and what was drawn of it so far."""

    loss: array[float] = field(default_factory=lambda: array("d"))
    served: float = 0
    left_out: float = 0
    bad: float = 0
    whole: int = 0  # drawn up to the end of the last whole block
    asked: float | None = None

    @property
    def drawn(self) -> int:
        """Draws so far."""
        return int(self.served + self.left_out + self.bad)


class Row(NamedTuple):
    """A source of the mixture, in numbers."""

    name: str
    asked: float | None  # share
    served: float  # share
    records: int
    left_out: int
    bad: int
    epochs: float | None  # so far
    epochs_ahead: float | None  # in PER_STEPS steps


class Run:
    """A run folder. Raises RequestError where it is none. `advance` reads what has been written since."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._lock = folder, threading.Lock()
        if not (folder / LOG).is_file():
            raise RequestError(f"--run {folder}: expected a run folder, found no {LOG}")
        self.recipe = recipe_table(folder / RECIPE)
        self.block = _block(self.recipe.get("mixture"))
        self._sizes: dict[str, int | None] = {}
        self._forget()

    def _forget(self) -> None:
        self.steps = self.whole = 0
        self.tokens = self.skipped = self.unread = 0
        self.by_source: dict[str, Series] = {}
        self.columns = {name: array("d") for name in ("loss", "lr", "seconds", "waiting", "records")}
        self._read = 0  # bytes

    def advance(self) -> bool:
        """Read on, a piece at most. Whether that was all."""
        with self._lock:
            size = (self.folder / LOG).stat().st_size
            if size < self._read:  # the run was taken up again behind an earlier step
                self._forget()
            with (self.folder / LOG).open("rb") as file:
                file.seek(self._read)
                data = file.read(PIECE)
            whole = data[: data.rfind(b"\n") + 1]
            for line in whole.splitlines():
                self._add(line)
            self._read += len(whole)
            return not whole or self._read >= size

    def _add(self, data: bytes) -> None:
        try:
            line = _line.decode(data)
        except (msgspec.DecodeError, RecursionError):
            self.unread += 1
            return
        self.tokens += line.tokens_supervised or 0
        self.skipped += not line.updated
        told = (line.loss, line.lr, line.seconds, line.seconds_waiting, sum(line.served_by_source.values()))
        for column, value in zip(self.columns.values(), told, strict=True):
            column.append(NAN if value is None else value)
        for name in [*line.loss_by_source, *line.served_by_source]:
            if name not in self.by_source and len(self.by_source) < SOURCES:
                self.by_source[name] = Series(array("d", [NAN] * self.steps))
        for name, series in self.by_source.items():
            served, left_out, bad = (table.get(name, 0) for table in (line.served_by_source, line.left_out_by_source, line.bad_by_source))
            series.loss.append(line.loss_by_source.get(name, NAN))
            series.served += served
            series.left_out += left_out
            series.bad += bad
            series.asked = line.share_asked.get(name, series.asked)
        self.steps += 1
        if self.steps % self.block == 0:
            self.whole = self.steps
            for series in self.by_source.values():
                series.whole = series.drawn

    def plots(self) -> list[Plot]:
        """Loss per source, learning rate, share of time spent waiting for data, throughput."""
        seconds = np.maximum(1e-9, np.asarray(self.columns["seconds"]))
        losses = {name: series.loss for name, series in self.by_source.items() if len(series.loss) and np.isfinite(series.loss).any()}
        shown = [
            plots.lines("Loss by source", losses or {"loss": self.columns["loss"]}, "loss"),
            plots.lines("Learning rate", {"learning rate": self.columns["lr"]}, "learning rate"),
            plots.lines("Share of time waiting for data", {"share": np.asarray(self.columns["waiting"]) / seconds}, "share"),
            plots.lines("Throughput", {"throughput": np.asarray(self.columns["records"]) / seconds}, "records a second"),
        ]
        return [plot for plot in shown if any(line.path for line in plot.lines)]

    def mixture(self) -> list[Row]:
        """What was asked and what was served, source by source."""
        total = sum(series.served for series in self.by_source.values()) or 1
        return [self._row(name, series, total) for name, series in self.by_source.items()]

    def _row(self, name: str, series: Series, total: float) -> Row:
        records = self._records(name)
        epochs = series.drawn / records if records else None
        ahead = epochs * PER_STEPS / self.steps if epochs is not None and self.steps else None
        return Row(name, series.asked, series.served / total, int(series.served), int(series.left_out), int(series.bad), epochs, ahead)

    def _records(self, name: str) -> int | None:
        """How many records an epoch of this source has: its place says so, where it can be read."""
        if name not in self._sizes:
            self._sizes[name] = epoch(self._source(name))
        return self._sizes[name]

    def _source(self, name: str) -> dict[str, Any]:
        return source_table(self.recipe, name)

    def last(self, desk: Desk) -> dict[str, list[int]]:
        """Numbers of the records that were trained on last, by source, of the sources whose data are on the desk: as of step `whole`.

        Draws of a block of steps are served in an order of length that only the trainer knows, so they count when the block is through.
        """
        drawn = {name: series.whole for name, series in self.by_source.items() if series.whole and _same(self._source(name), desk)}
        return {name: _drawn(desk, self._source(name), name, self.recipe.get("seed", 0), count) for name, count in drawn.items()}


def _drawn(desk: Desk, source: dict[str, Any], name: str, seed: int, count: int) -> list[int]:
    """As trainer/README.md says: the source's seed is the run's and its name."""
    counts = [len(shard) for shard in desk.data.shards]
    order = Order(counts, splitmix.key(seed, name), window=source.get("window", 16), resampled=bool(source.get("resampled")))
    shards, rows = order.at(np.arange(max(0, count - LAST), count))
    return [desk.first[shard] + row for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)][::-1]


def _block(mixture: Any) -> int:
    """Steps whose draws are served in another order than they are drawn in: as trainer/recipe.py has it."""
    table = mixture if isinstance(mixture, dict) else {}
    steps = table.get("group_steps", 32) if table.get("draw") == "mixed" else 1
    return steps if isinstance(steps, int) and steps > 0 else 1


def _same(source: dict[str, Any], desk: Desk) -> bool:
    """Whether a source's place is the desk's."""
    where = source.get("shards")
    if not isinstance(where, str) or source.get("kind", "shards") != "shards":
        return False
    try:
        found, here = place.at(where), desk.data.place
    except ShardweaveError:
        return False
    if found.folder is not None and here.folder is not None:
        return found.folder.resolve() == here.folder.resolve()
    return found.url == here.url


def source_table(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """What a recipe says of a source; empty where it says nothing."""
    found = recipe.get("sources")
    tables = found if isinstance(found, list) else []
    return next((table for table in tables if isinstance(table, dict) and table.get("name") == name), {})


def epoch(source: dict[str, Any]) -> int | None:
    """How many records an epoch has of a source in a recipe; None where its place does not say so."""
    stated, where = source.get("epoch_samples"), source.get("shards")
    if isinstance(stated, int) and stated > 0:
        return stated
    if not isinstance(where, str) or source.get("kind", "shards") != "shards":
        return None
    from shards import manifest

    try:
        return manifest.read(where).totals["written"] or None
    except (ShardweaveError, OSError):
        return None  # the data went elsewhere: the page says less


def recipe_table(path: Path) -> dict[str, Any]:
    """The recipe, empty where there is none. Raises RequestError where it is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: expected a recipe, found {error}") from error
