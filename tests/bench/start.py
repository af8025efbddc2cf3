"""Beginning: seconds from opening to the first batch of 64, at the start of an epoch and in its middle, page cache cold; imports apart.

Going on uses the reader's own state, saved at 50 % of a shuffled epoch; a reader that has none reads the first half again and drops it. And
ours alone with 10,000 shards of 10,000 records: only the index of the shards that the first batch comes from is real.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

from tests.bench.figure import OURS, Figure, fastest
from tests.bench.readers import ROOT, Reader, empty_folder, forget, in_turns, made, read, readers
from tests.bench.simulated import simulate
from tests.bench.workload import SMALL, Workload, scratch

ROUNDS, BATCH = 3, 64


def measure(quick: bool = False) -> Iterator[Figure]:
    """Seconds to the first batch."""
    given = replace(SMALL, records=1024) if quick else SMALL
    found = in_turns(readers(False), 1 if quick else ROUNDS, lambda reader: once(reader, given))
    yield fastest("first batch of an epoch, cold", "s", found["start"], 1.0, below=True)
    yield fastest("first batch after resuming at 50 %, cold", "s", found["resumed"], 1.0, below=True)
    start, resumed = tuple(found["start"][OURS]), tuple(found["resumed"][OURS])
    yield Figure("first batch after resuming at 50 %, against a start", "s", resumed, start, "shardweave, start", 1.2, below=True)
    yield from many()


def once(reader: Reader, workload: Workload) -> dict[str, float]:
    """A start and a resumption."""
    place = made(reader, workload)
    half = workload.records // 2 // BATCH * BATCH
    state = scratch() / "states" / f"{workload.records}-{reader.module}-{reader.environment}"
    if reader.resumes and not state.exists():
        state.parent.mkdir(exist_ok=True)
        with empty_folder("keys") as folder:
            read(reader, place, shuffle=True, save=state, save_at=half, records=half + BATCH, keys=folder / "keys")
    forget(place)
    start = read(reader, place, shuffle=True, records=1)
    forget(place)
    resumed = read(reader, place, None, shuffle=True, records=1, **({"state": state} if reader.resumes else {"skip": half}))
    return {"start": start["first"], "resumed": resumed["first"]}


def many() -> Iterator[Figure]:
    """10^8 records: the first batch of a new process, at the start and in the middle."""
    seconds: dict[int, list[float]] = {0: [], 50_000_000: []}
    memory: list[float] = []
    with empty_folder("simulated") as folder:
        simulate(folder, 10_000, 10_000)
        for _ in range(ROUNDS):
            for draw, times in seconds.items():
                command = [sys.executable, "-m", "tests.bench.simulated", str(folder), str(draw)]
                answer = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout)
                times.append(answer["seconds"])
                memory.append(answer["memory"])
    for draw, what in ((0, "first batch"), (50_000_000, "first batch after resuming at 50 %")):
        yield Figure(f"10,000 shards x 10,000 records: {what}", "s", tuple(seconds[draw]), (2.0,), "allowed", 1.0, below=True)
    yield Figure("10,000 shards x 10,000 records: memory", "MB", tuple(memory), (200.0,), "allowed", 1.0, below=True)
