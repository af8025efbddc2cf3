"""Write: a data set from any iterator of records, for users whose data no pipeline knows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa

from schemas import Record, RecordError, RequestError
from shards import manifest, run
from shards.finish import finish
from shards.manifest import Manifest, RejectRow, Unit
from shards.place import Place, at
from shards.scratch import scratch
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
    with run.claimed(target, content) as name, scratch(target) as folder:
        if run.finished(target):
            raise RequestError(f"{target.url}: expected a free place, found a finished data set")
        _clear(target)
        units = []
        for number, part in enumerate(_parts(items)):
            with UnitWriter(folder, number, shard_bytes, target) as writer:
                units.append(_unit(writer, name, part, source))
            manifest.commit(target, units[-1])
        return finish(target, content, units)


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


def _unit(writer: UnitWriter, name: str, items: Iterator[Item], source: str) -> Unit:
    rejects: list[RejectRow] = []
    number, read = writer.unit, 0
    for row, (record, files, maps) in enumerate(items):
        read = row + 1
        try:
            writer.add(row, record, files, maps)
        except RecordError as error:
            rejects.append(manifest.reject(source, number * UNIT + row, f"{number:06d}-{row:08d}", error))
    shards = writer.close()
    images = sum(shard.images for shard in shards)
    written = sum(shard.records for shard in shards)
    return Unit(number, name, read, written, images, rejects, {}, shards, sorted(writer.suffixes))
