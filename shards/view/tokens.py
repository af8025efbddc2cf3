"""What a recipe trains on, as `python -m trainer tokens RECIPE --json` tells it. It is run as a command: shards knows no trainer."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from schemas import RequestError
from shards.values import Values

IGNORE = -100  # label of a position that is not trained on
LINES = 5_000  # records that are kept
SECONDS = 600  # that the command may take
LINE = 64 << 20  # bytes


class Line(msgspec.Struct):
    """A record under a recipe. `spans`: where each token stands in `text`, where the command says so."""

    source: str
    key: str
    labels: list[int]
    images: list[int]
    text: str
    spans: list[tuple[int, int]] | None = None


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
    """Records under a recipe, by key. Raises RequestError where a line is none."""

    def __init__(self, name: str, lines: Iterable[bytes], source: str | None) -> None:
        self.name, self._lines = name, dict[str, bytes]()
        self.lengths, self.trained = Values(), Values()
        for number, data in enumerate(islice(lines, LINES), 1):
            line = _decoded(name, number, data)
            if source is None or line.source == source:
                self._lines[line.key] = data
                self.lengths.add(np.array([len(line.labels)]))
                self.trained.add(np.array([sum(label != IGNORE for label in line.labels)]))

    def __len__(self) -> int:
        return len(self._lines)

    def seen(self, key: str) -> Seen | None:
        """The record of this key, None where the command was not asked for so many."""
        data = self._lines.get(key)
        if data is None:
            return None
        line = msgspec.json.decode(data, type=Line)
        trained = sum(label != IGNORE for label in line.labels)
        return Seen(line.source, len(line.labels), trained, len(line.images), list(_stretches(line)), line.spans is not None)


def read(path: Path, source: str | None = None) -> Tokens:
    """The lines of a file, of this source alone where it is named. Raises RequestError."""
    try:
        with path.open("rb") as file:
            return Tokens(path.name, iter(lambda: file.readline(LINE), b""), source)
    except OSError as error:
        raise RequestError(f"--tokens {path}: expected the output of trainer tokens --json, found {error.strerror}") from error


def run(recipe: str, place: str, source: str, records: int, settings: Sequence[str] = ()) -> Tokens:
    """What the command says of the first records of a place. Raises RequestError where it fails: its own line says why."""
    words = ["tokens", recipe, "--source", f"{source}={place}", "--records", str(records), "--json"]
    words += [word for setting in settings for word in ("--set", setting)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            status = subprocess.run(
                [sys.executable, "-m", "trainer", *words], stdout=out, stderr=err, timeout=SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise RequestError(f"--recipe {recipe}: expected trainer tokens to end within {SECONDS} s, found it going on") from error
        if status > 1:  # 1: some records have no place in the template
            err.seek(0)
            said = err.read().decode("utf-8", "replace").strip().splitlines() or ["nothing said"]
            raise RequestError(f"--recipe {recipe}: expected trainer tokens to succeed, found: {said[-1][:500]}")
        out.seek(0)
        return Tokens(Path(recipe).name, out, source)


def _decoded(name: str, number: int, data: bytes) -> Line:
    try:
        line = msgspec.json.decode(data, type=Line)
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
