"""What a recipe trains on, as `python -m trainer tokens RECIPE --json` tells it. It is run as a command: shards knows no trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from schemas import RequestError
from shards.values import Values
from shards.view import ask

IGNORE = -100  # label of a position that is not trained on
READ, LINES = 100_000, 5_000  # records that are counted, and kept
LINE = 64 << 20  # bytes


class Line(msgspec.Struct):
    """A record under a recipe. `spans`: where each token stands in `text`, where the command says so."""

    source: str
    key: str
    labels: list[int]
    images: list[int]
    text: str
    spans: list[tuple[int, int]] | None = None


_line = msgspec.json.Decoder(Line)  # at import: two threads that are the first to decode a Struct crash msgspec 0.22


class Stretch(NamedTuple):
    """Text that is trained on, or context."""

    text: str
    trained: bool


class Seen(NamedTuple):
    """What the model sees of a record."""

    source: str
    tokens: int
    trained: int
    images: int
    stretches: list[Stretch]
    marked: bool  # whether the stretches say what is trained on


class Tokens:
    """Records under a recipe, by key: of one source, if it is named. Of all sources: `by_source`, tokens of a record that are trained on.

    Raises RequestError where a line is none.
    """

    def __init__(self, name: str, lines: Iterable[bytes], source: str | None) -> None:
        self.name, self._lines = name, dict[str, bytes]()
        self.lengths, self.trained, self.by_source = Values(), Values(), dict[str, Values]()
        for number, data in enumerate(islice(lines, READ), 1):
            line = _decoded(name, number, data)
            trained = np.array([sum(label != IGNORE for label in line.labels)])
            self.by_source.setdefault(line.source, Values()).add(trained)
            if source is None or line.source == source:
                if len(self._lines) < LINES:
                    self._lines[line.key] = data
                self.lengths.add(np.array([len(line.labels)]))
                self.trained.add(trained)

    def __len__(self) -> int:
        return len(self._lines)

    def seen(self, key: str) -> Seen | None:
        """The record of this key, None where the command was not asked for so many."""
        data = self._lines.get(key)
        if data is None:
            return None
        line = _line.decode(data)
        trained = sum(label != IGNORE for label in line.labels)
        return Seen(line.source, len(line.labels), trained, len(line.images), list(_stretches(line)), line.spans is not None)


def read(path: Path, source: str | None = None) -> Tokens:
    """The lines of a file, of this source alone where it is named. Raises RequestError."""
    try:
        with path.open("rb") as file:
            return Tokens(path.name, iter(lambda: file.readline(LINE), b""), source)
    except OSError as error:
        raise RequestError(f"--tokens {path}: expected the output of trainer tokens --json, found {error.strerror}") from error


def run(recipe: str, places: Mapping[str, str], source: str, records: int, settings: Sequence[str] = ()) -> Tokens:
    """What the command says of the first records of each source. Raises RequestError where it fails: its own line says why."""
    with ask.trainer(["tokens", recipe, *ask.given(places, settings), "--records", str(records), "--json"]) as answer:
        if answer.status > 1:  # 1: some records have no place in the template
            raise RequestError(f"--recipe {recipe}: expected trainer tokens to succeed, found: {answer.said}")
        return Tokens(Path(recipe).name, answer.out, source)


def _decoded(name: str, number: int, data: bytes) -> Line:
    try:
        line = _line.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"{name} line {number}: expected a line of trainer tokens --json, found {error}") from error
    if line.spans is not None and len(line.spans) != len(line.labels):
        raise RequestError(f"{name} line {number}: expected {len(line.labels)} spans, found {len(line.spans)}")
    return line


def _stretches(line: Line) -> Iterator[Stretch]:
    """The text, cut where training begins and ends."""
    if line.spans is None:
        yield Stretch(line.text, False)
        return
    cuts, inside, end = [(0, False)], False, 0
    for label, (start, stop) in zip(line.labels, line.spans, strict=True):
        if stop > start >= end:
            end = stop
            if (label != IGNORE) != inside:
                inside = not inside
                cuts.append((start, inside))
    for (start, trained), (stop, _) in pairwise([*cuts, (end, False)]):
        if stop > start:
            yield Stretch(line.text[start:stop], trained)
