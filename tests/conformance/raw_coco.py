"""COCO and COCO panoptic as their own files say. One item is one image; captions, instances, keypoints, panoptic are read in this order."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.conformance.commands import converted
from tests.conformance.oracle import (
    Area,
    Expected,
    Folder,
    Item,
    LabelMap,
    Picture,
    Said,
    Sample,
    basename,
    corners,
    json_files,
    kept_box,
    paint,
    rasterised,
)

KINDS = ("captions", "instances", "keypoints", "panoptic")
_NAME = re.compile(r"(captions|instances|person_keypoints|panoptic)_(.+)\.json")


class Table(NamedTuple):
    """An annotation file."""

    path: Path
    content: dict[str, Any]

    @property
    def categories(self) -> dict[Any, str]:
        """Names by id."""
        return {category["id"]: category["name"] for category in self.content.get("categories", ())}

    def by_image(self) -> dict[Any, list[dict[str, Any]]]:
        """Annotations by image id, in file order."""
        found: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in self.content.get("annotations", ()):
            found[annotation["image_id"]].append(annotation)
        return found


def samples(folder: Path, work: Path) -> Iterator[Sample]:
    """One conversion for every split that annotations/ has."""
    for split, tables in _splits(folder / "annotations").items():
        yield _converted(tables, _pictures(folder, split, tables, work), folder / "annotations" / f"panoptic_{split}", work / split)


def panoptic_samples(folder: Path, work: Path) -> Iterator[Sample]:
    """One conversion for every JSON that lists segments and has a folder of PNGs of its name."""
    for path, content in json_files(folder):
        if isinstance(content, dict) and any("segments_info" in row for row in content.get("annotations", ())):
            tables = {"panoptic": Table(path, content)}
            yield _converted(tables, _pictures(folder, "input_images", tables, work), path.with_suffix(""), work / path.stem)


def _splits(folder: Path) -> dict[str, dict[str, Table]]:
    found: dict[str, dict[str, Table]] = defaultdict(dict)
    for path, content in json_files(folder):
        if match := _NAME.fullmatch(path.name):
            found[match[2]][match[1].removeprefix("person_")] = Table(path, content)
    return found


def _pictures(folder: Path, name: str, tables: dict[str, Table], work: Path) -> Path:
    """The folder of pictures; one that is made, where the sample has none."""
    if (folder / name).is_dir():
        return folder / name
    for image in _images(tables).values():
        paint(work / "pictures" / basename(image["file_name"]), image["width"], image["height"])
    return work / "pictures"


def _converted(tables: dict[str, Table], pictures: Path, maps: Path, place: Path) -> Sample:
    inputs = [part for kind, table in tables.items() for part in (f"--{kind}", table.path)]
    inputs += ["--panoptic-maps", maps] if "panoptic" in tables else []
    there = Folder(pictures)
    items = list(_items(tables, there, Folder(maps)))
    return Sample(converted("coco", [*inputs, "--images", pictures], place), items, [there])


def _images(tables: dict[str, Table]) -> dict[Any, dict[str, Any]]:
    """The row of the first file that lists it, by image id."""
    found: dict[Any, dict[str, Any]] = {}
    for kind in KINDS:
        for image in tables[kind].content["images"] if kind in tables else ():
            found.setdefault(image["id"], image)
    return found


def _items(tables: dict[str, Table], pictures: Folder, maps: Folder) -> Iterator[Item]:
    annotations = {kind: table.by_image() for kind, table in tables.items()}
    known: set[Any] = set()
    for kind in (kind for kind in KINDS if kind in tables):
        here: set[Any] = set()
        for row, image in enumerate(tables[kind].content["images"]):
            if image["id"] in here:
                yield Item(tables[kind].path.name, row, [], None)
            elif image["id"] not in known:
                own = {kind: rows.get(image["id"], []) for kind, rows in annotations.items()}
                yield _item(tables, image, own, pictures, maps)._replace(file=tables[kind].path.name, row=row)
            here.add(image["id"])
        known |= here


def _item(tables: dict[str, Table], image: dict[str, Any], own: dict[str, list[dict[str, Any]]], pictures: Folder, maps: Folder) -> Item:
    names = (image["file_name"], basename(image["file_name"]))
    item = Item("", 0, [pictures.called(*names) or names[0]], None)
    picture = pictures.picture(*names)
    if picture is None:
        return item
    if (image.get("width", picture.width), image.get("height", picture.height)) != (picture.width, picture.height):
        return item._replace(reason="size_differs")
    texts = [row["caption"] for row in own.get("captions", ()) if row["caption"].strip()]
    expected = Expected(
        pictures=[picture],
        origins=item.names,
        id=image["id"],
        turns=[Said("text", [0, *texts[:1]])],
        choices=[[Said("text", [0, text])] for text in texts[1:]],
        regions=list(_regions(tables, own, picture)),
        maps=[_map(tables["panoptic"], row, maps) for row in own.get("panoptic", ())[:1]],
    )
    return item._replace(expected=expected)


def _regions(tables: dict[str, Table], own: dict[str, list[dict[str, Any]]], picture: Picture) -> Iterator[Area]:
    """Instances with the points of the same annotation, then annotations that only the keypoints' file has."""
    points = {row["id"]: row for row in own.get("keypoints", ())}
    for row in own.get("instances", ()):
        yield from _region(row, points.pop(row["id"], row), tables["instances"].categories, picture)
    for row in points.values():
        yield from _region(row, row, tables["keypoints"].categories, picture)


def _region(row: dict[str, Any], pointed: dict[str, Any], categories: dict[Any, str], picture: Picture) -> Iterator[Area]:
    box = kept_box(corners(*row["bbox"]), picture.width, picture.height)
    if box is not None:
        flat = pointed.get("keypoints") or []
        yield Area(
            id=f"a{row['id']}",
            box=box,
            mask=rasterised(row.get("segmentation"), picture.width, picture.height),
            points=[flat[at : at + 3] for at in range(0, len(flat), 3)] or None,
            label=categories.get(row["category_id"]),
            crowd=bool(row["iscrowd"]) if "iscrowd" in row else None,
        )


def _map(table: Table, row: dict[str, Any], maps: Folder) -> LabelMap:
    segments = [
        {"id": one["id"], "label": table.categories[one["category_id"]], "area": one["area"], "crowd": bool(one["iscrowd"])}
        for one in row["segments_info"]
    ]
    return LabelMap((maps.root / row["file_name"]).read_bytes(), segments)
