"""GranD scenes as their own files say, of any stage of the pipeline. One item is one scene."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.conformance.commands import converted
from tests.conformance.oracle import Area, Expected, Folder, Item, Picture, Said, Sample, json_files, kept_box, paint, rasterised

KINDS = ("objects", "floating_objects", "floating_attributes")

Scene = dict[str, Any]


def samples(folder: Path, work: Path) -> Iterator[Sample]:
    """All scenes at once, with pictures that are made."""
    pictures = work / "pictures"
    scenes = [(path, *content.items()) for path, content in json_files(folder)]
    for _, (name, scene) in scenes:
        paint(pictures / name, *_size(scene))
    there = Folder(pictures)
    items = [_item(path, name, scene, there) for path, (name, scene) in scenes]
    yield Sample(converted("grand", ["--annotations", folder, "--images", pictures], work / "out"), items, [there])


def scenes(folder: Path) -> dict[str, Scene]:
    """Every scene by the name of its picture."""
    return {name: scene for _, content in json_files(folder) for name, scene in content.items()}


def _size(scene: Scene) -> tuple[int, int]:
    """That of its masks, or else the smallest that holds every box."""
    things = [thing for kind in KINDS for thing in scene.get(kind) or ()]
    masks = [thing["segmentation"]["size"] for thing in things if thing.get("segmentation")]
    boxes = [thing["bbox"] for thing in things if thing.get("bbox")]
    if masks:
        return masks[0][1], masks[0][0]
    return max((math.ceil(box[2]) for box in boxes), default=64), max((math.ceil(box[3]) for box in boxes), default=64)


def _item(path: Path, name: str, scene: Scene, pictures: Folder) -> Item:
    picture = pictures.picture(name)
    assert picture is not None
    return Item(path.name, 0, [name], replace(_expected(scene, picture), origins=[name], id=name))


def _expected(scene: Scene, picture: Picture) -> Expected:
    regions = list(_regions(scene, picture))
    known = {str(area.id) for area in regions}
    turns = [Said("text", [0, caption["caption"]]) for caption in captions(scene)] or [Said("text", [0])]
    grounding = (scene.get("relationships") or {}).get("grounding") or []
    phrases = [(one["phrase"], [id for id in ids(one["object_ids"]) if id in known]) for one in grounding]
    return Expected(
        pictures=[picture],
        turns=turns[:1],
        choices=[[turn] for turn in turns[1:]],
        regions=regions,
        expressions=[(phrase, refers) for phrase, refers in phrases if phrase and refers],
    )


def captions(scene: Scene) -> list[dict[str, Any]]:
    """Dense, short and ungrounded captions, in this order, each with its text and details."""
    dense = [scene["dense_caption"]] if scene.get("dense_caption") else []
    listed = [*dense, *(scene.get("short_captions") or ()), *(scene.get("captions") or ())]
    found = [{"caption": one, "details": []} if isinstance(one, str) else one for one in listed]
    return [one for one in found if (one.get("caption") or "").strip()]


def _regions(scene: Scene, picture: Picture) -> Iterator[Area]:
    """The first thing of every id, less those whose box can not be kept. Floating attributes have no id upstream."""
    seen: set[str] = set()
    for kind in KINDS:
        for number, thing in enumerate(scene.get(kind) or ()):
            id = f"fa{number}" if thing.get("id") is None else str(thing["id"])
            box = kept_box(thing["bbox"], picture.width, picture.height)
            if id not in seen and box is not None:
                yield _region(id, box, thing, picture, floating=kind != "objects")
            seen.add(id)


def _region(id: str, box: list[float], thing: dict[str, Any], picture: Picture, *, floating: bool) -> Area:
    labels = thing.get("labels") or []
    attributes: dict[str, Any] = {"attributes": [_clean(text) for text in _texts(thing.get("attributes"))], "labels": labels}
    attributes |= {name: thing[name] for name in ("depth", "median_depth", "segmentation_source") if thing.get(name) is not None}
    return Area(
        id=id,
        box=box,
        mask=rasterised(thing.get("segmentation"), picture.width, picture.height),
        label=thing["label"] if thing.get("label") is not None else (labels or [None])[0],
        score=thing.get("score"),
        attributes={**attributes, "floating": True} if floating else attributes,
    )


def _texts(value: Any) -> list[str]:
    """Upstream's three types of attributes."""
    return [value] if isinstance(value, str) else value or []


def _clean(text: str) -> str:
    """Without the language model's answer mark."""
    return re.sub(r"^\s*(ass)?istant:\s*", "", text, flags=re.I)


def ids(value: Any) -> list[str]:
    """Upstream's id or list of ids, each once."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return list(dict.fromkeys(map(str, values)))


def details(caption: dict[str, Any]) -> list[tuple[str, tuple[int, int] | None, list[str]]]:
    """Phrase, stated offsets and ids of everything that a caption grounds."""
    return [
        (one.get("phrase") or "", _offsets(one.get("tokens_positive")), ids(one["ids"] if one.get("ids") is not None else one.get("id")))
        for one in caption.get("details") or ()
    ]


def _offsets(value: Any) -> tuple[int, int] | None:
    flat = value[0] if value and isinstance(value[0], list) else value
    return (flat[0], flat[1]) if flat and len(flat) == 2 else None


def stands(caption: str, phrase: str, at: tuple[int, int] | None) -> bool:
    """Whether the phrase is, whatever its case, where its offsets say."""
    return at is not None and 0 <= at[0] < at[1] <= len(caption) and caption[at[0] : at[1]].lower() == phrase.lower()


def occurs(caption: str, phrase: str) -> bool:
    """Whether the phrase is anywhere in the caption, as whole words."""
    return bool(phrase.strip()) and re.search(rf"(?<!\w){re.escape(phrase.strip())}(?!\w)", caption, re.I) is not None


def crosses(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two stretches overlap and neither holds the other."""
    (a, b), (c, d) = sorted((one, other))
    return a < c < b < d
