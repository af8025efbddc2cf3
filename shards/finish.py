"""Finish: from unit commits to rejects.parquet, the dataset card and, last of all, the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards import manifest, rejects
from shards.card import card
from shards.manifest import Manifest, Unit
from shards.place import Place, at

CARD = "README.md"


def finish(
    where: str | Path | Place, content: dict[str, Any], units: Sequence[Unit], notes: dict[str, dict[str, int]] | None = None
) -> Manifest:
    """Write what describes the whole data set: the manifest that it now has.

    content: source, options, inputs, versions. units: every unit's commit, in order. notes: counts that belong to no unit.
    """
    place = at(where)
    ledger = rejects.encode(row for unit in units for row in unit.rejects)
    place.write(rejects.REJECTS, ledger)
    totals = manifest.totals(units)
    suffixes = sorted({suffix for unit in units for suffix in unit.suffixes})
    place.write(CARD, card(content["source"], suffixes, totals).encode())
    shards = [shard for unit in units for shard in unit.shards]
    data = manifest.encode(
        {
            "format": manifest.FORMAT,
            **content,
            "shards": [{name: getattr(shard, name) for name in shard.__struct_fields__} for shard in shards],
            "totals": totals,
            "rejected": _rejected(units),
            **_families(units, notes or {}),
            "rejects": {"rows": totals["rejected"], "sha256": hashlib.sha256(ledger).hexdigest()},
            "suffixes": suffixes,
            "fingerprint": manifest.fingerprint(shards),
        }
    )
    place.write(manifest.MANIFEST, data)
    return manifest.decode(data)


def _rejected(units: Sequence[Unit]) -> dict[str, int]:
    found: dict[str, int] = {}
    for unit in units:
        for row in unit.rejects:
            found[row.reason] = found.get(row.reason, 0) + 1
    return dict(sorted(found.items()))


def _families(units: Sequence[Unit], notes: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {"images_dropped": {}, "regions_dropped": {}, **manifest.add_up([*(unit.dropped for unit in units), notes])}
