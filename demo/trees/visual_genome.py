"""Visual Genome: six lists, one row an image, in both generations of key names. https://homes.cs.washington.edu/~ranjay/visualgenome"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from demo import photos
from demo.photos import Deck, Thing, View, side
from demo.trees.tree import Planted, Tree, as_json, xywh

PLANTED = Planted(
    written=20,
    images=20,
    rejected={
        "image_missing": 1,
        "image_truncated": 1,
        "image_format": 1,
        "known_broken": 1,  # 1592, one of the four that the published zips hold broken
        "image_id_repeated": 1,
    },
    dropped={
        "regions_dropped": {"box_outside": 1, "box_missing": 1},
        "expressions_dropped": {"no_region": 1},  # the phrase of the region outside
        "relations_dropped": {"no_region": 1, "predicate_missing": 1},
        "turns_dropped": {"answer_missing": 1},
        "annotations_dropped": {"schema": 1},  # a row of objects without the image's id
    },
    references=24,  # a repeated row refers to nothing
    missing=1,
    unreferenced=1,
)

FILES = ("image_data", "objects", "attributes", "relationships", "region_descriptions", "question_answers")
COLOURS = ("green", "orange", "steel", "dark", "round", "shiny")
Rows = dict[str, list[dict[str, Any]]]


def write(folder: Path, deck: Deck) -> Tree:
    """The tree, under `folder`."""
    views = [*deck.deal_with(2, 8), *deck.deal_with(1, 6), *deck.deal(6)]
    rows: Rows = {name: [] for name in FILES}
    files: dict[Path, bytes] = {}
    for number, view in enumerate(views):
        id = 1 + number
        _add_image(rows, id, view)
        _add_scene(rows, id, view, new=number >= len(views) // 2)
        files[folder / _path(id)] = view.bytes()
    _spoil(rows)
    files |= {folder / path: data for path, data in _broken(rows, deck.deal(4)).items()}
    files |= {folder / "annotations" / f"{name}.json": as_json(table) for name, table in rows.items()}
    photos.write(files)
    pictures = (("--images", folder / "VG_100K"), ("--images", folder / "VG_100K_2"))
    return Tree("visual_genome", folder, (("--annotations", folder / "annotations"), *pictures))


def _path(id: int) -> str:
    """Upstream split the pictures over two zips."""
    return f"VG_100K{'_2' if id % 2 else ''}/{id}.jpg"


def _add_image(rows: Rows, id: int, view: View) -> None:
    url = f"https://cs.stanford.edu/people/rak248/{_path(id)}"
    row = {"width": view.width, "height": view.height, "url": url, "image_id": id, "coco_id": None, "flickr_id": None}
    rows["image_data"].append(row)


def _add_scene(rows: Rows, id: int, view: View, *, new: bool) -> None:
    """All that is said of an image, with the older or the newer key names."""
    image, object_id, names = ("image_id", "object_id", "names") if new else ("id", "id", "object_names")
    ids = [10 * id + at for at in range(len(view.things))]
    objects = [{object_id: number, "names": [thing.name], **_xywh(thing)} for number, thing in zip(ids, view.things, strict=True)]
    described = [
        {object_id: number, names: [thing.name], "attributes": [COLOURS[number % 6]], **_xywh(thing)}
        for number, thing in zip(ids, view.things, strict=True)
    ]
    # Two thirds of the relationships name objects that objects.json lacks: the last one is left out here, too.
    rows["objects"].append({image: id, "objects": objects[:-1] if len(objects) > 2 else objects})
    rows["attributes"].append({image: id, "attributes": described[:1]})
    rows["relationships"].append({image: id, "relationships": _relationships(ids, view, new=new)})
    rows["region_descriptions"].append({"id": id, "regions": _descriptions(id, view, new=new)})
    rows["question_answers"].append({"id": id, "qas": _questions(id, view)})


def _relationships(ids: list[int], view: View, *, new: bool) -> list[dict[str, Any]]:
    name = "relationship_id" if new else "id"
    ends = [_end(number, thing, new=new) for number, thing in zip(ids, view.things, strict=True)]
    return [
        {name: 1000 * ids[0] + at, "predicate": side(one, other), "subject": ends[at], "object": ends[at + 1]}
        for at, (one, other) in enumerate(zip(view.things, view.things[1:], strict=False))
    ]


def _end(number: int, thing: Thing, *, new: bool) -> dict[str, Any]:
    named = {"object_id": number, "names": [thing.name]} if new else {"id": number, "name": thing.name}
    return {**named, **_xywh(thing)}


def _descriptions(id: int, view: View, *, new: bool) -> list[dict[str, Any]]:
    found = []
    for at, (name, box) in enumerate(view.things):
        x, y, w, h = map(int, xywh(box))
        number = {"region_id" if new else "id": 100 * id + at}
        found.append({**number, "image": id, "phrase": f"{name} of {view.photo.subject}", "x": x, "y": y, "width": w, "height": h})
    return found


def _questions(id: int, view: View) -> list[dict[str, Any]]:
    asked = [("What does the picture show?", f"{view.words[:1].upper()}{view.words[1:]}.")]
    if len(view.things) > 1:
        one, other = view.things[:2]
        asked.append((f"Where is the {one.name}?", f"It is {side(one, other)} the {other.name}."))
    return [
        {"qa_id": 10_000 * id + at, "image_id": id, "question": question, "answer": answer, "a_objects": [], "q_objects": []}
        for at, (question, answer) in enumerate(asked)
    ]


def _xywh(thing: Thing) -> dict[str, int]:
    x, y, w, h = map(int, xywh(thing.box))
    return {"x": x, "y": y, "w": w, "h": h}


def _spoil(rows: Rows) -> None:
    """What is wrong in kept images: it costs a region, a phrase, a relation or an answer, none the record."""
    far = {"x": 200, "y": 200, "width": 400, "height": 400}
    rows["region_descriptions"][0]["regions"].append({"id": 99, "image": 1, "phrase": "a region outside", **far})
    known = rows["relationships"][0]["relationships"]
    known.append({"id": 98, "predicate": "near", "subject_id": 4242, "object": dict(known[0]["object"])})  # 4242 has no box anywhere
    known.append({"id": 97, "predicate": None, "subject": dict(known[0]["subject"]), "object": dict(known[0]["object"])})
    rows["question_answers"][0]["qas"].append({"qa_id": 96, "question": "What is behind it?", "answer": ""})
    rows["objects"].append({"objects": []})


def _broken(rows: Rows, views: list[View]) -> dict[str, bytes]:
    """Images that can not become records, and a picture that nobody refers to."""
    for id in (901, 902, 903, 1592):
        _add_image(rows, id, views[0])
    rows["image_data"].append(dict(rows["image_data"][5]))
    return {
        _path(902): photos.cut_off(views[1].bytes()),
        _path(903): photos.HTML,
        _path(1592): views[2].bytes(),
        _path(904): views[3].bytes(),
    }
