"""What raw files say, worked out by Pillow, pycocotools, json and hashlib alone, and how it is compared with what was stored."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import posixpath
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image
from pycocotools import mask as _mask

from tests.conformance.commands import Conversion, Stored

coco: Any = _mask  # its stubs know one of the three kinds of mask

SUFFIX = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp"}

Part = str | int  # text, or the number of an image


class Picture(NamedTuple):
    """A picture that Pillow opens and loads."""

    data: bytes
    suffix: str
    width: int
    height: int

    @property
    def sha256(self) -> str:
        """Of its bytes."""
        return hashlib.sha256(self.data).hexdigest()


class Said(NamedTuple):
    """A turn."""

    role: str
    parts: list[Part]


@dataclass
class Area:
    """A region. An id of None is not compared."""

    id: str | None
    box: list[float] | None
    mask: dict[str, Any] | None = None  # RLE as pycocotools has it
    points: list[list[float]] | None = None
    label: str | None = None
    crowd: bool | None = None
    attributes: Any = None
    score: float | None = None


class LabelMap(NamedTuple):
    """A panoptic map."""

    png: bytes
    segments: list[dict[str, Any]]


@dataclass
class Expected:
    """What a record must hold."""

    pictures: list[Picture]
    turns: list[Said]
    choices: list[list[Said]] = field(default_factory=list)
    regions: list[Area] = field(default_factory=list)
    expressions: list[tuple[str, list[str]]] = field(default_factory=list)
    relations: list[tuple[str, str, str]] = field(default_factory=list)
    maps: list[LabelMap] = field(default_factory=list)
    similarities: list[float | None] | None = None
    origins: list[str] | None = None
    id: Any = None  # upstream's


class Item(NamedTuple):
    """One item of the input: the record that it must become, or None and perhaps why."""

    file: str
    row: int
    names: list[str]  # of the pictures that it refers to
    expected: Expected | None
    reason: str | None = None


def looked_at(data: bytes) -> Picture | None:
    """The picture; None where Pillow can not open or load it, or it is of a format that the contract does not name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as opened:
                suffix = SUFFIX.get(opened.format or "")
                opened.load()
                return Picture(data, suffix, *opened.size) if suffix else None
        except Exception:  # noqa: BLE001 - whatever Pillow raises, it could not
            return None


