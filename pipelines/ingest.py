"""Ingest: a source's units through workers into a finished data set, the same bytes however many workers and interruptions it took.

A unit is what a worker takes and what is redone after a crash: it counts once its commit is written (shards.manifest). One input item is
one record or one reject, so read = written + rejected by construction. Workers are processes of this machine, or tasks of a Ray cluster.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from pipelines import duplicates, shuffle
from pipelines.curation import Curation
from pipelines.duplicates import Duplicates, Search
from pipelines.inputs import inputs, options
from pipelines.progress import Bar
from pipelines.shuffle import Shuffled
from pipelines.source import Row, Source, Tally
from pipelines.spool import Left, spooled
from schemas import RecordError, Reject, RequestError, SourceError
from shards import manifest, memory, run
from shards.executor import Executor, Queue, executor
from shards.finish import finish
from shards.index import IndexBuilder
from shards.manifest import Manifest, RejectRow, ShardInfo, Unit
from shards.place import Place, at
from shards.scratch import scratch, tidied
from shards.settle import Settling, gain, settling_for
from shards.write import versions
from shards.writer import SHARD_BYTES, UnitWriter


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a conversion is carried out, apart from what decides its bytes. workers: None: one a core, of this machine or of the cluster."""

    workers: int | None = 1
    executor: str = "local"
    shard_bytes: int = SHARD_BYTES
    limit: int | None = None
    curation: Curation = field(default_factory=Curation)
    duplicates: str | None = None  # one of duplicates.KINDS
    shuffle: int | None = None  # seed


def ingest(source: Source, where: str | Path | Place, plan: Plan) -> Manifest:
    """Convert a source into a data set at a place, or go on where a run of the same stopped.

    Raises SourceError, RequestError, StoreError; ShardError where a commit of the run that is gone on with is damaged.
    """
    with executor(plan.executor, plan.workers) as on:
        return convert(source, where, plan, on)


def convert(source: Source, where: str | Path | Place, plan: Plan, on: Executor) -> Manifest:
    """The same, by workers that there are already."""
    place = at(where)
    units = source.units(plan.limit)
    if not units:
        raise SourceError(f"{source.name}: expected at least one item to convert, found none")
    if look := getattr(source, "look", None):
        look(units, on.map)
    content = _content(source, plan, on)
    with run.claimed(place, content) as name, tidied(place):
        if run.finished(place):
            found = manifest.read(place)
        else:
            with spooled(place, units) as spool:
                _fill(source, place, plan, on, name, spool)
            found = finish(place, content, _whole(place, len(units)), _notes(source))
        if plan.duplicates is not None:
            duplicates.done(place)
        if plan.shuffle is not None:
            shuffle.done(place)
        return found


def _fill(source: Source, place: Place, plan: Plan, on: Executor, name: str, units: Sequence[Any]) -> None:
    """Write and commit every unit that is not yet there: by way of a staged data set where they are to be shuffled."""
    job = _Job(source, place, place, name, plan.shard_bytes, plan.curation)
    if plan.shuffle is None:
        _convert(job, plan, on, units)
    elif left := _left(job, units):
        stage = shuffle.stage(place)
        _convert(replace(job, into=stage), plan, on, units)
        write = partial(_gathered, shuffle.prepared(place, plan.shuffle, _whole(stage, len(units))))
        _share(job, write, on, left, len(units), "shuffle")


def _convert(job: _Job, plan: Plan, on: Executor, units: Sequence[Any]) -> None:
    """Write the units from the source, without duplicates where that was asked for."""
    left = _left(job, units)
    if plan.duplicates is not None and left:
        with Bar("compare", len(units)) as bar:
            search = Search(job.place, job.run, plan.duplicates, job.source, job.curation)
            job = replace(job, lost=duplicates.planned(search, units, on, bar.show))
    _share(job, _written, on, left, len(units), "convert")


def _left(job: _Job, units: Sequence[Any]) -> Left:
    """The units that are not yet there."""
    done = _done(job.into, job.run)
    return Left(units, [number for number in range(len(units)) if number not in done])


def _share(job: _Job, write: Write, on: Executor, left: Units, total: int, verb: str) -> None:
    """Have these units written."""
    with Bar(verb, total, total - len(left)) as bar:
        on.share(partial(_work_off, replace(job, units=left), write), len(left), bar.show)


def _content(source: Source, plan: Plan, on: Executor) -> dict[str, Any]:
    """What decides the output's bytes."""
    return {
        "source": source.name,
        "options": {**options(source), "shard_bytes": plan.shard_bytes, "limit": plan.limit, **plan.curation.given(), **_passes(plan)},
        "inputs": inputs(source, on.map),
        "versions": versions(),
    }


