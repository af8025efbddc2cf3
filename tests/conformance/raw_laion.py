"""img2dataset's output as its own files say. One item is one URL, a row of a shard's parquet file."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow.parquet as pq

from tests.conformance.commands import converted
from tests.conformance.oracle import Expected, Folder, Item, Picture, Said, Sample, looked_at

ANNOTATIONS = (".json", ".txt")


def samples(folder: Path, work: Path) -> Iterator[Sample]:
    """One conversion for every folder that img2dataset wrote."""
    for output in sorted({path.parent for path in folder.rglob("*_stats.json")}):
        shards = {shard: _members(shard.with_suffix(".tar")) for shard in sorted(output.glob("*.parquet"))}
        items = [item for shard, members in shards.items() for item in _items(shard, members)]
        names = [f"{shard.stem}.tar/{name}" for shard, members in shards.items() for name in members if not name.endswith(ANNOTATIONS)]
        yield Sample(converted("laion", ["--annotations", output], work / output.name), items, [Folder(output, names)])


def _items(shard: Path, members: dict[str, bytes]) -> Iterator[Item]:
    names = {name.split(".")[0]: name for name in members if not name.endswith(ANNOTATIONS)}
    seen: set[str] = set()
    for number, row in enumerate(pq.read_table(shard).to_pylist()):
        if row["status"] != "success":
            yield Item(shard.name, number, [], None, reason=row["status"])
            continue
        name = names.get(row["key"])
        picture = looked_at(members[name]) if name else None
        item = Item(shard.name, number, [f"{shard.stem}.tar/{name or row['key'] + '.jpg'}"], None)
        if picture is None or row["key"] in seen:
            yield item
        elif (picture.width, picture.height) != (row.get("width") or picture.width, row.get("height") or picture.height):
            yield item._replace(reason="size_differs")
        else:
            yield item._replace(expected=_expected(row, picture, members))
        seen.add(row["key"])


def _expected(row: dict[str, Any], picture: Picture, members: dict[str, bytes]) -> Expected:
    text = row["caption"] if row["caption"] is not None else members.get(f"{row['key']}.txt", b"").decode()
    return Expected(
        pictures=[picture],
        turns=[Said("text", [0, text] if text else [0])],
        origins=[row["url"]],
        similarities=[row.get("similarity")],
        id=row["key"],
    )


def _members(path: Path) -> dict[str, bytes]:
    """Everything in a tar, by name."""
    with tarfile.open(path) as tar:
        return {member.name: cast(IO[bytes], tar.extractfile(member)).read() for member in tar if member.isreg()}
