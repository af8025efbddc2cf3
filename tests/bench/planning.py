"""Planning at size: everything before the first worker writes, of ten million inputs, on the driver.

What is real: names in folders of 10,000, made once, in the scratch folder; that they are listed, sorted, hashed and cut into units; the
units' way to the place; processes that open and hash every file. What is not: of ten million names one million are made, the others are
links to their folders; and the files of a folder are one file, of half a kilobyte, in the page cache. The figures are the driver's own:
processor seconds, because the rest is the workers' and shrinks with their number, and the highest anonymous memory (RssAnon). Beside
them: the wall clock and the processor time of two workers here.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.check import watch
from tests.bench.figure import Figure
from tests.bench.workload import scratch

NAMES, FOLDER, REAL = 10_000_000, 10_000, 1_000_000
ZIPS = 23_099
SHARDS, ROWS = 1_000, 10_000
SECONDS, MEGABYTES = 60.0, 500.0


def measure(quick: bool = False) -> Iterator[Figure]:
    """Each planned in a process of its own, with two workers."""
    share = 100 if quick else 1
    cases = (
        ("grand", f"GranD, {NAMES // share:,} scenes", scenes, NAMES // share),
        ("pictures", f"a store of {NAMES // share:,} pictures", scenes, NAMES // share),
        ("mmc4", f"MMC4, {ZIPS // share:,} zips", zips, ZIPS // share),
        ("laion", f"LAION, {SHARDS // share:,} shards of {ROWS:,} rows", shards, SHARDS // share),
    )
    for name, what, make, number in cases:
        yield from figures(f"planning {what}", planned(name, make(number)))


class Planned(NamedTuple):
    """What a process said of its planning, and what it took."""

    units: int
    driver: float  # processor seconds
    workers: float
    wall: float
    anonymous: int  # bytes, the highest
    before: int  # bytes, when everything was imported


def figures(what: str, found: Planned) -> Iterator[Figure]:
    """Seconds and memory, against what is allowed."""
    beside = {f"its {found.units:,} units: wall clock with two workers": (found.wall,), "the two workers": (found.workers,)}
    yield Figure(what, "s of the driver's processor", (found.driver,), (SECONDS,), "allowed", 1.0, below=True, others=beside)
    megabytes, before = found.anonymous / 1e6, {"before it began": (found.before / 1e6,)}
    yield Figure(f"{what}: anonymous memory", "MB", (megabytes,), (MEGABYTES,), "allowed", 1.0, below=True, others=before)


def planned(name: str, root: Path) -> Planned:
    """The same command in a process that is watched."""
    said, anonymous = watched([sys.executable, "-m", "tests.bench.planning", name, str(root)])
    return Planned(anonymous=anonymous, **said)


def watched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[dict[str, Any], int]:
    """The JSON that a command says, and the highest anonymous memory of its process in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})})
    highest = [0]
    watcher = threading.Thread(target=watch, args=(process, highest))
    watcher.start()
    said, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"bench: {' '.join(command)} failed")
    return json.loads(said), highest[0]


def main(name: str, root: Path) -> None:
    """Plan, and say what it took."""
    from pipelines import grand, ingest, inputs, laion, mmc4, spool, stores  # noqa: F401 - that imports are no part of it
    from shards.executor import executor
    from shards.place import at

    out = scratch() / "planning-out"
    before = anonymous()
    began, used = time.perf_counter(), processor(resource.RUSAGE_SELF)
    with executor("local", 2) as on:
        if name == "pictures":
            units: Sequence[Any] = []
            inputs._pictures(root, on.map)
        else:
            source = {"grand": grand.Grand, "mmc4": mmc4.Mmc4, "laion": laion.Laion}[name](annotations=(root,))
            units = source.units(None)
            if look := getattr(source, "look", None):
                look(units, on.map)
            ingest._content(source, ingest.Plan(), on)
            with spool.spooled(at(out), units) as spooled:
                assert len(spooled) == len(units)
    driver, wall = processor(resource.RUSAGE_SELF) - used, time.perf_counter() - began
    shutil.rmtree(out, ignore_errors=True)
    workers = processor(resource.RUSAGE_CHILDREN)
    print(json.dumps({"units": len(units), "driver": driver, "workers": workers, "wall": wall, "before": before}))


def processor(who: int) -> float:
    """Seconds, in and out of the kernel."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def anonymous() -> int:
    """Bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def scenes(number: int) -> Path:
    """A folder of so many scenes, ten thousand in each of its folders."""
    scene = {"objects": [{"id": n, "bbox": [n, n, n + 9, n + 9], "labels": ["thing"], "score": 0.9} for n in range(5)]}
    real = made(f"real-{min(number, REAL)}", lambda root: linked(root, min(number, REAL), json.dumps({"sa_0.jpg": scene}).encode()))
    folders = sorted(real.iterdir())

    def make(root: Path) -> None:
        root.mkdir()
        for n in range(-(-number // FOLDER)):
            (root / f"part_{n:06d}").symlink_to(folders[n % len(folders)])

    return made(f"scenes-{number}", make)


def linked(root: Path, number: int, data: bytes) -> None:
    """So many names of files with these bytes."""
    for first in range(0, number, FOLDER):
        folder = root / f"sa_{first // FOLDER:06d}"
        folder.mkdir(parents=True)
        one = folder / f"sa_{first}.json"
        one.write_bytes(data)
        for name in range(first + 1, min(number, first + FOLDER)):
            os.link(one, folder / f"sa_{name}.json")


def zips(number: int) -> Path:
    """A folder of so many MMC4 shards, all of them one."""

    def make(root: Path) -> None:
        root.mkdir()
        document = {"text_list": ["Lock the door.", "Press the switch."], "image_info": [], "similarity_matrix": []}
        with zipfile.ZipFile(root.with_suffix(".one"), "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("docs.jsonl", "".join(json.dumps({**document, "url": f"http://example.org/{n}"}) + "\n" for n in range(100)))
        for shard in range(number):
            os.link(root.with_suffix(".one"), root / f"docs_no_face_shard_{shard}_v2.jsonl.zip")
        root.with_suffix(".one").unlink()

    return made(f"zips-{number}", make)


def shards(number: int) -> Path:
    """An img2dataset folder of so many shards, all of them one without pixels: planning opens no tar."""

    def make(root: Path) -> None:
        root.mkdir()
        columns = {"url": [f"http://example.org/{n}" for n in range(ROWS)], "key": [f"{n:09d}" for n in range(ROWS)]}
        pq.write_table(pa.table({**columns, "status": ["success"] * ROWS}), root / "00000.parquet")
        with tarfile.open(root / "00000.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo("000000000.jpg"), io.BytesIO())
        (root / "00000_stats.json").write_text(json.dumps({"count": ROWS, "successes": ROWS}))
        for shard in range(1, number):
            for suffix in (".tar", ".parquet", "_stats.json"):
                os.link(root / f"00000{suffix}", root / f"{shard:05d}{suffix}")

    return made(f"shards-{number}", make)


def made(name: str, make: Callable[[Path], None]) -> Path:
    """What this makes, in the scratch folder, made once."""
    root = scratch() / "planning" / name
    if not root.exists():
        part = root.with_name(f"{name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(exist_ok=True)
        make(part)
        part.rename(root)
    return root


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