def _passes(plan: Plan) -> dict[str, Any]:
    """Which passes over the whole input were asked for."""
    asked = {"duplicates": plan.duplicates, "shuffle": plan.shuffle}
    return {name: value for name, value in asked.items() if value is not None}


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
    sizes: dict[str, int] | None = None
    done: set[int] = set()
    for unit in manifest.each(place):
        if unit.run != name:
            raise RequestError(f"{place.url}: expected units of this run, found unit {unit.unit} of another one")
        sizes = dict(place.names()) if sizes is None else sizes
        if all(_stands(sizes, shard) for shard in unit.shards):
            done.add(unit.unit)
    return done


def _stands(sizes: dict[str, int], shard: ShardInfo) -> bool:
    return sizes.get(shard.name) == shard.bytes and manifest.index_name(shard.name, None) in sizes


def _whole(place: Place, units: int) -> Iterator[Unit]:
    """Every unit's commit, in order, a few of them held at a time."""
    expected = 0
    for unit in manifest.each(place, range(units)):
        if unit.unit != expected:
            break
        expected += 1
        yield unit
    if expected < units:
        raise RequestError(f"{place.url}: expected the commits of {units} units, found none of unit {expected}")


Units = Sequence[tuple[int, Any]]  # number and unit


@dataclass(frozen=True)
class _Job:
    """What every worker needs to convert units."""

    source: Source
    place: Place  # of the run
    into: Place  # where the shards belong
    run: str
    shard_bytes: int
    curation: Curation
    lost: Duplicates = duplicates.NONE
    units: Units = ()


Write = Callable[[_Job, Path, Settling, "_Progress"], Callable[[], None]]


def _work_off(job: _Job, write: Write, queue: Queue) -> None:
    """Convert units until none is left to take. While some are hashed, synced and committed, the next is written already."""
    _warm()
    run.seen(job.place, job.run)
    with scratch(job.into) as folder, settling_for(job.into) as settling:
        while (position := queue.take()) is not None:
            settling.then(write(job, folder, settling, _Progress(queue, position)))
        settling.wait()


@cache
def _warm() -> None:
    """What would cost time inside the first unit: pyarrow imports its slow parts when it first makes an array. And memory is kept."""
    IndexBuilder().encode([], [], 0, "")
    gain()
    gc.freeze()  # what is imported stays: not to be looked through again whenever records have come and gone
    gc.set_threshold(50_000)  # and records make no cycles
    memory.keep()


def _written(job: _Job, folder: Path, settling: Settling, progress: _Progress) -> Callable[[], None]:
    """Write a unit's records; what is left is to commit it."""
    number, unit = job.units[progress.position]
    rejects: list[RejectRow] = []
    tally = Tally()
    lost = job.lost.of(number)
    with UnitWriter(folder, number, job.shard_bytes, job.into, settling) as writer:
        for index, row in enumerate(job.source.rows(unit)):
            key = f"{number:06d}-{index:08d}"
            try:
                sample = duplicates.less(job.curation.sample(job.source, key, row, tally), lost.get(index))
                size = writer.add(index, sample.record, sample.files, sample.maps)
                if sample.counts:
                    tally.update(sample.counts)
                progress.note(size)
            except (Reject, RecordError) as error:
                rejects.append(manifest.reject(row.file, row.number, key, error))
                progress.note(None)
        progress.flush()
        writer.seal()
    return lambda: _commit(job, writer, rejects, _nested(tally), progress)


def _gathered(shuffled: Shuffled, job: _Job, folder: Path, settling: Settling, progress: _Progress) -> Callable[[], None]:
    """Write a unit's records from where they were staged; what is left is to commit it."""
    number, _ = job.units[progress.position]
    with UnitWriter(folder, number, job.shard_bytes, job.into, settling) as writer:
        for row, item in shuffled.records(number):
            progress.note(writer.add(row, *item))
        progress.flush()
        writer.seal()
    return lambda: _commit(job, writer, *shuffled.carried(number), progress)


def _commit(job: _Job, writer: UnitWriter, rejects: list[RejectRow], dropped: dict[str, dict[str, int]], progress: _Progress) -> None:
    """Finish a unit's shards, and then say that they are."""
    manifest.commit(job.into, writer.result(job.run, rejects, dropped))
    progress.queue.done(progress.position)


class _Progress:
    """A unit's own count, handed to the queue now and then."""

    def __init__(self, queue: Queue, position: int) -> None:
        self.queue, self.position = queue, position
        self.read = self.rejected = self.size = 0

    def note(self, size: int | None) -> None:
        self.read += 1
        self.rejected += size is None
        self.size += size or 0
        if self.read >= 64:
            self.flush()

    def flush(self) -> None:
        self.queue.count(self.position, self.read, self.rejected, self.size)
        self.read = self.rejected = self.size = 0


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
