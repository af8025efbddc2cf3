"""Ingest: a source's units through workers into a finished data set, the same bytes however many workers and interruptions it took.

A unit is what a worker takes and what is redone after a crash: it counts once its commit is written (shards.manifest). One input item is
one record or one reject, so read = written + rejected by construction.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipelines.curation import Curation
from pipelines.inputs import inputs, options
from pipelines.source import Row, Source, Tally
from schemas import RecordError, Reject, RequestError, SourceError
from shards import manifest, memory, run
from shards.finish import finish
from shards.index import IndexBuilder
from shards.manifest import Manifest, RejectRow, ShardInfo
from shards.place import Place, at
from shards.processes import die_with
from shards.scratch import scratch
from shards.settle import Settling, gain, settling_for
from shards.write import versions
from shards.writer import SHARD_BYTES, UnitWriter


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a conversion is carried out, apart from what decides its bytes."""

    workers: int = 1
    shard_bytes: int = SHARD_BYTES
    limit: int | None = None
    curation: Curation = field(default_factory=Curation)


def ingest(source: Source, where: str | Path | Place, plan: Plan) -> Manifest:
    """Convert a source into a data set at a place, or go on where a run of the same stopped.

    Raises SourceError, RequestError, StoreError; ShardError where a commit of the run that is gone on with is damaged.
    """
    place = at(where)
    units = source.units(plan.limit)
    if not units:
        raise SourceError(f"{source.name}: expected at least one item to convert, found none")
    content = _content(source, plan)
    with run.claimed(place, content) as name, scratch(place) as folder:
        if run.finished(place):
            return manifest.read(place)
        done = _done(place, name)
        job = _Job(source, folder, name, plan.shard_bytes, place, plan.curation)
        _convert(job, {number: unit for number, unit in enumerate(units) if number not in done}, len(units), plan.workers)
        committed = manifest.committed(place, range(len(units)))
        return finish(place, content, [committed[number] for number in range(len(units))], _notes(source))


def _content(source: Source, plan: Plan) -> dict[str, Any]:
    """What decides the output's bytes."""
    return {
        "source": source.name,
        "options": {**options(source), "shard_bytes": plan.shard_bytes, "limit": plan.limit, **plan.curation.given()},
        "inputs": inputs(source),
        "versions": versions(),
    }


def _notes(source: Source) -> dict[str, dict[str, int]]:
    """Counts that belong to the input as a whole, where the source keeps any."""
    notes = getattr(source, "notes", None)
    return _nested(notes()) if notes else {}


def _nested(tally: Tally) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (family, reason), number in sorted(tally.items()):
        found.setdefault(family, {})[reason] = number
    return found


def _done(place: Place, name: str) -> set[int]:
    """Units whose commit is of this run, and whose shards stand there in full."""
    units = manifest.committed(place)
    foreign = [number for number, unit in units.items() if unit.run != name]
    if foreign:
        raise RequestError(f"{place.url}: expected units of this run, found unit {foreign[0]} of another one")
    sizes = dict(place.names()) if units else {}
    return {number for number, unit in units.items() if all(_stands(sizes, shard) for shard in unit.shards)}


def _stands(sizes: dict[str, int], shard: ShardInfo) -> bool:
    return sizes.get(shard.name) == shard.bytes and manifest.index_name(shard.name, None) in sizes


@dataclass(frozen=True)
class _Job:
    """What every worker needs to convert a unit."""

    source: Source
    folder: Path  # where shards are written
    run: str
    shard_bytes: int
    place: Place | None = None  # where they belong, if not there
    curation: Curation = field(default_factory=Curation)


class _Counters:
    """What all workers have done so far, and which unit is next. Read without the lock: a killed worker may hold it for ever."""

    def __init__(self, context: Any) -> None:
        self.values, self._lock = context.RawArray("q", 5), context.Lock()

    def add(self, read: int = 0, rejected: int = 0, size: int = 0, committed: int = 0) -> None:
        with self._lock:
            for index, number in enumerate((read, rejected, size, committed)):
                self.values[index] += number

    def take(self) -> int:
        """The position of a unit that nobody has taken."""
        with self._lock:
            self.values[4] += 1
            return self.values[4] - 1


Units = Sequence[tuple[int, Any]]  # number and unit


def _convert(job: _Job, units: dict[int, Any], total: int, workers: int) -> None:
    context = multiprocessing.get_context("spawn")
    counters = _Counters(context)
    with _Bar(counters, total - len(units), total):
        if workers == 1 or len(units) == 1:
            _warm()
            _work_off(job, counters, list(units.items()))
        elif units:
            _in_processes(context, (job, counters, list(units.items())), min(workers, len(units)))


