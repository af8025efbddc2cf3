"""Statistics of a data set, from its indexes and its manifest alone: no tar is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards import columns as shard_columns
from shards import executor as executors
from shards import pace
from shards.manifest import ShardInfo, families
from shards.place import Place
from shards.reader import Shard
from shards.reader import open as open_shards
from shards.repeats import Repeats
from shards.tally import Tallies, Tally, shard_row
from shards.values import Bin

_ROW = 100  # bytes of an index, about


def stats(place: str | Path, *, workers: int | None = 1, executor: str = "local") -> dict[str, Any]:
    """Counts, distributions per source and per shard, rejects by reason, repeated pictures. workers, executor: see shards.executor.

    Raises as `shards.open`; RequestError where there is no such executor.
    """
    data = open_shards(place)
    tallies, per_shard = Tallies(), []
    with executors.executor(executor, workers, _ROW * len(data)) as on, Repeats() as repeats:
        for part in on.map(partial(_counted, data.place, data.manifest.layout), data.manifest.shards):
            tallies.merge(part.tallies)
            per_shard.append(part.row)
            repeats.add(part.xxh3, part.image_bytes)
        repeated = repeats.counts()
    return {
        "totals": data.manifest.totals,
        "shards": len(data.shards),
        "bytes": sum(shard.info.bytes for shard in data.shards),
        "families": families(data.place),
        "conversion": pace.pace(data.place, data.manifest)._asdict(),
        "repeated_pictures": repeated,
        "sources": {name: _source(tallies[name]) for name in sorted(tallies)},
        "per_shard": per_shard,
    }


class _Part(NamedTuple):
    """What is counted of one shard."""

    tallies: Tallies
    row: dict[str, Any]
    xxh3: np.ndarray
    image_bytes: np.ndarray


def _counted(place: Place, layout: str | None, info: ShardInfo) -> _Part:
    columns = shard_columns.read(Shard(place, info, layout=layout))
    tallies = Tallies()
    tallies.add(columns)
    return _Part(tallies, shard_row(info.name, info.bytes, columns), columns.xxh3, columns.image_bytes)


_SPREADS = ("text_length", "regions", "width", "height", "aspect", "image_bytes", "similarity")


def _source(tally: Tally) -> dict[str, Any]:
    return {
        "records": tally.records,
        "images_per_record": {str(int(n)): count for n, count in tally.values["images"].counts().items()},
        **{name: tally.spread(name) for name in _SPREADS},
        "histograms": {name: _bars(tally.values[name].bins()) for name in _SPREADS},
    }


def _bars(bins: list[Bin]) -> dict[str, list[float]]:
    """edges: one more than counts; a bin is [edge, next edge)."""
    return {"edges": [bin.low for bin in bins] + [bin.high for bin in bins[-1:]], "counts": [bin.number for bin in bins]}


def table(found: dict[str, Any]) -> str:
    """The statistics as a person reads them."""
    totals, again = found["totals"], found["repeated_pictures"]
    lines = [
        f"read {totals['read']:,} = written {totals['written']:,} + rejected {totals['rejected']:,}",
        f"{found['shards']:,} shards, {found['bytes'] / 1e6:,.1f} MB, {totals['images']:,} pictures, {again['distinct']:,} distinct"
        f" ({again['bytes'] / 1e6:,.1f} MB are repeats)",
    ]
    lines.append(f"{pace.told(pace.Pace(**found['conversion']))} {_drawn(found['conversion']['records_per_second'])}".rstrip())
    for family, counts in found["families"].items():
        lines += [f"  {family.replace('_', ' ') + ': ' + reason:<48}{number:>10,}" for reason, number in counts.items()]
    for name, source in found["sources"].items():
        lines.append(f"{name}: {source['records']:,} records; images per record {_counts(source['images_per_record'])}")
        lines += [
            f"  {what:<12}{_drawn(source['histograms'][what]['counts']):<25}{_quantiles(source[what])}" for what in _SPREADS if source[what]
        ]
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n}: {count:,}" for n, count in list(counts.items())[:8])


_BARS = " ▁▂▃▄▅▆▇█"


def _drawn(counts: Sequence[float]) -> str:
    """A character a bin; what holds anything is seen."""
    most = max(counts, default=0) or 1
    return "".join(_BARS[math.ceil(8 * count / most)] for count in counts)


def _quantiles(spread: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:,.10g}" for name, value in spread.items())
