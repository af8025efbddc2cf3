"""Readers: shardweave and its peers, each asked in a process of its own, in its own environment, by the protocol of peers/."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.figure import OURS
from tests.bench.workload import Workload, scratch

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 120.0  # seconds a process
MAKING = 1800.0


class NotThere(Exception):
    """What a benchmark needs and this machine has not: one line."""


@dataclass(frozen=True)
class Reader:
    """One way to read."""

    name: str
    module: str  # of tests.bench.peers
    environment: str  # the folder of its virtual environment
    format: str  # the folder of its data
    maker: str = ""  # whose module made that, where it is not this one's
    s3: bool = False
    resumes: bool = True  # from a state of its own
    caches: bool = False  # keeps what it fetched
    variant: bool = False  # of one that is in the list, and slower

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.environment == ".venv" else ROOT / self.environment / "bin" / "python"


READERS = (
    Reader(OURS, "ours", ".venv", "ours", s3=True, caches=True),
    Reader("webdataset 0.2.111", "webdataset", ".venv", "webdataset", resumes=False, caches=True, variant=True),
    Reader("webdataset 1.0.2", "webdataset", ".venv-peers", "webdataset", resumes=False, caches=True, variant=True),
    Reader("webdataset 1.0.2, mtime=0", "webdataset", ".venv-peers", "ours", s3=True, resumes=False, caches=True),
    Reader("wids", "wids", ".venv-peers", "wids"),
    Reader("HF datasets", "hf", ".venv-peers", "hf", s3=True),
    Reader("litdata", "litdata", ".venv-peers", "litdata", s3=True, caches=True),
    Reader("energon", "energon", ".venv-peers", "energon", s3=True),
    Reader("mosaicml-streaming", "mosaic", ".venv-mosaic", "mosaic", s3=True, caches=True),
)


def readers(variants: bool = True) -> list[Reader]:
    """Those that can run here, ours first; only the modules that $BENCH_ONLY names, if any. Raises NotThere where no peer can."""
    only = [name for name in os.environ.get("BENCH_ONLY", "").split(",") if name]
    found = [reader for reader in READERS if reader.python.exists() and (not only or reader.module in only)]
    if not only and not any(reader.environment != ".venv" for reader in found):
        raise NotThere("no peers here: `make bench-peers` makes their environments")
    return [reader for reader in found if variants or not reader.variant]


def made(reader: Reader, workload: Workload) -> Path:
    """The folder with the workload in the reader's format; made where it is not there."""
    ours = workload.folder()
    folder = ours.parent / reader.format
    if not folder.exists():
        maker = next(other for other in READERS if other.module == reader.format)
        aside = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        print(f"      making {folder}", file=sys.stderr)
        done = process(maker, ["make", str(ours), str(aside), "--shard-bytes", str(workload.shard_bytes)], MAKING)
        if done.code != 0:
            raise RuntimeError(f"{maker.name} did not make {folder}: {done.errors[-2000:]}")
        aside.rename(folder)
    return folder


class Done(NamedTuple):
    """How a process ended. code: None where it was killed after its deadline."""

    code: int | None
    output: str
    errors: str


def process(
    reader: Reader,
    arguments: Sequence[str],
    deadline: float = DEADLINE,
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[int], None] | None = None,
) -> Done:
    """Run a reader's file. meanwhile: given the process id while it runs."""
    home = scratch() / "home"
    home.mkdir(exist_ok=True)
    given = {
        **os.environ,
        **{"TMPDIR": str(home), "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WIDS_CACHE": str(home / "wids")},
        **{"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore", **(environment or {})},
        "BENCH_BORN": str(time.time()),
    }
    command = [reader.python, "-m", f"tests.bench.peers.{reader.module}", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            if meanwhile:
                meanwhile(child.pid)
            output, errors = child.communicate(timeout=deadline)
            return Done(child.returncode, output, errors)
        except subprocess.TimeoutExpired:
            _kill(child.pid)
            output, errors = child.communicate()
            return Done(None, output, errors)
        finally:
            _kill(child.pid)  # workers that it left


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def read(reader: Reader, place: Path | str, environment: Mapping[str, str] | None = None, **options: Any) -> dict[str, Any]:
    """The reader's answer. Raises RuntimeError where it gave none in time."""
    done = process(reader, ["read", str(place), *arguments(options)], environment=environment)
    answer = json.loads(done.output.splitlines()[-1]) if done.code is not None and done.output.strip() else {}
    if done.code is None:
        raise RuntimeError(f"{reader.name}: no end after {DEADLINE:.0f} s")
    if not answer or answer["error"]:
        raise RuntimeError(f"{reader.name}: {answer.get('error') or done.errors[-1000:]}")
    return answer


def arguments(options: Mapping[str, Any]) -> list[str]:
    """{"save_at": 5, "shuffle": True} as --save-at 5 --shuffle."""
    found: list[str] = []
    for name, value in options.items():
        if value is not None and value is not False:
            found += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return found


def in_turns(readers: Iterable[Reader], rounds: int, measure: Callable[[Reader], Mapping[str, float]]) -> dict[str, dict[str, list[float]]]:
    """figure -> reader -> rounds: A, B, C, A, B, C. Who fails is told, and left out from then on."""
    found: dict[str, dict[str, list[float]]] = {}
    standing = list(readers)
    for _ in range(rounds):
        for reader in list(standing):
            try:
                values = measure(reader)
            except RuntimeError as error:
                print(f"      {error}", file=sys.stderr)
                standing.remove(reader)
                continue
            for name, value in values.items():
                found.setdefault(name, {}).setdefault(reader.name, []).append(value)
    return found


def forget(folder: Path) -> None:
    """Let the page cache drop the files of a folder: what is read next comes from the disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def empty_folder(name: str) -> Iterator[Path]:
    """In the scratch folder, and gone afterwards."""
    folder = scratch() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
