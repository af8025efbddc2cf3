"""Write: a data set from any iterator of records, for users whose data no pipeline knows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa

from schemas import Record, RecordError, RequestError
from shards import manifest, run
from shards.finish import finish
from shards.manifest import Manifest, RejectRow
from shards.place import Place, at
from shards.scratch import scratch
from shards.settle import settling_for
from shards.sink import Buffer
from shards.writer import SHARD_BYTES, UnitWriter

VERSION = "0.1.0"
UNIT = 10_000  # records
Item = tuple[Record, Sequence[Buffer], Sequence[Buffer]]


def versions() -> dict[str, str]:
    """What the bytes of a data set depend on besides its input."""
    return {"shardweave": VERSION, "pyarrow": pa.__version__, "pillow": PIL.__version__}


def write(place: str | Path | Place, items: Iterable[Item], *, source: str = "records", shard_bytes: int = SHARD_BYTES) -> Manifest:
    """Write (record, pictures' bytes, maps' PNG bytes) as a finished data set: its manifest.

    Records get their keys here. One that breaks a rule is a reject, counted by reason. Raises RequestError where the place is not free;
    one where an earlier `write` did not come to its end counts as free, because nothing says that it had the same items.
    """
    target = at(place)
    content: dict[str, Any] = {"source": source, "options": {"shard_bytes": shard_bytes}, "inputs": [], "versions": versions()}
    with run.claimed(target, content) as name, scratch(target) as folder, settling_for(target) as settling:
        if run.finished(target):
            raise RequestError(f"{target.url}: expected a free place, found a finished data set")
        _clear(target)
        units = 0
        for part in _parts(items):
            with UnitWriter(folder, units, shard_bytes, target, settling) as writer:
                rejects = _written(writer, part, source)
            settling.then(partial(_commit, target, writer, name, rejects))
            units += 1
        settling.wait()
        committed = manifest.committed(target)
        return finish(target, content, [committed[number] for number in range(units)])


def _clear(place: Place) -> None:
    """Remove what an earlier `write` left."""
    for name, _ in list(place.names()):
        if _OURS.fullmatch(name):
            place.remove(name)


_OURS = re.compile(rf"{manifest.UNITS}/\d+\.json|\d+-\d+\.(tar|parquet)")


def _parts(items: Iterable[Item]) -> Iterator[Iterator[Item]]:
    """The items in runs of UNIT, none of them held: a run must be used up before the next."""
    rest = iter(items)
    for first in rest:
        yield itertools.chain([first], itertools.islice(rest, UNIT - 1))


def _written(writer: UnitWriter, items: Iterator[Item], source: str) -> list[RejectRow]:
    """Write a unit's records: those that were none."""
    rejects: list[RejectRow] = []
    number = writer.unit
    for row, (record, files, maps) in enumerate(items):
        try:
            writer.add(row, record, files, maps)
        except RecordError as error:
            rejects.append(manifest.reject(source, number * UNIT + row, f"{number:06d}-{row:08d}", error))
    writer.seal()
    return rejects


def _commit(target: Place, writer: UnitWriter, run: str, rejects: list[RejectRow]) -> None:
    manifest.commit(target, writer.result(run, rejects, {}))
