"""The accounts: what shardweave reports against what was planted. One number that differs ends the demo."""

from __future__ import annotations

import json
from typing import Any

from demo.run import DemoError
from demo.trees import Planted
from shards import place as places

# What of a manifest is no family of counts.
OTHER = {"options", "versions", "totals", "rejected", "rejects"}


def checked(source: str, found: dict[str, Any], planted: Planted) -> None:
    """Raise DemoError unless `pipelines check --json` found what was planted."""
    expected = {
        "records": planted.read,
        "image_references": planted.references,
        "missing": planted.missing,
        "other_suffix": planted.other_suffix,
        "unreferenced_files": planted.unreferenced,
    }
    flat = {**found, **found["images"]}
    _same(f"pipelines check {source}", expected, {name: flat[name] for name in expected})


def converted(source: str, place: str, planted: Planted) -> dict[str, Any]:
    """The manifest. Raises DemoError unless it counts what was planted, no more and no less."""
    manifest = json.loads(places.at(place).read("manifest.json"))
    totals = {"read": planted.read, "written": planted.written, "rejected": sum(planted.rejected.values()), "images": planted.images}
    _same(f"{source}: totals", totals, manifest["totals"])
    _same(f"{source}: rejected", planted.rejected, manifest["rejected"])
    families = {name: value for name, value in manifest.items() if isinstance(value, dict) and name not in OTHER and value}
    _same(f"{source}: dropped and mended", planted.dropped, families)
    return manifest


def verified(source: str, found: dict[str, Any], planted: Planted) -> None:
    """Raise DemoError unless `shards check --json` saw every record and picture, and no problem."""
    expected = {"ok": True, "records": planted.written, "images": planted.images}
    _same(f"shards check {source}", expected, {name: found[name] for name in expected})


def _same(what: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
    if expected == found:
        return
    names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    differ = "\n".join(f"  {name}: planted {expected.get(name, 'nothing')}, counted {found.get(name, 'nothing')}" for name in names)
    raise DemoError(f"{what}: the counts are not what was planted\n{differ}")