def _in_processes(context: Any, work: tuple[_Job, _Counters, Units], workers: int) -> None:
    pool = ProcessPoolExecutor(workers, context, _start, (work, os.getpid()))
    try:
        _first_error({pool.submit(_work) for _ in range(workers)})
    except BrokenProcessPool as error:
        message = "a worker died (killed, or out of memory); what is done is kept, the same command goes on"
        raise RequestError(message) from error
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:  # idle by now, or of no use any more: their units are redone
            process.terminate()
        for process in processes:
            process.join()


def _first_error(futures: set[Future[None]]) -> None:
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()


_worker: tuple[_Job, _Counters, Units]


def _start(work: tuple[_Job, _Counters, Units], parent: int) -> None:
    """A worker's first act. It leaves Ctrl-C to the parent, and dies with it."""
    global _worker  # noqa: PLW0603 - what an initializer is for
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    _worker = work
    _warm()


def _work() -> None:
    _work_off(*_worker)


def _work_off(job: _Job, counters: _Counters, units: Units) -> None:
    """Convert units until none is left to take. While some are hashed, synced and committed, the next is written already."""
    with settling_for(job.place) as settling:
        while (taken := counters.take()) < len(units):
            settling.then(_written(job, counters, settling, *units[taken]))
        settling.wait()


def _warm() -> None:
    """What would cost time inside the first unit: pyarrow imports its slow parts when it first makes an array. And memory is kept."""
    IndexBuilder().encode([], [], 0, "")
    gain()
    gc.freeze()  # what is imported stays: not to be looked through again whenever records have come and gone
    gc.set_threshold(50_000)  # and records make no cycles
    memory.keep()


def _written(job: _Job, counters: _Counters, settling: Settling, number: int, unit: Any) -> Callable[[], None]:
    """Write a unit's records; what is left is to commit it."""
    rejects: list[RejectRow] = []
    tally = Tally()
    progress = _Progress(counters)
    with UnitWriter(job.folder, number, job.shard_bytes, job.place, settling) as writer:
        for index, row in enumerate(job.source.rows(unit)):
            key = f"{number:06d}-{index:08d}"
            try:
                sample = job.curation.applied(key, row, job.source.sample(row))
                size = writer.add(index, sample.record, sample.files, sample.maps)
                if sample.counts:
                    tally.update(sample.counts)
                progress.note(size)
            except (Reject, RecordError) as error:
                rejects.append(manifest.reject(row.file, row.number, key, error))
                progress.note(None)
        writer.seal()
    progress.flush()
    return lambda: _commit(job, counters, writer, rejects, tally)


def _commit(job: _Job, counters: _Counters, writer: UnitWriter, rejects: list[RejectRow], tally: Tally) -> None:
    """Finish a unit's shards, and then say that they are."""
    manifest.commit(job.place or job.folder, writer.result(job.run, rejects, _nested(tally)))
    counters.add(committed=1)


class _Progress:
    """A unit's own count, handed to the shared one now and then."""

    def __init__(self, counters: _Counters) -> None:
        self.counters, self.read, self.rejected, self.size = counters, 0, 0, 0

    def note(self, size: int | None) -> None:
        self.read += 1
        self.rejected += size is None
        self.size += size or 0
        if self.read >= 64:
            self.flush()

    def flush(self) -> None:
        self.counters.add(self.read, self.rejected, self.size)
        self.read = self.rejected = self.size = 0


class _Bar:
    """Progress on stderr: units, and records, megabytes and rejects beside them."""

    def __init__(self, counters: _Counters, done: int, total: int) -> None:
        self.counters, self.done, self.began = counters, done, time.monotonic()
        self.bar = tqdm(total=total, initial=done, desc="convert", unit="unit", disable=None, file=sys.stderr)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> _Bar:
        if not self.bar.disable:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        if self.thread.is_alive():
            self.thread.join()
        self._show()
        self.bar.close()

    def _watch(self) -> None:
        while not self.stop.wait(0.5):
            self._show()

    def _show(self) -> None:
        read, rejected, size, committed, _ = self.counters.values[:]
        seconds = max(time.monotonic() - self.began, 1e-9)
        self.bar.n = self.done + committed
        self.bar.set_postfix_str(f"{read / seconds:,.0f} records/s, {size / 1e6 / seconds:,.0f} MB/s, {rejected:,} rejects")


def rows_of(source: Source, limit: int | None = None) -> Iterator[Row]:
    """Every item of a source, in order: for a look at its records without writing any."""
    for unit in source.units(limit):
        yield from source.rows(unit)


def summary(found: Manifest, families: dict[str, dict[str, int]]) -> Sequence[str]:
    """The lines that add up, and every count of what was rejected, dropped, mended or noted."""
    totals = found.totals
    lines = [
        f"read {totals['read']:,} = written {totals['written']:,} + rejected {totals['rejected']:,}",
        f"{totals['images']:,} pictures in {len(found.shards):,} shards, {sum(shard.bytes for shard in found.shards) / 1e6:,.1f} MB",
    ]
    for family, counts in families.items():
        lines += [f"  {family.replace('_', ' ')}: {reason} {number:,}" for reason, number in counts.items()]
    return lines
