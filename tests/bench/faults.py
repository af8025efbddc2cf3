"""python -m tests.bench.faults [ROW ...] [--jobs N] [--go-on] [--write FILE]: what ours and every peer make of faults, as a table.

Each cell is a process of its own that reads 1,280 records in shards of 1.2 MB and writes down what it is served, record by record; that
is compared with what was written. After 90 s ($BENCH_DEADLINE) it counts as hung. Where something is killed, a second process reads on
from the state that the reader had saved by then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from shards import place
from tests import ceph
from tests import proxy as proxies
from tests.bench.figure import OURS
from tests.bench.harm import HARMS, files, middle
from tests.bench.part import rewrite
from tests.bench.peers import protocol
from tests.bench.readers import Done, NotThere, Reader, arguments, empty_folder, made, process, readers
from tests.bench.workload import Workload, scratch

RECORDS, BATCH = 1280, 16
DEADLINE = float(os.environ.get("BENCH_DEADLINE", "90"))
WORKLOAD = Workload("faults", 48, 48, 2.0, RECORDS, 1200 << 10)
OTHER = Workload("faults-other", 40, 40, 8.0, RECORDS, 1200 << 10)
DATA = r"\.(tar|bin|mds)(\?|$)"  # requests for records
STEP = 0.02  # seconds a batch, so that there is time to be killed in
NONE = "-"


class Run(NamedTuple):
    """One process: how it ended, and "key crc32" of every record that it was served and that counts."""

    done: Done
    served: list[str]


@dataclass(frozen=True)
class Store:
    """The S3 service and where it has the workload, by format. uploads: one at a time."""

    s3: ceph.S3
    places: dict[str, str] = field(default_factory=dict)
    uploads: threading.Lock = field(default_factory=threading.Lock)

    def place(self, reader: Reader) -> str:
        """Where the workload is in the reader's format."""
        with self.uploads:
            if reader.format not in self.places:
                self.places[reader.format] = f"{self.s3.bucket()}/data"
                upload(made(reader, WORKLOAD), self.places[reader.format])
            return self.places[reader.format]


