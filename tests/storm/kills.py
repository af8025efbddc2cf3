"""Kills: kill -9 of any process at random moments, the same command again until it is done, and then the sums.

A victim is a command with what it works on. It is killed again and again, wherever it happens to be, some times in a row at most;
whenever it comes to its end, its result is compared with that of a run that nobody disturbed, and it begins anew. Runs are forked from
this process, which has everything imported, so that kills land in the work; those with worker processes start these as always.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import pipelines.ingest
import pipelines.llava  # noqa: F401 - before the fork
import shards
from pipelines.__main__ import main as pipelines_main
from shards.__main__ import main as shards_main
from shards.order import Order
from shards.place import at
from shards.stream import Stream
from tests import ceph
from tests.shards.foreign_tars import img2dataset
from tests.shards.records import picture, several

ROWS = 200
FILE = "file "  # before the name of what is a file and no record
DEADLINE = 120.0  # seconds of a run
IN_A_ROW = 6  # kills; then it may come to its end


class Struck(NamedTuple):
    """What came of a victim's kills."""

    row: str
    kills: int
    finished: int  # runs that came to their end, each compared with the undisturbed one
    records: int  # that these should hold, all together
    lost: int
    doubled: int
    altered: int
    wrong: list[str]


class Victim(ABC):
    """A command that is killed."""

    row: str

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)

    @abstractmethod
    def run(self) -> int:
        """In a process of its own: the exit status."""

    @abstractmethod
    def result(self) -> list[tuple[str, bytes]]:
        """What a run that is done has left, as records: of each a name and its content. Empty it."""

    def whom(self, child: int, chance: random.Random) -> int | None:
        """The process to kill; None for all of the group."""
        return None


def struck(victim: Victim, kills: int, chance: random.Random) -> Struck:
    """So many kills, and at the end a run that nobody disturbs."""
    began = time.monotonic()
    assert _ended(_forked(victim)) == 0, (victim.root / "stderr").read_text()
    took = max(0.02, time.monotonic() - began)
    expected = victim.result()
    landed, row, finished, wrong = 0, 0, 0, []
    sums: Counter[str] = Counter()
    while landed < kills or row or not finished:
        child, strike = _forked(victim), landed < kills and row < IN_A_ROW
        if strike:
            time.sleep(chance.uniform(0, took * chance.choice((0.1, 0.5, 1.0))))
            _kill(child, victim.whom(child, chance))
        status, said = _ended(child), (victim.root / "stderr").read_text()
        if strike and (status == -signal.SIGKILL or (status == 2 and "a worker died" in said)):
            landed, row = landed + 1, row + 1
            continue
        if status != 0:
            wrong.append(f"exit status {status} behind {landed} kills: {said[-1000:]}")
            break
        finished, row = finished + 1, 0
        sums += _compared(expected, victim.result(), wrong)
    records = finished * sum(not name.startswith(FILE) for name, _ in expected)
    return Struck(victim.row, landed, finished, records, sums["lost"], sums["doubled"], sums["altered"], wrong)


def _compared(expected: list[tuple[str, bytes]], found: list[tuple[str, bytes]], wrong: list[str]) -> Counter[str]:
    names, contents, wanted = Counter(name for name, _ in found), dict(found), dict(expected)
    sums = Counter(
        lost=sum(name not in names for name in wanted),
        doubled=sum(number - 1 for number in names.values()) + sum(name not in wanted for name in names),
        altered=sum(contents[name] != content for name, content in wanted.items() if name in contents),
    )
    if sums.total():
        wrong.append(str(dict(sums)))
    return +sums


