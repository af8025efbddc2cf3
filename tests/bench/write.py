"""Writing shards: ours with measured pictures, hashes and index, beside webdataset's ShardWriter and GNU tar, of the same files.

Imports and the start of workers lie outside the timed region; reading the files, planning, os.sync lie inside it, for everybody. The floor
is the processor time of what nobody can leave out: reading, CRC-32, XXH3-128, writing, and sha256 side by side, in a bare loop.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash
from isal import isal_zlib
from webdataset.writer import ShardWriter

from shards.executor import Executor, executor
from shards.settle import LANES, sha256s
from tests.bench.figure import Figure
from tests.bench.photos import photos

PHOTOS, ROUNDS = 30_000, 3


def measure(quick: bool = False) -> Iterator[Figure]:
    """Records a second at one and at two workers."""
    number = 3_000 if quick else PHOTOS
    with photos(number) as root:
        runs: dict[str, Callable[[], float]] = {
            "tar": lambda: timed(lambda: tar(root)),
            "webdataset": lambda: timed(lambda: webdataset(root)),
            "ours 1": lambda: ours(root, 1),
            "ours 2": lambda: ours(root, 2),
        }
        rates = {name: [] for name in runs}
        processor: tuple[list[float], list[float]] = ([], [])
        for _ in range(1 if quick else ROUNDS):
            for name, run in runs.items():
                began = _processor()
                rates[name].append(number / run())
                if name == "ours 1":
                    processor[0].append(1e6 * (_processor() - began) / number)
                shutil.rmtree(root / "out", ignore_errors=True)
            began = _processor()
            bare(root)
            processor[1].append(1e6 * (_processor() - began) / number)
            shutil.rmtree(root / "out")
    found = {name: tuple(values) for name, values in rates.items()}
    for workers, against_webdataset, against_tar in ((1, 1.4, 0.5), (2, 2.0, 0.75)):
        what = f"write {number:,} JPEGs, header verified, {workers} worker{'s' * (workers > 1)}"
        yield Figure(what, "records/s", found[f"ours {workers}"], found["webdataset"], "webdataset ShardWriter", against_webdataset)
        yield Figure(what, "records/s", found[f"ours {workers}"], found["tar"], "tar cf", against_tar)
    what = f"write {number:,} JPEGs, header verified: processor time a record"
    yield Figure(what, "us", tuple(processor[0]), tuple(processor[1]), "what nobody can leave out", None, below=True)


def timed(work: Callable[[], Any]) -> float:
    """Seconds until it is done and on the disk."""
    os.sync()
    began = time.perf_counter()
    work()
    os.sync()
    return time.perf_counter() - began


def tar(root: Path) -> None:
    (root / "out").mkdir()
    subprocess.run(["tar", "cf", root / "out/x.tar", "-C", root / "images", "."], check=True)


def webdataset(root: Path) -> None:
    (root / "out").mkdir()
    with ShardWriter(str(root / "out/%06d.tar"), maxsize=256 << 20, verbose=0) as writer:
        for row in json.loads((root / "rows.json").read_bytes()):
            data = (root / "images" / row["image"]).read_bytes()
            writer.write({"__key__": row["id"].split(".")[0], "jpg": data, "json": row})


def _processor() -> float:
    """Seconds of this process's threads, in and out of the kernel."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def bare(root: Path) -> None:
    """Read, CRC-32, XXH3-128, write; sixteen files of a 64th of the pictures at a time through sha256. No records, no index."""
    names = sorted((root / "images").iterdir())
    size = -(-len(names) // 64)
    (root / "out").mkdir()
    files: list[tuple[int, int]] = []
    for start in range(0, len(names), size):
        files.append(_joined(names[start : start + size], root / f"out/{start:06d}"))
        if len(files) == LANES or start + size >= len(names):
            sha256s(files)
            while files:
                os.close(files.pop()[0])


def _joined(names: list[Path], target: Path) -> tuple[int, int]:
    """A file of all these, open, and its size."""
    file, written = os.open(target, os.O_RDWR | os.O_CREAT), 0
    for name in names:
        with name.open("rb", buffering=0) as picture:
            data = picture.read()
        isal_zlib.crc32(data)
        xxhash.xxh3_128_digest(data)
        written += os.write(file, data)
    return file, written


def ours(root: Path, workers: int, verify: str = "header") -> float:
    """Seconds for plan, conversion by warm workers, and manifest."""
    from pipelines.ingest import Plan, ingest
    from pipelines.llava import Llava

    source = Llava(annotations=(root / "rows.json",), images=(root / "images",), verify=verify)
    if workers == 1:
        ingest(source, root / "warm", Plan(limit=10))
        shutil.rmtree(root / "warm")
        return timed(lambda: ingest(source_again(source), root / "out", Plan()))
    with executor("local", workers) as on:
        return by(on, source, root / "out")


def source_again(source: Any) -> Any:
    """The same source without what it has computed already."""
    return replace(source)


def by(on: Executor, source: Any, folder: Path) -> float:
    """Seconds, by workers that are there and warm."""
    from pipelines.ingest import Plan, convert

    list(on.map(warm, range(2 * on.workers)))
    return timed(lambda: convert(source_again(source), folder, Plan(), on))


def warm(number: int) -> int:
    """What a worker does before its first unit; and long enough, so that each of them does it."""
    from pipelines import ingest, llava  # noqa: F401 - what unpickling the source would import

    ingest._warm()
    time.sleep(1)
    return number
