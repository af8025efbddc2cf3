"""Decoding to batches: one worker, shuffled; records for each second of processor time of all processes, so a second core helps nobody.

Everybody decodes and resizes with Pillow alike; the bare loop does nothing else, over bytes in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.bench.figure import OURS, Figure, fastest
from tests.bench.readers import Reader, in_turns, made, read, readers
from tests.bench.workload import LARGE, SMALL, Workload

ROUNDS, SECONDS = 5, 2.5
BARE = "bare decode loop"


def measure(quick: bool = False) -> Iterator[Figure]:
    """Records a second of processor time."""
    bare = Reader(BARE, "bare", ".venv", "ours")
    for workload, size in ((SMALL, 224), (LARGE, 336)):
        given = replace(workload, records=1000) if quick else workload
        found = in_turns(
            [*readers(False), bare], 1 if quick else ROUNDS, lambda reader, given=given, size=size: once(reader, given, size, quick)
        )
        rates = found["rate"]
        loop = rates.pop(BARE)
        what = f"decode {given.name} records to batches of {size} px, 1 worker, per core"
        yield fastest(what, "records/s", rates, 1.2)
        yield Figure(what, "records/s", tuple(rates[OURS]), tuple(loop), BARE, 0.9)


def once(reader: Reader, workload: Workload, size: int, quick: bool) -> dict[str, float]:
    """From the first batch on."""
    workers = 0 if reader.name == BARE else 1
    answer = read(reader, made(reader, workload), work=size, workers=workers, shuffle=True, seconds=1.0 if quick else SECONDS)
    return {"rate": answer["records"] / max(answer["cpu"], 1e-9)}
