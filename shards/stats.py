"""Statistics of a data set, from its indexes and its manifest alone: no tar is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from shards.manifest import families
from shards.reader import Shards
from shards.reader import open as open_shards

QUANTILES = (0, 10, 50, 90, 100)


def stats(place: str | Path) -> dict[str, Any]:
    """Counts, distributions per source, rejects by reason, and the bytes of pictures that occur again. Raises as `shards.open`."""
    data = open_shards(place)
    found = data.manifest
    columns = _columns(data)
    sources = {name: _source(columns, np.flatnonzero(columns["source"] == name)) for name in sorted(set(columns["source"]))}
    return {
        "totals": found.totals,
        "shards": len(found.shards),
        "bytes": sum(shard.bytes for shard in found.shards),
        "families": families(data.place),
        "repeated_pictures": _repeated(columns["xxh3"], columns["image_bytes"]),
        "sources": sources,
    }


def _columns(data: Shards) -> dict[str, Any]:
    """Every index's columns end to end: per record source, text_length, regions, images; per picture the rest."""
    parts: dict[str, list[Any]] = {name: [] for name in ("source", "text_length", "regions", "images", *_PICTURE)}
    for shard in data.shards:
        index = shard.index
        for name in ("source", "text_length", "regions"):
            parts[name].append(index.table[name].to_numpy())
        parts["images"].append(np.diff(index.first_image))
        pictures = index.table["images"].combine_chunks().flatten()
        for name, field in _PICTURE.items():
            parts[name].append(pictures.field(field).to_numpy(zero_copy_only=False))
    return {name: np.concatenate(values) if values else np.array([]) for name, values in parts.items()}


_PICTURE = {"width": "width", "height": "height", "image_bytes": "bytes", "xxh3": "xxh3", "similarity": "similarity"}


def _source(columns: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    images = columns["images"]
    pictures = np.isin(np.repeat(np.arange(len(images)), images), rows)  # those of the rows' records
    return {
        "records": len(rows),
        "images_per_record": {str(n): count for n, count in sorted(Counter(images[rows].tolist()).items())},
        "text_length": _spread(columns["text_length"][rows]),
        "regions": _spread(columns["regions"][rows]),
        "width": _spread(columns["width"][pictures]),
        "height": _spread(columns["height"][pictures]),
        "image_bytes": _spread(columns["image_bytes"][pictures]),
        "similarity": _spread(columns["similarity"][pictures].astype(float)),
    }


def _spread(values: np.ndarray) -> dict[str, float] | None:
    values = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if not len(values):
        return None
    quantiles = np.percentile(values, QUANTILES)
    return {"mean": round(float(values.mean()), 3), **{f"p{q}": round(float(v), 3) for q, v in zip(QUANTILES, quantiles, strict=True)}}


def _repeated(hashes: np.ndarray, sizes: np.ndarray) -> dict[str, int]:
    """Pictures whose content stands in an earlier picture already, and the bytes they take."""
    seen: set[bytes] = set()
    pictures = size = 0
    for digest, length in zip(hashes, sizes, strict=True):
        if digest in seen:
            pictures, size = pictures + 1, size + int(length)
        seen.add(digest)
    return {"pictures": pictures, "bytes": size, "distinct": len(seen)}


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
        lines.append(f"{name}: {source['records']:,} records; images per record {_histogram(source['images_per_record'])}")
        lines += [f"  {what:<14}{_quantiles(source[what])}" for what in _SPREADS if source[what]]
    return "\n".join(lines)


_SPREADS = ("text_length", "regions", "width", "height", "image_bytes", "similarity")


def _histogram(counts: dict[str, int]) -> str:
    return ", ".join(f"{n}: {count:,}" for n, count in list(counts.items())[:8])


def _quantiles(spread: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:,.10g}" for name, value in spread.items())
