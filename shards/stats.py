"""Statistics of a data set, from its indexes and its manifest alone: no tar is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shards import columns as shard_columns
from shards.manifest import families
from shards.reader import open as open_shards
from shards.tally import Tallies, Tally, shard_row
from shards.values import Bin


def stats(place: str | Path) -> dict[str, Any]:
    """Counts, distributions per source and per shard, rejects by reason, repeated pictures. Raises as `shards.open`."""
    data = open_shards(place)
    tallies, per_shard = Tallies(), []
    hashes, sizes = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
    for shard in data.shards:
        columns = shard_columns.read(shard)
        shard.close()
        tallies.add(columns)
        per_shard.append(shard_row(shard.name, shard.info.bytes, columns))
        hashes.append(columns.xxh3)
        sizes.append(columns.image_bytes)
    return {
        "totals": data.manifest.totals,
        "shards": len(data.shards),
        "bytes": sum(shard.info.bytes for shard in data.shards),
        "families": families(data.place),
        "repeated_pictures": _repeated(np.concatenate(hashes), np.concatenate(sizes)),
        "sources": {name: _source(tallies[name]) for name in sorted(tallies)},
        "per_shard": per_shard,
    }


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


def _repeated(hashes: np.ndarray, sizes: np.ndarray) -> dict[str, int]:
    """Pictures whose content stands in an earlier picture already, and the bytes they take."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    again = order[1:][(hashes[order[1:]] == hashes[order[:-1]]).all(1)]
    return {"pictures": len(again), "bytes": int(sizes[again].sum()), "distinct": len(hashes) - len(again)}


def table(found: dict[str, Any]) -> str:
    """The statistics as a person reads them."""
    totals, again = found["totals"], found["repeated_pictures"]
    lines = [
        f"read {totals['read']:,} = written {totals['written']:,} + rejected {totals['rejected']:,}",
        f"{found['shards']:,} shards, {found['bytes'] / 1e6:,.1f} MB, {totals['images']:,} pictures, {again['distinct']:,} distinct"
        f" ({again['bytes'] / 1e6:,.1f} MB are repeats)",
    ]
    for family, counts in found["families"].items():
        lines += [f"  {family.replace('_', ' ') + ': ' + reason:<48}{number:>10,}" for reason, number in counts.items()]
    for name, source in found["sources"].items():
        lines.append(f"{name}: {source['records']:,} records; images per record {_counts(source['images_per_record'])}")
        lines += [f"  {what:<12}{_drawn(source['histograms'][what]):<25}{_quantiles(source[what])}" for what in _SPREADS if source[what]]
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n}: {count:,}" for n, count in list(counts.items())[:8])


_BARS = " ▁▂▃▄▅▆▇█"


def _drawn(histogram: dict[str, list[float]]) -> str:
    """A character a bin; what holds anything is seen."""
    counts = histogram["counts"]
    return "".join(_BARS[-(-8 * int(count) // int(max(counts)))] for count in counts)


def _quantiles(spread: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:,.10g}" for name, value in spread.items())