def _forked(victim: Victim) -> int:
    child = os.fork()
    if child == 0:
        os.setsid()
        status = 9
        try:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 1)
            os.dup2(os.open(victim.root / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
            status = victim.run()
        finally:
            os._exit(status)
    return child


def _kill(child: int, whom: int | None) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it may be done by now, or not yet have a group of its own
        os.kill(whom, signal.SIGKILL) if whom is not None else os.killpg(child, signal.SIGKILL)


def _ended(child: int) -> int:
    """Its exit status, below 0 for a signal. Kills what takes too long."""
    until = time.monotonic() + DEADLINE
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"a run took more than {DEADLINE:g} s")
        time.sleep(0.002)


# The victims.


class Converting(Victim):
    """A conversion by one process: the driver writes, hashes and commits by itself."""

    row = "pipelines convert, one process"
    workers = 1

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A picture."}]
        rows: list[Any] = [{"id": n, "image": f"{n}.jpg", "conversations": said} for n in range(ROWS)]
        rows[30]["image"], rows[70], rows[90]["conversations"] = "gone.jpg", {"id": 70}, []
        (root / "images").mkdir()
        for n in range(ROWS):
            (root / f"images/{n}.jpg").write_bytes(picture(24, 16, n))
        (root / "rows.json").write_text(json.dumps(rows))
        self.out = str(root / "out")

    def run(self) -> int:
        given = ["--annotations", str(self.root / "rows.json"), "--images", str(self.root / "images"), "--shard-bytes", "8KiB"]
        return pipelines_main(["convert", "llava", *given, "--out", self.out, "--workers", str(self.workers)])

    def result(self) -> list[tuple[str, bytes]]:
        """Every record and reject, and every file."""
        found = _records(self.out)
        shutil.rmtree(self.out)
        return found


def _records(where: str) -> list[tuple[str, bytes]]:
    place = at(where)
    found = [(sample.key, msgspec.json.encode(sample.record) + bytes(sample.image(0))) for sample in shards.open(place)]
    return found + [(f"{FILE}{name}", bytes(place.read(name))) for name, _ in place.names() if not name.startswith("_lease/")]


class Workers(Converting):
    """A conversion by two workers: one of them is killed, or the driver alone, or all."""

    row = "pipelines convert, two workers: one of them, the driver, or all"
    workers = 2

    def whom(self, child: int, chance: random.Random) -> int | None:
        kind = chance.choice(("worker", "worker", "driver", "all"))
        children = _children(child)
        if kind == "worker" and children:
            return chance.choice(children)
        return child if kind == "driver" else None


def _children(pid: int) -> list[int]:
    """Its worker processes."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
    except OSError:
        return []


class Uploading(Converting):
    """A conversion to object storage: shards are on their way when it is killed."""

    row = "pipelines convert to S3: shards on their way up"

    def __init__(self, root: Path, bucket: str) -> None:
        super().__init__(root)
        self.bucket, self.turn = bucket, 0
        self.out = f"{bucket}/0"

    def result(self) -> list[tuple[str, bytes]]:
        """In a process of its own: a client of the store does not live on in a forked child."""
        path = self.root / "found"
        child = os.fork()
        if child == 0:
            status = 9
            try:
                path.write_bytes(msgspec.msgpack.encode(_records(self.out)))
                status = 0
            finally:
                os._exit(status)
        assert _ended(child) == 0
        self.turn += 1
        self.out = f"{self.bucket}/{self.turn}"
        return msgspec.msgpack.decode(path.read_bytes(), type=list[tuple[str, bytes]])


class Checking(Victim):
    """`shards check --deep`: killed, it has changed nothing, and the next one says the same."""

    row = "shards check --deep"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        shards.write(root / "place", several(150), shard_bytes=8 << 10)

    def run(self) -> int:
        return shards_main(["check", str(self.root / "place"), "--deep", "--json", "--workers", "2"])

    def result(self) -> list[tuple[str, bytes]]:
        return _records(str(self.root / "place"))


class Indexing(Victim):
    """`shards index`: killed, there is no manifest, and the next one makes the same files."""

    row = "shards index"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        img2dataset(root / "tars", [20] * 8)

    def run(self) -> int:
        return shards_main(["index", str(self.root / "tars"), "--workers", "1"])

    def result(self) -> list[tuple[str, bytes]]:
        found = _records(str(self.root / "tars"))
        (self.root / "tars/manifest.json").unlink()
        shutil.rmtree(self.root / "tars/_index")
        return found


class Reading(Victim):
    """A reader of an epoch that saves its draw with every batch, as a trainer does with a checkpoint, and goes on from there."""

    row = "a training reader, from its last saved draw"
    records, batch = 400, 8

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        shards.write(root / "place", several(self.records), shard_bytes=8 << 10)
        self.log = root / "log"

    def run(self) -> int:
        lines = self.log.read_bytes().splitlines(keepends=True) if self.log.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        self.log.write_bytes(b"".join(whole))
        draw = json.loads(whole[-1])[0] if whole else 0
        with shards.open(self.root / "place") as data, self.log.open("ab", buffering=0) as log:
            order = Order([len(shard) for shard in data.shards], 7, window=4)
            stream = Stream(data, order, batch=self.batch, first=draw, workers=2, work=_seen)
            batches = iter(stream)
            while stream.draw < self.records:
                seen = next(batches)
                log.write(json.dumps([stream.draw, seen]).encode() + b"\n")
            batches.close()  # type: ignore[attr-defined]
        return 0

    def result(self) -> list[tuple[str, bytes]]:
        lines = [json.loads(line) for line in self.log.read_bytes().splitlines()]
        self.log.unlink()
        return [(key, str(checksum).encode()) for _, seen in lines for key, checksum in seen]


def _seen(sample: shards.Sample) -> tuple[str, int]:
    return sample.key, zlib.crc32(sample.image(0))


SHARES = {"convert": 8, "workers": 3, "index": 3, "check": 2, "read": 3, "upload": 1}


def storm(kills: int, seed: int, root: Path, bucket: str | None) -> Iterator[Struck]:
    """Every victim with its share of the kills."""
    makers = {"convert": Converting, "workers": Workers, "index": Indexing, "check": Checking, "read": Reading}
    shares = {name: share for name, share in SHARES.items() if name in makers or bucket}
    left, parts = kills, sum(shares.values())
    for name, share in shares.items():
        number = max(1, round(left * share / parts))
        left, parts = left - number, parts - share
        victim = Uploading(root / name, bucket) if name == "upload" and bucket else makers[name](root / name)
        try:
            yield struck(victim, number, random.Random(f"{seed} {name}"))
        except (TimeoutError, AssertionError) as error:
            yield Struck(victim.row, 0, 0, 0, 0, 0, 0, [f"{type(error).__name__}: {error}"])


def main() -> None:
    """python -m tests.storm.kills --kills N --seed S [--s3]: a line of JSON for each victim."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--s3", action="store_true", help="also a conversion to a real S3 service")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="storm-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        bucket = None
        if options.s3 and (why := ceph.missing()):
            print(f"kills: no uploads, {why}", file=sys.stderr)
        elif options.s3:
            service = stack.enter_context(ceph.running())
            os.environ |= service.environment
            bucket = service.bucket()
        for found in storm(options.kills, options.seed, root, bucket):
            print(json.dumps(found._asdict()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
