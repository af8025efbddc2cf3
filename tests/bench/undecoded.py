"""Reading without decoding: one process, local disk, in written order, every byte looked at.

Ours checks every record's CRC-32; the peers get one over each payload. Cold: an epoch, or three seconds of it, after the
page cache was told to forget the files; warm: then, again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.bench.figure import Figure, fastest
from tests.bench.readers import Reader, forget, in_turns, made, read, readers
from tests.bench.workload import LARGE, SMALL, Workload

ROUNDS, SECONDS, LONGEST = 3, 1.5, 3.0


def measure(quick: bool = False) -> Iterator[Figure]:
    """Records a second."""
    for workload in (SMALL, LARGE):
        given = replace(workload, records=1000) if quick else workload
        cold = in_turns(readers(False), 1, lambda reader, given=given: unread(reader, given))
        rounds = in_turns(readers(workload is SMALL), 1 if quick else ROUNDS, lambda reader, given=given: once(reader, given, quick))
        what = f"read {given.records:,} records of {given.name}, 1 process, every byte checked"
        yield fastest(what, "records/s", rounds["warm"], 1.5)
        yield fastest(f"{what}, cold", "records/s", cold["cold"], None)


def unread(reader: Reader, workload: Workload) -> dict[str, float]:
    """From the disk."""
    place = made(reader, workload)
    forget(place)
    return {"cold": rate(read(reader, place, seconds=LONGEST))}


def once(reader: Reader, workload: Workload, quick: bool) -> dict[str, float]:
    """From the page cache."""
    return {"warm": rate(read(reader, made(reader, workload), least=0.2 if quick else SECONDS, seconds=LONGEST))}


def rate(answer: dict[str, Any]) -> float:
    """Records a second after the first batch."""
    return answer["records"] / max(answer["seconds"], 1e-9)