def painted(width: int, height: int, seed: object) -> bytes:
    """A JPEG of this size that no other seed gives."""
    colours = hashlib.sha256(str(seed).encode()).digest()
    picture = Image.new("RGB", (width, height), tuple(colours[:3]))
    for at in range(3, 27, 3):
        left, top = colours[at] * width // 256, colours[at + 1] * height // 256
        picture.paste(tuple(colours[at : at + 3]), (left, top, left + max(1, width // 5), top + max(1, height // 5)))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=70)
    return stream.getvalue()


def paint(path: Path, width: int, height: int) -> None:
    """Write a picture of its own to this path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(painted(width, height, path.name))


class Folder:
    """The files under a folder, by relative name; or the names that are given."""

    def __init__(self, root: Path, names: Iterable[str] | None = None) -> None:
        self.root = root
        self.names = sorted(names or (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()))
        self._known = set(self.names)
        self._stems: dict[str, str] = {}
        for name in self.names:
            self._stems.setdefault(posixpath.splitext(name)[0], name)

    def called(self, *names: str) -> str | None:
        """The first of these names that there is, or else the file of the same folder and stem."""
        twins = (self._stems.get(posixpath.splitext(name)[0]) for name in names)
        return next((name for name in (*(name for name in names if name in self._known), *twins) if name), None)

    def picture(self, *names: str) -> Picture | None:
        """The picture of the first of these names that there is."""
        found = self.called(*map(posixpath.normpath, names))
        return None if found is None else looked_at((self.root / found).read_bytes())


def kept_box(box: Sequence[float], width: int, height: int) -> list[float] | None:
    """Section 3: less than a pixel outside is clipped, further outside is dropped. box is x0, y0, x1, y1."""
    x0, y0, x1, y1 = box
    outside = max(-x0, -y0, x1 - width, y1 - height)
    if not all(map(math.isfinite, box)) or outside >= 1:
        return None
    clipped = [max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)]
    return clipped if clipped[0] < clipped[2] and clipped[1] < clipped[3] and x0 < x1 and y0 < y1 else None


def corners(x: float, y: float, width: float, height: float) -> list[float]:
    """A box given by its corner and size."""
    return [x, y, x + width, y + height]


def rasterised(segmentation: Any, width: int, height: int) -> dict[str, Any] | None:
    """What pycocotools makes of polygons, of a count list or of a compressed string; None where not a pixel is set."""
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        whole = [polygon for polygon in segmentation if len(polygon) >= 6]
        rle = coco.merge(coco.frPyObjects(whole, height, width)) if whole else None
    elif isinstance(segmentation["counts"], list):
        rle = coco.frPyObjects(segmentation, *segmentation["size"])
    else:
        rle = {"size": segmentation["size"], "counts": segmentation["counts"].encode()}
    return rle if rle and list(rle["size"]) == [height, width] and coco.area(rle) else None


def compare(conversion: Conversion, items: Sequence[Item]) -> None:
    """Every item is the record, or the reject, that it must be; keys follow the order of the input."""
    keys = sorted([*conversion.records, *conversion.rejects])
    written = [item for item in items if item.expected is not None]
    totals = conversion.manifest["totals"]

    assert len(keys) == len(items)
    assert (totals["read"], totals["written"], totals["rejected"]) == (len(items), len(written), len(items) - len(written))
    assert totals["images"] == sum(len(item.expected.pictures) for item in written if item.expected)
    assert written, "a folder that writes no record is no sample"
    for key, item in zip(keys, items, strict=True):
        if item.expected is None:
            compare_reject(conversion, key, item)
        else:
            assert key in conversion.records, f"{item.file} row {item.row} was rejected: {conversion.rejects[key]}"
            compare_record(conversion.records[key], item.expected, conversion.source)


def compare_reject(conversion: Conversion, key: str, item: Item) -> None:
    """The ledger says where the item was, and why."""
    assert key in conversion.rejects, f"{item.file} row {item.row} was written, expected a reject: {item.reason}"
    found = conversion.rejects[key]
    assert (Path(found["file"]).name, found["row"]) == (item.file, item.row)
    assert item.reason in (None, found["reason"])


def compare_record(stored: Stored, expected: Expected, source: str) -> None:
    """The record is the expected one, in every part."""
    record = stored.record
    assert (record["format"], record["key"], record["source"]) == (1, stored.key, source)
    compare_pictures(stored, expected)
    assert said(record["turns"]) == expected.turns, stored.key
    assert [said(choice["turns"]) for choice in record["choices"]] == expected.choices, stored.key
    compare_regions(record["regions"], expected.regions)
    assert [(one["text"], one["regions"]) for one in record["expressions"]] == expected.expressions, stored.key
    assert [(one["subject"], one["predicate"], one["object"]) for one in record["relations"]] == expected.relations, stored.key
    compare_maps(stored, expected.maps)
    assert expected.id in (None, json.loads(record["meta"]).get("id"))


def compare_pictures(stored: Stored, expected: Expected) -> None:
    """The same pictures, byte for byte, in the same order."""
    images = stored.record["images"]
    assert len(images) == len(expected.pictures), stored.key
    for number, (image, picture) in enumerate(zip(images, expected.pictures, strict=True)):
        assert image["member"] == f"{stored.key}.{number}.{picture.suffix}"
        assert hashlib.sha256(stored.files[image["member"]]).hexdigest() == picture.sha256, image
        stated = (image["format"], image["width"], image["height"], image["bytes"])
        assert stated == (picture.suffix, picture.width, picture.height, len(picture.data)), image
    if expected.origins is not None:
        assert [image["origin"] for image in images] == expected.origins
    if expected.similarities is not None:
        assert [image["similarity"] for image in images] == pytest.approx(expected.similarities)


def said(turns: Iterable[dict[str, Any]]) -> list[Said]:
    """Turns as roles and parts in reading order."""
    return [Said(turn["role"], [_part(part) for part in turn["parts"]]) for turn in turns]


def _part(part: dict[str, Any]) -> Part:
    (value,) = (part[kind] for kind in ("text", "image", "region") if part[kind] is not None)
    return value


def compare_regions(found: Sequence[dict[str, Any]], expected: Sequence[Area]) -> None:
    """By id where ids are expected, or else in order."""
    by_id = {region["id"]: region for region in found}
    assert len(by_id) == len(found) == len(expected), sorted({area.id for area in expected} ^ set(by_id), key=str)
    for region, area in zip(found, expected, strict=True):
        compare_region(region if area.id is None else by_id[area.id], area)


def compare_region(found: dict[str, Any], area: Area) -> None:
    """The same place, the same name, the same properties."""
    assert found["image"] == 0
    assert found["box"] == (None if area.box is None else pytest.approx(area.box, abs=1e-6)), (found, area)
    compare_mask(found["mask"], area.mask)
    assert found["points"] == area.points
    assert (found["label"], found["crowd"]) == (area.label, area.crowd), (found["id"], area)
    assert found["score"] == (None if area.score is None else pytest.approx(area.score))
    assert (None if found["attributes"] is None else json.loads(found["attributes"])) == area.attributes


def compare_mask(found: dict[str, Any] | None, expected: dict[str, Any] | None) -> None:
    """The same pixels."""
    assert (found is None) == (expected is None), expected
    if found is not None and expected is not None:
        rle: Any = {"size": found["size"], "counts": found["counts"].encode()}
        assert list(rle["size"]) == list(expected["size"])
        assert coco.area(rle) == coco.area(expected)
        assert coco.iou([rle], [expected], [0])[0, 0] == 1.0


def compare_maps(stored: Stored, expected: Sequence[LabelMap]) -> None:
    """The same PNG, byte for byte, and the same segments."""
    for map, wanted in zip(stored.record["maps"], expected, strict=True):
        assert (map["image"], map["kind"], map["encoding"]) == (0, "panoptic", "RGB24")
        assert stored.files[map["member"]] == wanted.png
        assert map["segments"] == wanted.segments


def compare_counts(conversion: Conversion, items: Iterable[Item], *folders: Folder) -> None:
    """`pipelines check` counted what is there, what is not, and what nobody asked for."""
    items = list(items)
    there = {name for folder in folders for name in folder.names}
    asked = {name for item in items for name in item.names}
    found = {name: next(filter(None, (folder.called(posixpath.normpath(name)) for folder in folders)), None) for name in asked}
    other_suffix = sum(name is not None and name != posixpath.normpath(wanted) for wanted, name in found.items())
    counted = conversion.counted

    assert counted["records"] == len(items)
    assert counted["image_references"] == sum(len(item.names) for item in items)
    assert counted["images"]["distinct"] == len(asked)
    assert counted["images"]["missing"] == sum(name is None for name in found.values())
    assert counted["images"]["other_suffix"] == other_suffix
    assert counted["images"]["present"] == len(asked) - counted["images"]["missing"] - other_suffix
    assert sum(counted["missing_by_folder"].values()) == counted["images"]["missing"]
    assert counted["unreferenced_files"] == len(there - {name for name in found.values() if name})


def json_files(folder: Path) -> Iterator[tuple[Path, Any]]:
    """Every JSON file directly in the folder, decoded."""
    for path in sorted(folder.glob("*.json")):
        yield path, json.loads(path.read_bytes())


def basename(url: str) -> str:
    """The last part of a URL or path."""
    return os.path.basename(url)


class Sample(NamedTuple):
    """A folder of samples: what the commands made of it, and what it holds."""

    conversion: Conversion
    items: list[Item]
    pictures: list[Folder]
