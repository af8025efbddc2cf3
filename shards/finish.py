"""Finish: from unit commits to rejects.parquet, the dataset card and, last of all, the manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shards import manifest, rejects
from shards.card import card
from shards.manifest import Manifest, RejectRun, ShardInfo, Unit
from shards.place import Place, at

CARD = "README.md"


def finish(
    where: str | Path | Place, content: dict[str, Any], units: Iterable[Unit], notes: dict[str, dict[str, int]] | None = None
) -> Manifest:
    """Write what describes the whole data set: the manifest that it now has.

    content: source, options, inputs, versions. units: every unit's commit, in order, gone through once. notes: counts that belong to none.
    """
    place = at(where)
    total = _Total(notes or {})
    ledger = rejects.encode(total.runs(units))
    place.write(rejects.REJECTS, ledger)
    suffixes = sorted(total.suffixes)
    place.write(CARD, card(content["source"], suffixes, total.totals).encode())
    data = manifest.encode(
        {
            "format": manifest.FORMAT,
            **content,
            "shards": total.shards,
            "totals": total.totals,
            "rejected": dict(sorted(total.rejected.items())),
            "images_dropped": {},
            "regions_dropped": {},
            **total.dropped,
            "rejects": {"rows": total.totals["rejected"], "sha256": hashlib.sha256(ledger).hexdigest()},
            "suffixes": suffixes,
            "fingerprint": manifest.fingerprint(total.shards),
        }
    )
    place.write(manifest.MANIFEST, data)
    return manifest.decode(data)


class _Total:
    """What units add up to. read = written + rejected, because it holds for each of them."""

    def __init__(self, notes: dict[str, dict[str, int]]) -> None:
        self.totals = {"read": 0, "written": 0, "rejected": 0, "images": 0}
        self.rejected: Counter[str] = Counter()
        self.dropped = manifest.add_up([notes])
        self.suffixes: set[str] = set()
        self.shards: list[ShardInfo] = []

    def runs(self, units: Iterable[Unit]) -> Iterator[RejectRun]:
        """All rejects, in order. When it is through, everything is added up."""
        for unit in units:
            self._add(unit)
            yield from unit.runs

    def _add(self, unit: Unit) -> None:
        for name, number in zip(self.totals, (unit.read, unit.written, unit.refused(), unit.images), strict=True):
            self.totals[name] += number
        for run in unit.runs:
            self.rejected[run.reason] += run.times
        self.dropped = manifest.add_up([self.dropped, unit.dropped])
        self.suffixes.update(unit.suffixes)
        self.shards += unit.shards