def main() -> int:
    """1 where a fault did harm to ours that nobody noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.faults", description=__doc__)
    parser.add_argument("rows", nargs="*", help="beginnings of rows' names (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    parser.add_argument("--go-on", action="store_true", help="leave out the cells that an earlier run has kept")
    parser.add_argument("--write", type=Path, help="keep the table in this file, beside what else stands there")
    options = parser.parse_args()
    try:
        columns = readers()
    except NotThere as error:
        print(f"faults: {error}")
        return 2
    with service() as s3:
        rows = all_rows(Store(s3) if s3 else None)
        wanted = [name for name in rows if not options.rows or name.startswith(tuple(options.rows))]
        cells = filled(columns, {name: rows[name] for name in wanted}, options.jobs, kept() if options.go_on else {})
    table = report(columns, list(rows), kept())
    print(table)
    if options.write:
        rewrite(options.write, table)
    return int(any("**" in text for name, text in cells.items() if name.endswith(f" | {OURS}")))


Row = Callable[[Reader, Path], str]


def all_rows(store: Store | None) -> dict[str, Row]:
    """Name and cell of every fault; those of object storage where there is a service."""
    rows: dict[str, Row] = {name: partial(harmed, harm) for name, harm in HARMS.items()}
    if store:
        for name, rule in STORE_FAULTS.items():
            rows[f"S3: {name}"] = partial(stored, store, rule)
        rows["stale cache"] = partial(stale, store)
        rows["disk full"] = partial(full, store)
    return {**rows, "SIGKILL of a worker": worker_killed, "SIGKILL of a rank": rank_killed, "SIGKILL of the run": run_killed}


STORE_FAULTS: dict[str, dict[str, Any]] = {
    "500, three times": {"kind": "status", "status": 500, "times": 3},
    "503, three times": {"kind": "status", "status": 503, "times": 3},
    "reset in the body, three times": {"kind": "reset", "times": 3, "after": 1000},
    "stall in the body": {"kind": "stall", "times": 1, "after": 1000},
    "body ends early, three times": {"kind": "short", "times": 3, "after": 1000},
    "a shorter body than the object, three times": {"kind": "cut", "times": 3, "after": 1000},
    "a wrong byte, three times": {"kind": "wrong", "times": 3, "after": 1000},
}


def filled(columns: Sequence[Reader], rows: Mapping[str, Row], jobs: int, known: Mapping[str, str]) -> dict[str, str]:
    """Every cell, each kept as soon as it is known."""
    for reader in columns:
        made(reader, WORKLOAD)
    cells: dict[str, str] = {}
    lock = threading.Lock()

    def fill(name: str, row: Row, reader: Reader) -> None:
        key = f"{name} | {reader.name}"
        text = known.get(key)
        if text is None:
            with empty_folder(f"fault-{abs(hash(key)) % 10**9}") as folder:
                text = row(reader, folder)
        with lock:
            cells[key] = text
            keep({**kept(), key: text})
            print(f"{key}: {text}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(fill, name, row, reader) for name, row in rows.items() for reader in columns]:
            future.result()
    return cells


def kept() -> dict[str, str]:
    """The cells that were found so far."""
    path = scratch() / "faults.json"
    return json.loads(path.read_text()) if path.exists() else {}


def keep(cells: Mapping[str, str]) -> None:
    (scratch() / "faults.json").write_text(json.dumps(cells, indent=1))


def report(columns: Sequence[Reader], rows: Sequence[str], cells: Mapping[str, str]) -> str:
    """FAULTS.md."""
    names = [reader.name for reader in columns]
    lines = [
        "# Faults",
        "",
        f"`make faults`: each cell is a process that reads {RECORDS:,} records in shards of 1.2 MB; what it served is compared.",
        "",
        "* **unharmed**: every record was served once, as it was written. **noticed**: the reader ended with an error, or named every",
        "  record that is missing; then how many were served. **silent**: it ended as if all were well.",
        f"* **hung**: it was killed after {DEADLINE:.0f} s. A dash: the reader has no such thing. What is printed in bold did harm.",
        "* litdata and mosaicml-streaming have formats of their own: their files are cut and flipped at the corresponding places.",
        "* A shard damaged as a whole counts with all its records: over shardweave's budget of 1 % here, so that the reading ends at once.",
        "",
        f"| fault | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(f"| {row} | {' | '.join(cells.get(f'{row} | {name}', '') for name in names)} |" for row in rows),
        "",
    ]
    return "\n".join(lines)


# What becomes of a reader.


def run(reader: Reader, folder: Path, source: Path | str, *, rank: int = 0, again: bool = False, **given: Any) -> Run:
    """Read all of it in a process. environment, meanwhile: as `process` takes them; the rest are options of the protocol."""
    environment, meanwhile = given.pop("environment", {}), given.pop("meanwhile", None)
    keys = folder / f"keys-{rank}{'-again' if again else ''}"
    options = {"work": "identify", "batch": BATCH, "keys": keys, "shuffle": reader.name == OURS, **given}
    done = process(
        reader, ["read", str(source), *arguments(options)], DEADLINE, environment, partial(meanwhile, keys) if meanwhile else None
    )
    lines = keys.read_text().splitlines() if keys.exists() else []
    return Run(done, lines)


def verdict(runs: Sequence[Run], workload: Workload = WORKLOAD) -> str:
    """The cell: what was served in all these processes, and how the last of them ended."""
    return judged(runs, written(workload))


def judged(runs: Sequence[Run], wanted: Mapping[str, None]) -> str:
    """The same, given "key crc32" of every record there is."""
    if any(one.done.code is None for one in runs):
        return "**hung**"
    served = Counter(line for one in runs for line in one.served if line != protocol.SAVED)
    missing = wanted.keys() - served.keys()
    altered = sum(served[line] for line in served.keys() - wanted.keys())
    repeated = sum(number - 1 for line, number in served.items() if line in wanted)
    good = f"{len(wanted) - len(missing):,} served"
    ended = runs[-1].done
    if ended.code != 0:
        return f"noticed ({_error(ended)}), {good}" + (f", **{altered} altered**" if altered else "")
    if not missing and not altered and not repeated:
        return "unharmed"
    unnamed = sum(key.split()[0] not in ended.errors for key in missing)
    if not unnamed and not altered and not repeated:
        return f"noticed (named {len(missing)}), {good}"
    told = ", ".join(
        f"{number:,} {what}" for number, what in ((len(missing), "lost"), (altered, "altered"), (repeated, "repeated")) if number
    )
    return f"**silent: {told}**"


def written(workload: Workload) -> dict[str, None]:
    """ "key crc32" of every record, in order."""
    return {protocol.identify(*record): None for record in protocol.records(workload.folder())}


def _error(done: Done) -> str:
    """The name of the error."""
    with contextlib.suppress(ValueError, IndexError, KeyError):
        return str(json.loads(done.output.splitlines()[-1])["error"]).partition(":")[0]
    return f"exit {done.code}"


# The rows.


def harmed(harm: Callable[[Path], object], reader: Reader, folder: Path) -> str:
    """Files changed on the disk."""
    data = folder / "data"
    shutil.copytree(made(reader, WORKLOAD), data)
    if harm(data) is False:
        return NONE
    names = ",".join(path.name for path in files(made(reader, WORKLOAD)))
    return verdict([run(reader, folder, data, environment={"BENCH_TARS": names})])


def stored(store: Store, rule: Mapping[str, Any], reader: Reader, folder: Path) -> str:
    """Object storage that errs."""
    if not reader.s3:
        return NONE
    source = store.place(reader)
    with proxies.before(store.s3) as proxy:
        fault = proxy.fail(**aimed(rule, reader), method="GET")
        found = verdict([run(reader, folder, source, environment=proxy.environment, cache=_cache(reader, folder))])
        return found if fault.hits else f"{found} (the fault was not met)"


def aimed(rule: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    """The rule, made to meet records: a wrong byte lies in a picture, and the requests with which HF datasets first looks do not count."""
    found = {"path": DATA, **rule}
    shards = files(made(reader, WORKLOAD))
    if rule["kind"] == "wrong" and reader.module != "energon":  # it asks for one record at a time, the others for whole shards
        found["after"] = middle(shards[-1]).payload
    if "after" in rule and reader.module == "hf":  # three looks at every shard, and then it reads
        found |= {"path": rf"/{shards[-1].name}(\?|$)", "times": 3 + rule["times"]}
    return found


def _cache(reader: Reader, folder: Path) -> Path | None:
    """For those that keep what they fetch; webdataset reads URLs without."""
    return folder / "cache" if reader.caches and reader.module != "webdataset" else None


def stale(store: Store, reader: Reader, folder: Path) -> str:
    """Other data of the same names behind a cache that was filled before."""
    if not (reader.s3 and reader.caches):
        return NONE
    source = f"{store.s3.bucket()}/data"
    environment, cache = store.s3.environment, folder / "cache"
    with store.uploads:
        upload(made(reader, WORKLOAD), source)
    before = run(reader, folder, source, environment=environment, cache=cache)
    if verdict([before]) != "unharmed":
        return f"could not be tried: {verdict([before])}"
    with store.uploads:
        upload(made(reader, OTHER), source)
    return verdict([run(reader, folder, source, environment=environment, cache=cache, again=True)], OTHER)


def full(store: Store, reader: Reader, folder: Path) -> str:
    """A cache on a disk that is full before the data are in it."""
    if not (reader.s3 and _cache(reader, folder)):
        return NONE
    cache = folder / "cache"
    cache.mkdir()
    source = store.place(reader)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(cache)], capture_output=True).returncode:
        return "not tried: it needs the right to mount"
    try:
        return verdict([run(reader, folder, source, environment=store.s3.environment, cache=cache)])
    finally:
        subprocess.run(["umount", "-l", str(cache)], capture_output=True)


def worker_killed(reader: Reader, folder: Path) -> str:
    """One of two worker processes."""
    missed: list[bool] = []

    def kill(keys: Path, pid: int) -> None:
        wait_for(keys, lambda lines: len(lines) >= 8 * BATCH)
        missed.append(not kill_a_child(pid))

    found = run(reader, folder, made(reader, WORKLOAD), workers=2, processes=True, step=STEP, meanwhile=kill)
    return NONE if missed == [True] else verdict([found])


def kill_a_child(pid: int) -> bool:
    """The youngest worker process of a reader. False where it has none."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in children.read_text().split()] if children.exists() else []
    found = [child for child in found if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]
    for child in found[-1:]:
        os.kill(child, signal.SIGKILL)
    return bool(found)


