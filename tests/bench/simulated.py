"""10,000 shards of 10,000 records, of which one is real and has 10,000 names. python -m tests.bench.simulated PLACE DRAW reads a batch."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import shards
from shards import manifest
from shards.order import Order
from shards.stream import Stream
from tests.bench.peers.protocol import resident
from tests.bench.workload import Workload

BATCH = 64


@dataclass
class Answer:
    """seconds: from opening to the first batch. memory: MB, anonymous and shared."""

    seconds: float
    memory: float


def simulate(folder: Path, shards_wanted: int, records: int) -> None:
    """A data set of so many shards of so many records each: links to one."""
    real = Workload("simulated", 16, 16, 2.0, records, 1 << 30).folder()
    found = manifest.read(real)
    (info,) = found.shards
    rows = []
    for number in range(shards_wanted):
        name = f"{number:06d}-000"
        os.link(real / info.name, folder / f"{name}.tar")
        os.link((real / info.name).with_suffix(".parquet"), folder / f"{name}.parquet")
        rows.append(
            {"name": f"{name}.tar", **{key: getattr(info, key) for key in ("records", "images", "bytes", "sha256", "index_sha256")}}
        )
    os.link(real / "rejects.parquet", folder / "rejects.parquet")
    content = json.loads((real / manifest.MANIFEST).read_bytes())
    content["totals"] |= {"read": records * shards_wanted, "written": records * shards_wanted, "images": records * shards_wanted}
    content.pop("manifest_sha256")
    content |= {"shards": rows, "fingerprint": manifest.fingerprint(manifest.ShardInfo(**row) for row in rows)}
    (folder / manifest.MANIFEST).write_bytes(manifest.encode(content))


def first_batch(place: str, draw: int) -> Answer:
    """What a new process waits for, and what it then holds."""
    began = time.perf_counter()
    data = shards.open(place)
    stream = Stream(data, Order([len(shard) for shard in data.shards], 0), batch=BATCH, first=draw)
    assert len(next(iter(stream))) == BATCH
    return Answer(time.perf_counter() - began, resident(os.getpid()))


if __name__ == "__main__":
    print(json.dumps(asdict(first_batch(sys.argv[1], int(sys.argv[2])))), flush=True)
    os._exit(0)
