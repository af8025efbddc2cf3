"""GranD: one JSON a scene, in a tar.gz part, and SA-1B pictures. https://github.com/mbzuai-oryx/groundingLMM/blob/main/docs/GranD.md"""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

from demo import masks, photos
from demo.photos import Deck, Thing, View, side
from demo.trees.tree import Planted, Tree, as_json

PLANTED = Planted(
    written=16,
    images=16,
    rejected={
        "image_missing": 1,
        "image_truncated": 1,
        "image_format": 1,
        "size_differs": 1,  # a mask of another size: these are annotations of another picture
        "json": 1,  # a scene that was cut off
    },
    dropped={
        "regions_dropped": {"duplicate_id": 1, "box_outside": 1},
        "spans_dropped": {"phrase_not_found": 1, "no_region": 1},
        "expressions_dropped": {"no_region": 1},
        "masks_dropped": {"mask_runs": 1},
        "mended": {
            "affordance_dangling_id": 1,
            "attribute_prefix": 1,
            "expression_dangling_id": 1,
            "span_dangling_id": 1,
            "span_found": 1,  # tokens_positive: null
            "span_moved": 1,  # offsets from before punctuation was taken out
        },
    },
    references=21,  # the name stands at the beginning of the scene that was cut off, too
    missing=2,
    unreferenced=1,
)


def write(folder: Path, deck: Deck) -> Tree:
    """The tree, under `folder`."""
    views = [*deck.deal_with(2, 8), *deck.deal_with(1, 4), *deck.deal(4)]
    scenes = {f"sa_{300_000 + at}": _scene(view) for at, view in enumerate(views)}
    files = {folder / "images" / f"{name}.jpg": view.bytes() for name, view in zip(scenes, views, strict=True)}
    _spoil(list(scenes.values()))
    members = [(name, as_json({f"{name}.jpg": scene})) for name, scene in scenes.items()]
    broken, pictures = _broken(deck.deal(4))
    files |= {folder / "images" / name: data for name, data in pictures.items()}
    halves = members[: len(members) // 2], members[len(members) // 2 :] + broken
    files |= {folder / "annotations" / f"part_{at}.tar.gz": _packed(half) for at, half in enumerate(halves, 1)}
    photos.write(files)
    return Tree("grand", folder, (("--annotations", folder / "annotations"), ("--images", folder / "images")))


def _scene(view: View) -> dict[str, Any]:
    """All that the pipeline found. Attributes are null, a text or a list; the last thing is a floating object where there are several."""
    objects = [_object(at, thing, view) for at, thing in enumerate(view.things)]
    floating = [objects.pop()] if len(objects) > 2 else []
    phrases = [(f"the {thing.name}", at) for at, thing in enumerate(view.things)]
    return {
        "objects": objects,
        "floating_objects": floating,
        "floating_attributes": [],
        "landmark": {"category": "Indoor scene", "fine_category": "Photograph"},
        "affordances": {},
        "id_counter": len(view.things),
        "relationships": {
            "object_ids": [thing["id"] for thing in objects],
            "floating_object_ids": [thing["id"] for thing in floating],
            "grounding": [{"phrase": phrase, "object_ids": [at]} for phrase, at in phrases[:2]],
        },
        "short_captions": [_short(f"{view.words} with {phrase}", phrase, at, objects) for phrase, at in phrases[:1]],
        "dense_caption": _dense(view),
        "additional_context": "",
    }


def _object(at: int, thing: Thing, view: View) -> dict[str, Any]:
    return {
        "bbox": list(thing.box),
        "labels": [thing.name.replace(" ", "_"), thing.name],
        "label": thing.name,
        "score": round(0.9 - 0.1 * at, 2),
        "attributes": (None, f"a {thing.name} of {view.photo.subject}", [f"the {thing.name}", "sharp"])[at % 3],
        "id": at,
        "depth": 1000.0 + at,
        "segmentation": masks.compressed(masks.bitmap(thing.box, view.width, view.height)),
        "segmentation_source": "SAM",
    }


def _short(caption: str, phrase: str, at: int, objects: list[dict[str, Any]]) -> dict[str, Any]:
    start = caption.rindex(phrase)
    detail = {"phrase": phrase, "tokens_positive": [start, start + len(phrase)], "id": at, "bbox": objects[0]["bbox"]}
    return {"caption": caption, "details": [detail]}


def _dense(view: View) -> dict[str, Any]:
    """A sentence for the whole, then one for every two things: each phrase with its place."""
    caption, details, things = view.sentence, [], view.things
    for at in range(0, len(things) - 1, 2):
        one, other = things[at], things[at + 1]
        for before, phrase, id in ((" ", f"The {one.name}", at), (f" is {side(one, other)} ", f"the {other.name}", at + 1)):
            details.append(_detail(phrase, len(caption + before), id, view))
            caption += before + phrase
        caption += "."
    return {"caption": caption, "details": details}


def _detail(phrase: str, start: int, at: int, view: View) -> dict[str, Any]:
    return {"phrase": phrase, "tokens_positive": [start, start + len(phrase)], "ids": [at], "bbox": [list(view.things[at].box)]}


def _spoil(scenes: list[dict[str, Any]]) -> None:
    """What is wrong in kept scenes: it costs a region, a span, a phrase or a mask, none the record."""
    one, other, third = scenes[:3]
    one["objects"].append({**one["objects"][0], "label": "promoted twice"})
    one["objects"].append({**one["objects"][0], "id": 77, "bbox": [200.0, 200.0, 600.0, 600.0], "segmentation": None})
    one["relationships"]["grounding"].append({"phrase": "something that was dropped", "object_ids": [555]})
    one["affordances"] = {"Sit": {"description": "A bench to sit on.", "object_ids": [0, 302], "labels": ["bench"]}}
    other["objects"][0]["attributes"] = ["Assistant: seen from the front"]
    other["objects"][0]["segmentation"] = {**other["objects"][0]["segmentation"], "counts": "0"}
    details = other["dense_caption"]["details"]
    details[0]["tokens_positive"] = None
    details[1]["tokens_positive"] = [at + 3 for at in details[1]["tokens_positive"]]
    details = third["dense_caption"]["details"]
    details.append({"phrase": "a purple elephant", "tokens_positive": [0, 17], "ids": [0], "bbox": []})
    details.append({"phrase": "the", "tokens_positive": None, "ids": [888], "bbox": []})


def _broken(views: list[View]) -> tuple[list[tuple[str, bytes]], dict[str, bytes]]:
    """Scenes that can not become records, and their pictures."""
    names = ("sa_309001", "sa_309002", "sa_309003", "sa_309004")
    members = [(name, as_json({f"{name}.jpg": _scene(view)})) for name, view in zip(names[:3], views, strict=False)]
    foreign = {"objects": [{**_object(0, Thing("square", (10, 10, 90, 90)), views[3]), "segmentation": {"size": [9, 9], "counts": "a2"}}]}
    members += [(names[3], as_json({f"{names[3]}.jpg": foreign})), ("sa_309005", as_json({"sa_309005.jpg": _scene(views[0])})[:70])]
    pictures = {
        f"{names[1]}.jpg": photos.cut_off(views[1].bytes()),
        f"{names[2]}.jpg": photos.HTML,
        f"{names[3]}.jpg": views[3].bytes(),
        "sa_309009.jpg": views[2].bytes(),
    }
    return members, pictures


def _packed(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(f"{name}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(stream.getvalue(), mtime=0)
