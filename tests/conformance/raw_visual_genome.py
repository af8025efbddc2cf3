"""Visual Genome as its own files say, in both generations of key names. One item is one image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.conformance.commands import converted
from tests.conformance.oracle import Area, Expected, Folder, Item, Picture, Said, Sample, corners, json_files, kept_box, paint

LISTS = {
    "objects": "objects",
    "attributes": "attributes",
    "relationships": "relationships",
    "region_descriptions": "regions",
    "question_answers": "qas",
}
BROKEN = {1592, 1722, 4616, 4617}

Thing = dict[str, Any]
Rows = dict[str, tuple[str, list[Thing]]]  # file name and rows, by kind


def samples(folder: Path, work: Path) -> Iterator[Sample]:
    """One conversion for every version's folder."""
    for version in sorted({path.parent for path in folder.rglob("*.json")}):
        files = _files(version)
        pictures = work / "pictures" / version.name
        _paint(files, pictures)
        items = list(_items(files, Folder(pictures)))
        conversion = converted("visual_genome", ["--annotations", version, "--images", pictures], work / version.name)
        yield Sample(conversion, items, [Folder(pictures)])


def _files(folder: Path) -> Rows:
    found: Rows = {}
    for path, rows in json_files(folder):
        keys = {key for row in rows[:20] for key in row}
        kind = next((kind for kind, name in LISTS.items() if name in keys), "image_data" if "url" in keys else None)
        if kind is not None:
            found[kind] = path.name, rows
    return {kind: found[kind] for kind in ("image_data", *LISTS) if kind in found}


def _image_id(row: Thing) -> int:
    return row["image_id"] if row.get("image_id") is not None else row["id"]


def _rows_by_image(files: Rows) -> dict[str, dict[int, Thing]]:
    """The first row of each image in each file."""
    return {kind: {_image_id(row): row for row in reversed(rows)} for kind, (_, rows) in files.items()}


def _paint(files: Rows, pictures: Path) -> None:
    """A picture for every image: of the stated size, or else one that holds every box."""
    rows = _rows_by_image(files)
    for id in {id for kind in rows.values() for id in kind}:
        stated = rows.get("image_data", {}).get(id, {})
        boxes = [box for kind, name in LISTS.items() for box in _boxes(rows.get(kind, {}).get(id, {}).get(name) or ())]
        width = stated.get("width") or max((math.ceil(box[2]) for box in boxes), default=64)
        height = stated.get("height") or max((math.ceil(box[3]) for box in boxes), default=64)
        paint(pictures / _names(id, stated)[-1], width, height)


def _boxes(things: Any) -> Iterator[list[float]]:
    for thing in things:
        yield from (box for one in (thing, thing.get("subject"), thing.get("object")) if isinstance(one, dict) and (box := _box(one)))


def _box(thing: Thing) -> list[float] | None:
    x, y = thing.get("x"), thing.get("y")
    width, height = thing.get("w", thing.get("width")), thing.get("h", thing.get("height"))
    return None if x is None or y is None or width is None or height is None else corners(x, y, width, height)


def _names(id: int, stated: Thing) -> list[str]:
    """What the zips call it: VG_100K_2/1.jpg."""
    *folders, name = (stated.get("url") or f"VG_100K/{id}.jpg").split("/")
    return [name, f"{folders[-1]}/{name}"]


def _items(files: Rows, pictures: Folder) -> Iterator[Item]:
    rows, seen = _rows_by_image(files), set[int]()
    for kind, (file, listed) in files.items():
        for number, row in enumerate(listed):
            id = _image_id(row)
            if id not in seen:
                yield _item(id, {kind: rows[kind].get(id, {}) for kind in rows}, pictures)._replace(file=file, row=number)
            elif kind == "image_data":
                yield Item(file, number, [], None)
            seen.add(id)


def _item(id: int, own: dict[str, Thing], pictures: Folder) -> Item:
    stated = own.get("image_data", {})
    names = _names(id, stated)
    picture = pictures.picture(*names)
    item = Item("", 0, [pictures.called(*names) or names[0]], None)
    if picture is None or id in BROKEN:
        return item
    if (stated.get("width") or picture.width, stated.get("height") or picture.height) != (picture.width, picture.height):
        return item._replace(reason="size_differs")
    expected = _expected(picture, {kind: own.get(kind, {}).get(name) or [] for kind, name in LISTS.items()})
    return item._replace(expected=replace(expected, origins=item.names, id=id))


