"""Visual Genome's second generation of key names, and what the first five images lack, made from the sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import raw_visual_genome
from tests.conformance.oracle import compare, compare_counts

NEW_NAMES = {
    "image_data": {},
    "objects": {"id": "object_id"},
    "attributes": {"id": "object_id", "object_names": "names"},
    "relationships": {"name": "names"},
    "region_descriptions": {"id": "region_id"},
    "question_answers": {},
}


@pytest.fixture
def old(data: Path) -> Path:
    """The newest folder of the sample."""
    folders = sorted({path.parent for path in (data / "visual_genome").rglob("*.json")})
    if not folders:
        pytest.skip(f"no upstream samples: {data} has no visual_genome")
    return folders[-1]


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.stem: json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}


def write(folder: Path, files: dict[str, list[dict[str, Any]]]) -> Path:
    folder.mkdir(parents=True)
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def renamed(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row of version 1.0 under the names of version 1.2 and later."""
    row = dict(row)
    if kind != "image_data" and "id" in row:
        row["image_id"] = row.pop("id")
    name = raw_visual_genome.LISTS.get(kind)
    if name in row:
        row[name] = [renamed_thing(kind, thing) for thing in row[name]]
    return row


def renamed_thing(kind: str, thing: dict[str, Any]) -> dict[str, Any]:
    if kind == "relationships":
        ends = {end: renamed_end(thing[end]) for end in ("subject", "object")}
        return {"relationship_id": thing.get("id"), "predicate": thing["predicate"], "synsets": [], **ends}
    return {NEW_NAMES.get(kind, {}).get(name, name): value for name, value in thing.items()}


def renamed_end(thing: dict[str, Any]) -> dict[str, Any]:
    named = {"object_id" if name == "id" else name: value for name, value in thing.items()}
    return {**named, "names": [named.pop("name")]} if "name" in named else named


def test_the_second_generation_of_names_gives_the_same_records(old: Path, tmp_path: Path) -> None:
    files = {kind: [renamed(kind, row) for row in rows] for kind, rows in read(old).items()}
    write(tmp_path / "data" / "v1.2", files)

    (new,) = raw_visual_genome.samples(tmp_path / "data", tmp_path / "new")
    (first,) = raw_visual_genome.samples(old, tmp_path / "old")

    compare(new.conversion, new.items)
    assert [stored.record["regions"] for stored in new.conversion.records.values()] == [
        stored.record["regions"] for stored in first.conversion.records.values()
    ]


@pytest.mark.parametrize("absent", [["image_data"], ["objects", "attributes", "question_answers"], ["relationships"]])
def test_any_of_the_six_files_may_be_absent(absent: list[str], old: Path, tmp_path: Path) -> None:
    write(tmp_path / "data" / "some", {kind: rows for kind, rows in read(old).items() if kind not in absent})

    (one,) = raw_visual_genome.samples(tmp_path / "data", tmp_path / "work")

    compare(one.conversion, one.items)
    compare_counts(one.conversion, one.items, *one.pictures)


def test_boxes_outside_go_and_take_along_what_names_them(old: Path, tmp_path: Path) -> None:
    files = read(old)
    for row, image in zip(files["objects"], files["image_data"], strict=True):
        for number, thing in enumerate(row["objects"]):
            thing["x"] = [thing["x"], -0.5, -1, image["width"] - thing["w"] + 0.75, image["width"] - thing["w"] + 1][number % 5]
    for row in files["region_descriptions"]:
        for number, region in enumerate(row["regions"]):
            region["height"] = [region["height"], 0, -3, 10_000][number % 4]
    write(tmp_path / "data" / "moved", files)

    (one,) = raw_visual_genome.samples(tmp_path / "data", tmp_path / "work")
    written = [item.expected for item in one.items if item.expected]

    compare(one.conversion, one.items)
    assert one.conversion.verdict["problems"] == []
    things = sum(len(row["objects"]) for row in files["objects"]) + sum(len(row["regions"]) for row in files["region_descriptions"])
    assert sum(one.conversion.manifest["regions_dropped"].values()) >= things - sum(len(expected.regions) for expected in written) > 0