def rank_killed(reader: Reader, folder: Path) -> str:
    """The second of two, some batches after it saved its state; the first goes on; then both are begun again from their states."""
    source = made(reader, WORKLOAD)

    def one(rank: int, again: bool) -> Run:
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "GLOBAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment |= {"NNODES": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
        given = {"environment": environment, "workers": 1, "step": STEP, "rank": rank}
        state = folder / f"state-{rank}"
        if again:
            return run(reader, folder, source, again=True, state=state, **given)
        given["meanwhile"] = kill_after_saving if rank == 1 else None
        return until_saved(run(reader, folder, source, save=state, save_at=RECORDS // 4, **given))

    with ThreadPoolExecutor(2) as pool:
        before = list(pool.map(partial(one, again=False), range(2)))
        after = list(pool.map(partial(one, again=True), range(2)))
    return verdict([*before, *after])


def run_killed(reader: Reader, folder: Path) -> str:
    """All of it, some batches after its state was saved in the middle."""
    source = made(reader, WORKLOAD)
    state = folder / "state"
    given = {"workers": 2, "step": STEP}
    first = run(reader, folder, source, save=state, save_at=RECORDS // 2, meanwhile=kill_after_saving, **given)
    again = run(reader, folder, source, again=True, state=state, **given)
    return verdict([until_saved(first), again])


def until_saved(found: Run) -> Run:
    """What was served before the state was saved; after it is served again."""
    lines = found.served
    return Run(found.done, lines[: lines.index(protocol.SAVED)] if protocol.SAVED in lines else lines)


def kill_after_saving(keys: Path, pid: int) -> None:
    """The whole process group, once some more were served."""
    wait_for(keys, lambda lines: protocol.SAVED in lines and len(lines) - lines.index(protocol.SAVED) > 3 * BATCH)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def wait_for(keys: Path, true: Callable[[list[str]], bool]) -> None:
    """Until that is true of what was served, or the deadline."""
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until and not (keys.exists() and true(keys.read_text().splitlines())):
        time.sleep(0.02)


# Object storage.


@contextlib.contextmanager
def service() -> Iterator[ceph.S3 | None]:
    """A running one, and its credentials in this process's environment; None, and a line, where there can be none."""
    if why := ceph.missing():
        print(f"faults: {why}: rows of object storage are left out", file=sys.stderr)
        yield None
        return
    with ceph.running() as s3:
        os.environ |= s3.environment
        yield s3


def upload(folder: Path, target: str) -> None:
    """The files of a folder, by their names."""
    there = place.at(target)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            there.upload(path.relative_to(folder).as_posix(), path)


if __name__ == "__main__":
    sys.exit(main())
