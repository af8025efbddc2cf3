"""Waiting: the part of its time that a consumer of 50 ms a step waits for batches of 16 decoded pictures of 224 px; one worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.bench.figure import OURS, Figure
from tests.bench.readers import Reader, in_turns, made, read, readers
from tests.bench.workload import SMALL, Workload

ROUNDS, STEP, SECONDS = 1, 0.05, 4.0


def measure(quick: bool = False) -> Iterator[Figure]:
    """Percent."""
    given = replace(SMALL, records=1000) if quick else SMALL
    found = in_turns(readers(False), 1 if quick else ROUNDS, lambda reader: once(reader, given))["waited"]
    ours = tuple(found.pop(OURS))
    what = "wait of a consumer of 50 ms a step, 16 pictures of 224 px"
    yield Figure(what, "%", ours, (1.0,), "allowed", 1.0, below=True, others=found)


def once(reader: Reader, workload: Workload) -> dict[str, float]:
    """From the first batch on."""
    answer = read(reader, made(reader, workload), work=224, workers=1, shuffle=True, batch=16, step=STEP, seconds=SECONDS)
    return {"waited": 100 * answer["waited"] / answer["seconds"]}
