"""What every reader is asked, and how it answers: python -m tests.bench.peers.NAME make|read ... in the reader's own environment.

`read` prints one line of JSON, an Answer. A reader's file has two functions:

    make(source, target, shard_bytes)   writes our tars' records (`records(source)`) in its own format, as its documentation says is best
    open(ask)                           (what yields `ask.work(key, jpeg, json)` of every record, None or what says its state)

Nothing here imports anything of ours, and torch only where a loader needs it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

SAVED = "saved"  # a line of --keys: what was served before it counts
BORN = float(os.environ.get("BENCH_BORN") or time.time())  # when whoever asks started the process
Work = Callable[[str, Any, Any], Any]


@dataclass(frozen=True)
class Ask:
    """How to read."""

    place: str  # a folder, or s3://bucket/prefix
    work: Work  # what to do to a record, in the worker
    batch: int  # records that a worker hands over together
    workers: int  # processes beside this one; 0: none
    shuffle: bool
    state: Any  # to go on from; None: the beginning
    skip: int  # records that were served before; for readers without a state
    cache: str  # an empty folder for what is fetched, or what the run before left there
    tensors: bool  # whether work gives (key, pixels)
    stateful: bool  # whether a state is wanted
    rank: int
    ranks: int
    processes: bool  # workers are to be processes, where there is a choice

    @property
    def plain(self) -> bool:
        """In this process, without a DataLoader: the fastest way of every reader."""
        return not (self.workers or self.tensors or self.stateful)

    @property
    def remote(self) -> bool:
        return "://" in self.place


class Record(NamedTuple):
    """What a tar of ours holds of one record."""

    key: str
    jpeg: bytes
    json: bytes


@dataclass
class Answer:
    """What came of it. Seconds are of the wall clock but for `cpu`, which is of all processes from the first batch on."""

    records: int
    seconds: float  # from the first batch to the end
    cpu: float
    imports: float  # from the start of the process to where the reader is opened
    first: float  # from there to the first batch
    memory: float  # MB, anonymous and shared, of all processes at the end
    waited: float  # seconds of `seconds` that the consumer waited for a batch
    error: str | None = None


def records(folder: Path) -> Iterator[Record]:
    """The records of a folder of our tars, in order, by the standard library."""
    for path in sorted(folder.glob("*.tar")):
        yield from tar_records(path)


def tar_records(path: Path) -> Iterator[Record]:
    """The records of one tar."""
    jpeg = b""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            data = file.read() if file else b""
            if member.name.endswith(".json"):
                yield Record(member.name.removesuffix(".json"), jpeg, data)
            else:
                jpeg = data


def touch(key: str, jpeg: Any, json: Any) -> str:
    """Every byte is looked at once, at 12 GB/s."""
    from isal import isal_zlib

    isal_zlib.crc32(json or b"", isal_zlib.crc32(jpeg))
    return key


def identify(key: str, jpeg: Any, json: Any) -> str:
    """What tells one record from another, and a whole one from one that was altered."""
    from isal import isal_zlib

    return f"{key} incomplete" if json is None else f"{key} {isal_zlib.crc32(jpeg):08x}"


def pixels(size: int, key: str, jpeg: Any, json: Any) -> tuple[str, Any]:
    """uint8 (size, size, 3), by Pillow, for everybody."""
    import numpy as np
    from PIL import Image

    picture = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return key, np.asarray(picture)


def loaded(data: Any, ask: Ask, loader: Any = None, collate: Callable[[list[Any]], Any] | None = None) -> Any:
    """A DataLoader, or one of its kind, over a data set whose items are what `work` gives."""
    from torch.utils.data import DataLoader

    collate = collate or (None if ask.tensors else column)
    prefetch = 4 if ask.workers else None
    return (loader or DataLoader)(data, batch_size=ask.batch, num_workers=ask.workers, collate_fn=collate, prefetch_factor=prefetch)


def column(items: list[Any]) -> tuple[list[Any]]:
    """Items as a batch of one column: mosaicml-streaming counts the samples of a batch by the length of its first."""
    return (items,)


class Batches:
    """Lists of a data set's items, in this process; to be gone through again and again. begin: gives the items."""

    def __init__(self, begin: Callable[[], Iterable[Any]], size: int) -> None:
        self._begin, self._size = begin, size

    def __iter__(self) -> Iterator[list[Any]]:
        return batched(self._begin(), self._size)


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of items."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def keys(batch: Any) -> list[str]:
    """The first column of a collated batch, or the batch itself."""
    return batch if isinstance(batch[0], str) else list(batch[0])


