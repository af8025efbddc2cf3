"""Does it stay as it is? Processor time a record and the highest anonymous memory, from 10^4 to 10^6 records: convert, check, stats.

The input is an img2dataset folder of shards of 10,000 pictures of 3 kB, which are links to one: its bytes come from the page cache, what is
written is not. Each measurement is a process of its own with one worker; imports and a first, small run of the same lie outside. Sizes take
turns; processor time, because the machine is shared.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from shards import ustar
from tests.bench.figure import Figure
from tests.bench.planning import made, processor, watched
from tests.bench.workload import scratch

ROWS = 10_000  # of a shard
SHARDS = {1: 6, 10: 2, 100: 1}  # of a data set: how often it is measured
VERBS = ("convert", "check", "stats")
ENVIRONMENT: dict[str, dict[str, str]] = {verb: {} for verb in VERBS} | {
    "convert": {"ARROW_DEFAULT_MEMORY_POOL": "system"}
}  # as `pipelines` does
FLAT = 1.1


def measure(quick: bool = False) -> Iterator[Figure]:
    """The largest against the smallest."""
    sizes = {1: 1, 3: 1} if quick else SHARDS
    found: dict[str, dict[int, list[tuple[float, float]]]] = {verb: {size: [] for size in sizes} for verb in VERBS}
    for size in order(sizes):
        out = scratch() / "scale-out"
        for verb in VERBS:
            found[verb][size].append(measured(verb, folder(size), out))
        shutil.rmtree(out)
    small, *middle, large = sizes
    for verb, runs in found.items():
        for index, (what, unit) in enumerate(((f"{verb}: processor time a record", "us"), (f"{verb}: anonymous memory", "MB"))):
            values = {size: tuple(run[index] for run in runs[size]) for size in sizes}
            others = {f"{size * ROWS:,} records": values[size] for size in middle}
            name = f"{small * ROWS:,} records"
            yield Figure(f"{what}, {large * ROWS:,} records", unit, values[large], values[small], name, FLAT, below=True, others=others)


def order(sizes: dict[int, int]) -> list[int]:
    """Small ones before and after large ones: what else the machine does changes while they run."""
    rest = {size: times // 2 for size, times in sizes.items()}
    return [size for size in sizes for _ in range(sizes[size] - rest[size])] + [size for size in reversed(sizes) for _ in range(rest[size])]


def measured(verb: str, root: Path, out: Path) -> tuple[float, float]:
    """Microseconds a record, and megabytes."""
    command = [sys.executable, "-m", "tests.bench.scale", verb, str(root), str(out)]
    said, anonymous = watched(command, ENVIRONMENT[verb])
    return 1e6 * said["seconds"] / said["records"], anonymous / 1e6


def main(verb: str, root: Path, out: Path) -> None:
    """Do it, after a small run of the same, and say what it took."""
    with tempfile.TemporaryDirectory(dir=scratch()) as warm:
        work(verb, folder(1), Path(warm, "out"), 500)()
    run = work(verb, root, out, None)
    began = processor(resource.RUSAGE_SELF)
    records = run()
    print(json.dumps({"seconds": processor(resource.RUSAGE_SELF) - began, "records": records}))


def work(verb: str, root: Path, out: Path, limit: int | None) -> Callable[[], int]:
    """What does it, and says how many records there were."""
    from pipelines.ingest import Plan, ingest
    from pipelines.laion import Laion
    from shards.check import check
    from shards.stats import stats

    def convert() -> int:
        return ingest(Laion(annotations=(root,)), out, Plan(limit=limit)).totals["written"]

    if limit is not None and verb != "convert":
        convert()
    found: dict[str, Callable[[], Any]] = {"convert": convert, "check": partial(check, out), "stats": partial(stats, out)}
    return lambda: counted(found[verb]())


def counted(found: Any) -> int:
    """Records, of what each of them gives."""
    if isinstance(found, int):
        return found
    return found["totals"]["written"] if isinstance(found, dict) else found.records


def folder(number: int) -> Path:
    """An img2dataset folder of so many shards, all of them one."""

    def make(root: Path) -> None:
        root.mkdir()
        pictures = [picture(seed) for seed in range(500)]
        keys = [f"{n:09d}" for n in range(ROWS)]
        with (root / "00000.tar").open("wb") as tar:
            for n, key in enumerate(keys):
                data = numbered(pictures[n % len(pictures)], n)
                tar.write(ustar.header(f"{key}.jpg", len(data)) + data + ustar.padding(len(data)))
            tar.write(ustar.END)
        columns = {"url": [f"http://example.org/{n}" for n in range(ROWS)], "key": keys, "status": ["success"] * ROWS}
        pq.write_table(pa.table({**columns, "caption": [f"picture {n} of a fish" for n in range(ROWS)]}), root / "00000.parquet")
        (root / "00000_stats.json").write_text(json.dumps({"count": ROWS, "successes": ROWS}))
        for shard in range(1, number):
            for suffix in (".tar", ".parquet", "_stats.json"):
                os.link(root / f"00000{suffix}", root / f"{shard:05d}{suffix}")

    return made(f"laion-{number}", make)


def picture(seed: int) -> bytes:
    """A JPEG of 3 kB."""
    coarse_HWC = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse_HWC).resize((96, 96)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def numbered(jpeg: bytes, number: int) -> bytes:
    """The JPEG with a comment after its first marker: no two of a shard are equal."""
    comment = f"{number:08d}".encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
