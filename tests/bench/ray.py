"""Converting on Ray: two workers of a cluster of this machine beside two local processes, on the same records in the same run.

Clusters and workers are started, and warm, before the clock starts, as they are in `write`; what the start takes is told for itself. No
cluster that is there already is used.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shards.executor import executor
from tests.bench.figure import Figure
from tests.bench.photos import photos
from tests.bench.readers import NotThere
from tests.bench.write import by, warm

PHOTOS, ROUNDS, WORKERS = 20_000, 3, 2


def measure(quick: bool = False) -> Iterator[Figure]:
    """Records a second, and seconds until the workers work."""
    if find_spec("ray") is None:
        raise NotThere("ray is not installed (pip install -e .[ray])")
    os.environ["RAY_ADDRESS"] = "local"
    number = 1_000 if quick else PHOTOS
    rates: dict[str, list[float]] = {"local": [], "ray": []}
    starts: dict[str, list[float]] = {"local": [], "ray": []}
    with photos(number) as root:
        for _ in range(1 if quick else ROUNDS):
            for name in rates:
                start, seconds = run(name, root)
                starts[name].append(start)
                rates[name].append(number / seconds)
    what = f"convert {number:,} records of 107 kB, {WORKERS} workers on Ray"
    yield Figure(what, "records/s", tuple(rates["ray"]), tuple(rates["local"]), f"{WORKERS} local processes", 0.9)
    yield Figure(
        "start of a Ray cluster and its workers", "s", tuple(starts["ray"]), tuple(starts["local"]), "of local processes", None, below=True
    )


def run(name: str, root: Path) -> tuple[float, float]:
    """Seconds until all workers have answered, less what they were asked to wait, and of the conversion."""
    from pipelines.llava import Llava

    source: Any = Llava(annotations=(root / "rows.json",), images=(root / "images",))
    began = time.perf_counter()
    with executor(name, WORKERS) as on:
        list(on.map(warm, range(WORKERS)))
        start = time.perf_counter() - began - 1
        seconds = by(on, source, root / "out")
    shutil.rmtree(root / "out")
    return start, seconds