def _expected(picture: Picture, own: dict[str, list[Thing]]) -> Expected:
    asked = [(qa.get("question") or "", qa.get("answer") or "") for qa in own["question_answers"]]
    talks = [
        [Said("user", [0, question]), Said("assistant", [answer])] for question, answer in asked if question.strip() and answer.strip()
    ]
    objects = _Objects(picture, own)
    described = list(_described(own["region_descriptions"], picture))
    return Expected(
        pictures=[picture],
        turns=talks[0] if talks else [Said("text", [0])],
        choices=talks[1:],
        regions=[*objects.regions(), *(area for area, _ in described)],
        expressions=[(phrase, [str(area.id)]) for area, phrase in described if phrase.strip()],
        relations=list(objects.relations(own["relationships"])),
    )


def _described(regions: list[Thing], picture: Picture) -> Iterator[tuple[Area, str]]:
    seen: dict[str, int] = {}
    for region in regions:
        id = f"r{region['region_id'] if region.get('region_id') is not None else region['id']}"
        seen[id] = seen.get(id, 0) + 1
        box = _box(region)
        kept = box and kept_box(box, picture.width, picture.height)
        if kept:
            yield Area(id if seen[id] == 1 else f"{id}.{seen[id]}", kept), region.get("phrase") or ""


class _Objects:
    """The objects of one image; the first that is said of each counts."""

    def __init__(self, picture: Picture, own: dict[str, list[Thing]]) -> None:
        self.picture = picture
        self.first: dict[int, Thing] = {}
        self.attributes: dict[int, list[str]] = {}
        ids = {_object_id(thing) for thing in own["objects"]}
        self.merged: dict[int, int] = {}
        for thing in own["objects"]:
            self._meet(thing)
            self.merged |= {other: _object_id(thing) for other in thing.get("merged_object_ids") or () if other not in ids}
        for thing in own["attributes"]:
            self._meet(thing)
        for relationship in own["relationships"]:
            for thing in _ends(relationship):
                self._meet(thing)

    def _meet(self, thing: Thing) -> None:
        number = self._meant(thing)
        self.first.setdefault(number, thing)
        said = self.attributes.setdefault(number, [])
        attributes = thing.get("attributes") or []
        said += [one for one in dict.fromkeys([attributes] if isinstance(attributes, str) else attributes) if one not in said]

    def _meant(self, thing: Thing) -> int:
        return self.merged.get(_object_id(thing), _object_id(thing))

    def _kept(self, number: int) -> list[float] | None:
        box = _box(self.first[number])
        return kept_box(box, self.picture.width, self.picture.height) if box else None

    def regions(self) -> Iterator[Area]:
        """Those whose box can be kept."""
        for number, thing in self.first.items():
            box, names, said = self._kept(number), _object_names(thing), self.attributes[number]
            if box is not None:
                attributes = {"names": names, "attributes": said} if len(names) > 1 else said or None
                yield Area(f"o{number}", box, label=names[0] if names else None, attributes=attributes)

    def relations(self, relationships: list[Thing]) -> Iterator[tuple[str, str, str]]:
        """Those whose two ends are kept."""
        for relationship in relationships:
            ends = [self._meant(thing) for thing in _ends(relationship)]
            if len(ends) == 2 and all(map(self._kept, ends)) and relationship.get("predicate") is not None:
                yield f"o{ends[0]}", relationship["predicate"], f"o{ends[1]}"


def _ends(relationship: Thing) -> list[Thing]:
    named = [(relationship.get(end), relationship.get(f"{end}_id")) for end in ("subject", "object")]
    return [thing or {"object_id": id} for thing, id in named if thing or id is not None]


def _object_id(thing: Thing) -> int:
    return thing["object_id"] if thing.get("object_id") is not None else thing["id"]


def _object_names(thing: Thing) -> list[str]:
    names = thing.get("names") or thing.get("object_names") or thing.get("name") or []
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))
