"""COCO's maps pixel by pixel; what the sample lacks, made from it: one file alone, boxes outside, compressed masks, missing pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conformance import raw_coco
from tests.conformance.oracle import Sample, coco, compare, compare_counts


def test_every_pixel_of_a_panoptic_map_belongs_to_a_segment_of_its_record(samples: Callable[[str], list[Sample]]) -> None:
    for one in samples("coco_panoptic"):
        for stored in one.conversion.records.values():
            for map in stored.record["maps"]:
                with Image.open(io.BytesIO(stored.files[map["member"]])) as png:
                    pixels_HWC = np.asarray(png).astype(np.int64)
                ids, counts = np.unique(pixels_HWC @ [1, 256, 65536], return_counts=True)
                areas = {id: area for id, area in zip(ids.tolist(), counts.tolist(), strict=True) if id != map["ignore"]}

                assert areas == {segment["id"]: segment["area"] for segment in map["segments"]}


Edit = Callable[[str, dict[str, Any]], None]


@pytest.fixture
def changed(data: Path, tmp_path: Path) -> Callable[[str, Edit], Iterator[Sample]]:
    """changed("*.json", edit): the annotation files of these names, cut to a few images and edited, converted."""
    if not (data / "coco" / "annotations").is_dir():
        pytest.skip(f"no upstream samples: {data} has no coco/annotations")

    def convert(names: str, edit: Edit) -> Iterator[Sample]:
        (tmp_path / "coco" / "annotations").mkdir(parents=True)
        for path in sorted((data / "coco" / "annotations").glob(names)):
            content = json.loads(path.read_bytes())
            content["images"] = content["images"][:12]
            edit(path.name, content)
            (tmp_path / "coco" / "annotations" / path.name).write_text(json.dumps(content))
        for pictures in (path for path in (data / "coco").iterdir() if path.is_dir() and path.name != "annotations"):
            (tmp_path / "coco" / pictures.name).symlink_to(pictures)
        return raw_coco.samples(tmp_path / "coco", tmp_path / "work")

    return convert


def test_boxes_outside_masks_of_all_kinds_missing_pictures_and_wrong_sizes(changed: Callable[[str, Edit], Iterator[Sample]]) -> None:
    for one in changed("*.json", worsen):
        reasons = one.conversion.manifest["rejected"]

        compare(one.conversion, one.items)
        compare_counts(one.conversion, one.items, *one.pictures)
        assert one.conversion.verdict["problems"] == []
        assert reasons.keys() >= {"size_differs", "image_missing"}
        assert one.conversion.status == 1
        assert sum(one.conversion.manifest["regions_dropped"].values()) > 0


def worsen(name: str, content: dict[str, Any]) -> None:
    """One picture that is not there, one of another size, no caption for one, boxes in and out of the picture, compressed masks."""
    content["images"][3]["file_name"] = "nowhere.jpg"
    content["images"][5]["width"] += 1
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    if name.startswith("captions"):
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] != content["images"][0]["id"]]
        return
    for number, row in enumerate(content["annotations"]):
        if row["image_id"] in sizes:
            height, width = sizes[row["image_id"]]
            row["bbox"][0] = [row["bbox"][0], -0.4, -1.0, width - row["bbox"][2] + 0.6, width - row["bbox"][2] + 1.2, width + 0.5][
                number % 6
            ]
            row["bbox"][3] = 0 if number % 11 == 10 else row["bbox"][3]
            if number % 3 == 0 and isinstance(row["segmentation"], list):
                rle = coco.merge(coco.frPyObjects(row["segmentation"], height, width))
                row["segmentation"] = {"size": [height, width], "counts": rle["counts"].decode()}


@pytest.mark.parametrize("kept", ["captions", "instances", "person_keypoints"])
def test_each_file_is_enough_alone(kept: str, changed: Callable[[str, Edit], Iterator[Sample]]) -> None:
    for one in changed(f"{kept}_*.json", lambda name, content: None):
        compare(one.conversion, one.items)
