"""COCO 2017: captions, instances, keypoints and panoptic maps over one folder of pictures. https://cocodataset.org/#format-data"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo import masks, photos
from demo.photos import PHOTOS, Deck, View
from demo.trees.tree import Planted, Tree, as_json, xywh

GOOD = 24  # 12 with two things or more, 2 of persons, 10 of anything

PLANTED = Planted(
    written=24,
    images=24,
    rejected={
        "image_missing": 1,  # 13
        "image_truncated": 1,  # a JPEG that was cut off
        "image_format": 1,  # HTML saved as .jpg
        "image_empty": 1,  # zero bytes
        "size_differs": 1,  # the annotations say 640 x 480
        "schema": 1,  # a row of images without file_name
        "image_id_repeated": 1,
    },
    dropped={
        "regions_dropped": {"box_outside": 1, "box_empty": 1},
        "maps_dropped": {"map_missing": 1},
        "turns_dropped": {"caption_empty": 1},
        "annotations_without_image": {"captions": 1},
        "mended": {"box_clipped": 1, "masks_dropped": 1},
        "notes": {"image_without_annotation": 1},
    },
    references=29,  # the row without file_name and the repeated one refer to nothing
    missing=1,
    unreferenced=1,
)

SIDED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
KEYPOINTS = ["nose", *(f"{side}_{part}" for part in SIDED for side in ("left", "right"))]
NAMES = ["person", *sorted({thing.name for photo in PHOTOS for thing in photo.things} - {"person"})]
CATEGORIES = [{"supercategory": "demo", "id": number, "name": name} for number, name in enumerate(NAMES, 1)]
BACKGROUND = len(NAMES) + 1
LICENCES = [{"url": "https://scikit-image.org", "id": 1, "name": "see the README of skimage.data"}]


def write(folder: Path, deck: Deck) -> Tree:
    """The tree, under `folder`."""
    views = [deck.deal_person(), deck.deal_person(), *deck.deal_with(2, 12), *deck.deal(10)]
    files = _Files(folder)
    for number, view in enumerate(views):
        files.add(100 + number, view, annotated=number != GOOD - 1)
    files.spoil_annotations()
    files.add_broken(deck.deal(5))
    return files.write()


class _Files:
    """The four annotation files and the two folders of pictures, as they come together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: list[dict[str, Any]] = []
        self.captions: list[dict[str, Any]] = []
        self.instances: list[dict[str, Any]] = []
        self.keypoints: list[dict[str, Any]] = []
        self.panoptic: list[dict[str, Any]] = []
        self.bytes: dict[Path, bytes] = {}

    def add(self, id: int, view: View, *, annotated: bool) -> None:
        """An image, with all that there is to say of it."""
        self._picture(id, view.width, view.height, view.bytes())
        if not annotated:
            return
        for caption in view.captions():
            self._caption(id, caption)
        crowded = view.photo.subject == "old coins"
        for position, (name, box) in enumerate(view.things):
            self._instance(id, name, box, _segmentation(position, box, view), crowd=False)
            if name == "person":
                self._keypoints(view)
        if crowded:
            pixels = masks.bitmap((0, 0, view.width, view.height), view.width, view.height)
            whole = (0.0, 0.0, float(view.width), float(view.height))
            self._instance(id, view.things[0].name if view.things else NAMES[1], whole, masks.count_list(pixels), crowd=True)
        if view.things:
            self._panoptic(id, view)

    def spoil_annotations(self) -> None:
        """What is wrong in kept images: each costs a region, a mask, a map or a caption, none the record."""
        first, second = self.images[0], self.images[1]
        outside = (first["width"] - 20.0, 5.0, first["width"] + 60.0, 50.0)
        self._instance(first["id"], "helmet", outside, [], crowd=False)
        self._instance(first["id"], "helmet", (30, 40, 30, 80), [], crowd=False)
        nearly = (-0.4, 10.0, 40.0, 60.0)  # rounding upstream: clipped, not dropped
        self._instance(second["id"], "flag", nearly, [masks.polygon((0, 10, 40, 60))], crowd=False)
        self._instance(second["id"], "flag", (5, 5, 50, 50), {"size": [10, 10], "counts": "PP5"}, crowd=False)
        self._caption(second["id"], "  ")
        self._caption(999_999, "A caption of an image that is in no table.")
        del self.bytes[self.folder / "panoptic_train2017" / self.panoptic[-1]["file_name"]]

    def add_broken(self, views: list[View]) -> None:
        """Images that can not become records."""
        view = views[0]
        for id, data in enumerate((None, photos.cut_off(views[1].bytes()), photos.HTML, photos.EMPTY), 900):
            self._picture(id, view.width, view.height, data)
            self._caption(id, "A picture that is not there, or broken.")
        self._picture(904, 640, 480, views[2].bytes())  # and is not of this size
        self.images.append({"license": 1, "height": 480, "width": 640, "id": 905})
        self.images.append(dict(self.images[3]))
        self.bytes[self.folder / "train2017" / _name(906)] = views[4].bytes()  # nobody refers to it

    def write(self) -> Tree:
        """Everything onto disk."""
        annotations = self.folder / "annotations"
        tables = {
            "captions": {"images": self.images, "annotations": self.captions},
            "instances": {"images": self.images[:-1], "annotations": self.instances, "categories": CATEGORIES},
            "person_keypoints": {"images": self.images[:2], "annotations": self.keypoints, "categories": [_person()]},
            "panoptic": {"images": self.images[:GOOD], "annotations": self.panoptic, "categories": [*CATEGORIES, _background()]},
        }
        for name, table in tables.items():
            whole = {"info": {"description": "COCO 2017 as the demo writes it", "year": 2017}, "licenses": LICENCES, **table}
            self.bytes[annotations / f"{name}_train2017.json"] = as_json(whole)
        photos.write(self.bytes)
        inputs = {f"--{name.removeprefix('person_')}": annotations / f"{name}_train2017.json" for name in tables}
        pictures = {"--panoptic-maps": self.folder / "panoptic_train2017", "--images": self.folder / "train2017"}
        return Tree("coco", self.folder, (*inputs.items(), *pictures.items()))

    def _picture(self, id: int, width: int, height: int, data: bytes | None) -> None:
        url = f"http://images.cocodataset.org/train2017/{_name(id)}"
        self.images.append({"license": 1, "file_name": _name(id), "coco_url": url, "height": height, "width": width, "id": id})
        if data is not None:
            self.bytes[self.folder / "train2017" / _name(id)] = data

    def _caption(self, id: int, caption: str) -> None:
        self.captions.append({"image_id": id, "id": 5000 + len(self.captions), "caption": caption})

    def _instance(self, id: int, name: str, box: photos.Box, segmentation: Any, *, crowd: bool) -> None:
        self.instances.append(
            {
                "segmentation": segmentation,
                "area": round((box[2] - box[0]) * (box[3] - box[1]), 2),
                "iscrowd": int(crowd),
                "image_id": id,
                "bbox": xywh(box),
                "category_id": NAMES.index(name) + 1,
                "id": 7000 + len(self.instances),
            }
        )

    def _keypoints(self, view: View) -> None:
        """The last instance again, with its points: 0, 0, 0 for what nobody labelled."""
        there = view.points()
        flat = [value for name in KEYPOINTS for value in ((*map(round, there[name]), 2) if name in there else (0, 0, 0))]
        self.keypoints.append({**self.instances[-1], "num_keypoints": len(there), "keypoints": flat})

    def _panoptic(self, id: int, view: View) -> None:
        """A PNG of segment ids, R + 256 G + 65536 B, and what they are. Later things cover earlier ones."""
        ids_HW = np.full((view.height, view.width), 3_000_000 + id, np.uint32)
        kinds = {3_000_000 + id: BACKGROUND}
        for number, (name, box) in enumerate(view.things):
            segment = 70_000 * (number + 1) + id
            ids_HW[masks.bitmap(box, view.width, view.height) == 1] = segment
            kinds[segment] = NAMES.index(name) + 1
        there, areas = np.unique(ids_HW, return_counts=True)
        segments = [
            {"id": segment, "category_id": kinds[segment], "area": area, "iscrowd": 0, "bbox": _bounds(ids_HW == segment)}
            for segment, area in zip(there.tolist(), areas.tolist(), strict=True)
        ]
        name = _name(id).replace(".jpg", ".png")
        self.panoptic.append({"image_id": id, "file_name": name, "segments_info": segments})
        self.bytes[self.folder / "panoptic_train2017" / name] = _png(ids_HW)


def _name(id: int) -> str:
    return f"{id:012d}.jpg"


def _segmentation(position: int, box: photos.Box, view: View) -> Any:
    """Polygons and compressed run lengths by turns: both occur in the wild."""
    if position % 2:
        return masks.compressed(masks.bitmap(box, view.width, view.height))
    return [masks.polygon(box)]


def _bounds(pixels_HW: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(pixels_HW.any(axis=1)), np.flatnonzero(pixels_HW.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]


def _png(ids_HW: np.ndarray) -> bytes:
    colours_HWC = np.stack([ids_HW & 255, ids_HW >> 8 & 255, ids_HW >> 16 & 255], axis=2).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(colours_HWC).save(stream, "PNG")
    return stream.getvalue()


def _person() -> dict[str, Any]:
    return {**CATEGORIES[0], "keypoints": KEYPOINTS, "skeleton": [[6, 7], [6, 12], [7, 13]]}


def _background() -> dict[str, Any]:
    return {"supercategory": "demo", "id": BACKGROUND, "name": "background", "isthing": 0}
