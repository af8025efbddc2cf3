"""Damage that no hash finds: an index or a manifest that lies, and hashes that agree with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards import manifest

MEMBER = {"name": "000000-00000000.json", "offset": 512, "size": 10}


def reindexed(place: Path, change: dict[str, Any]) -> None:
    """Put values into the first row of the first index, and make the manifest agree: damage that no hash finds."""
    path = place / "000000-000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0] |= change
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    restated(place)


def restated(place: Path, **changes: Any) -> None:
    """The manifest of what lies there now, its hashes right, the first shard's entry changed."""

    def change(found: dict[str, Any]) -> None:
        for shard in found["shards"]:
            for field, suffix in (("sha256", ".tar"), ("index_sha256", ".parquet")):
                shard[field] = hashlib.sha256((place / shard["name"]).with_suffix(suffix).read_bytes()).hexdigest()
        found["shards"][0] |= changes

    edited(place, change)


def edited(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The manifest changed, its own hash right."""
    found = json.loads((place / "manifest.json").read_bytes())
    change(found)
    found.pop("manifest_sha256")
    (place / "manifest.json").write_bytes(manifest.encode(found))