def main(make: Callable[[Path, Path, int], None], open: Callable[[Ask], tuple[Iterable[Any], Callable[[], Any] | None]]) -> None:
    """The command line of a reader's file."""
    options = _parser().parse_args()
    if options.task == "make":
        return make(options.place, options.target, options.shard_bytes)
    ask = Ask(
        place=options.place,
        work={"touch": touch, "identify": identify}.get(options.work) or partial(pixels, int(options.work)),
        batch=options.batch,
        workers=options.workers,
        shuffle=options.shuffle,
        state=pickle.loads(options.state.read_bytes()) if options.state and options.state.exists() else None,
        skip=options.skip,
        cache=str(options.cache),
        tensors=options.work not in ("touch", "identify"),
        stateful=bool(options.state or options.save),
        rank=int(os.environ.get("RANK", "0")),
        ranks=int(os.environ.get("WORLD_SIZE", "1")),
        processes=options.processes,
    )
    answer = Answer(0, 0.0, 0.0, time.time() - BORN, 0.0, 0.0, 0.0)
    try:
        _read(ask, open, options, answer)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        answer.error = f"{type(error).__name__}: {error}"[:300]
    print(json.dumps(asdict(answer)), flush=True)
    sys.stderr.flush()
    os._exit(answer.error is not None)  # what a reader does at exit is no part of the measurement


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    tasks = parser.add_subparsers(dest="task", required=True)
    make = tasks.add_parser("make")
    make.add_argument("place", type=Path)
    make.add_argument("target", type=Path)
    make.add_argument("--shard-bytes", type=int, default=64 << 20)
    read = tasks.add_parser("read")
    read.add_argument("place")
    read.add_argument("--work", default="touch", help="touch, identify, or a size in pixels")
    read.add_argument("--workers", type=int, default=0)
    read.add_argument("--processes", action="store_true")
    read.add_argument("--batch", type=int, default=64)
    read.add_argument("--shuffle", action="store_true")
    read.add_argument("--seconds", type=float, default=1e9, help="stop after so many; below, whole epochs are read again")
    read.add_argument("--least", type=float, default=0.0, help="begin another epoch unless so many seconds have gone by")
    read.add_argument("--records", type=int, default=1 << 60, help="stop after so many")
    read.add_argument("--step", type=float, default=0.0, help="seconds that the consumer takes for a batch")
    read.add_argument("--state", type=Path, help="go on from the state in this file, if there is one")
    read.add_argument("--skip", type=int, default=0)
    read.add_argument("--save", type=Path, help="write the state here once --save-at records are served")
    read.add_argument("--save-at", type=int, default=0)
    read.add_argument("--keys", type=Path, help="append what was served here, a line a record, as it comes")
    read.add_argument("--cache", type=Path)
    return parser


def _read(ask: Ask, open: Callable[[Ask], tuple[Iterable[Any], Callable[[], Any] | None]], options: Any, answer: Answer) -> None:
    began = time.perf_counter()
    source, state = open(ask)
    served = options.keys.open("a") if options.keys else None
    first = cpu = ready = 0.0
    while True:
        for batch in source:
            if not first:
                first, cpu = time.perf_counter(), cpu_seconds()
                answer.first = first - began
            else:
                answer.records += len(keys(batch))
                answer.waited += time.perf_counter() - ready
            if served:
                served.write("".join(f"{key}\n" for key in keys(batch)))
                served.flush()
            if served and answer.records + ask.batch == options.save_at:
                if state:
                    aside = options.save.with_suffix(".tmp")
                    aside.write_bytes(pickle.dumps(state()))
                    aside.rename(options.save)
                served.write(f"{SAVED}\n")
                served.flush()
            if options.step:
                time.sleep(options.step)
            answer.seconds = time.perf_counter() - first
            if answer.records + ask.batch >= options.records or answer.seconds >= options.seconds:
                break
            ready = time.perf_counter()
        if answer.seconds >= options.least or not first:
            break
        if answer.records + ask.batch >= options.records:
            break
    answer.cpu = cpu_seconds() - cpu
    answer.memory = sum(resident(process) for process in processes())


def processes() -> list[int]:
    """This one and its descendants."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _stat(int(name))):
            parents.setdefault(int(stat[1]), []).append(int(name))
    found = [os.getpid()]
    for process in found:
        found += parents.get(process, [])
    return found


def cpu_seconds() -> float:
    """Of this process and its descendants, so far; of those that ended, too, once they were waited for."""
    ticks = sum(sum(map(int, stat[11:15])) for process in processes() if (stat := _stat(process)))
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(process: int) -> list[str]:
    """The fields after the name, from the state on."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def resident(process: int) -> float:
    """MB, anonymous and shared, of a process."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))) / 1000
