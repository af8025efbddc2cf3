"""Inputs to be harmed: of every source a small whole one with every kind of annotation, packed in the ways that its users pack it.

Four items each. A function named after its source (`llava`, `llava_packed`) fills a folder and gives the flags that name what is in it.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from schemas import mask
from tests.shards.records import picture

ITEMS = 4
WIDTH, HEIGHT = 24, 16
FORMATS = ("jpg", "png", "webp", "gif", "tif", "bmp")

Input = Callable[[Path], list[str]]


def llava(root: Path) -> list[str]:
    _json(root / "rows.json", _conversations())
    return ["--annotations", str(root / "rows.json"), "--images", str(_folder(root / "images", _pictures()))]


def llava_packed(root: Path) -> list[str]:
    """JSONL, the meta file, pictures in a zip and a tar."""
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _conversations()))
    _json(root / "meta.json", [{"id": str(n), "url": f"http://example.org/{n}", "image": f"{n}.jpg"} for n in range(ITEMS)])
    pictures = list(_pictures().items())
    stores = ["--images", str(_zip(root / "some.zip", dict(pictures[:3]))), "--images", str(_tar(root / "others.tar", dict(pictures[3:])))]
    return ["--annotations", str(root / "rows.jsonl"), "--meta", str(root / "meta.json"), *stores]


def coco(root: Path) -> list[str]:
    """All four kinds of files."""
    names = [f"{n:012d}.jpg" for n in range(ITEMS)]
    images = [{"id": n, "file_name": name, "width": WIDTH, "height": HEIGHT, "license": 3} for n, name in enumerate(names)]
    tables = {"info": {}, "images": images, "licenses": [{"id": 3, "name": "BY"}]}
    tables["categories"] = [{"id": 17, "name": "cat"}, {"id": 1, "name": "person", "keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}]
    square = {"bbox": [2.0, 2.0, 8.0, 8.0], "segmentation": [[2, 2, 10, 2, 10, 10, 2, 10]], "area": 64.0, "iscrowd": 0}
    runs = {"bbox": [0, 0, 24, 16], "segmentation": {"size": [HEIGHT, WIDTH], "counts": [10, 100, 274]}, "iscrowd": 1}
    packed = {
        "bbox": [0, 0, 24, 16],
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": mask.from_runs([10, 100, 274], [HEIGHT, WIDTH]).counts},
    }
    instances = [
        {"id": 10 * n + k, "image_id": n, "category_id": 17, **one} for n in range(ITEMS) for k, one in enumerate((square, runs, packed))
    ]
    points = [
        {"id": 10 * n, "image_id": n, "category_id": 1, "keypoints": [3, 4, 2, 0, 0, 0], "num_keypoints": 1, **square} for n in range(ITEMS)
    ]
    segments = [{"id": 300, "category_id": 17, "area": 192, "iscrowd": 0, "bbox": [0, 0, 12, 16]}]
    maps = [{"image_id": n, "file_name": f"{n:012d}.png", "segments_info": segments} for n in range(ITEMS)]
    captions = [{"id": 100 + n, "image_id": n // 2, "caption": f"Caption {n}."} for n in range(2 * ITEMS)]
    given: list[str] = []
    for kind, rows in {"captions": captions, "instances": instances, "keypoints": points, "panoptic": maps}.items():
        given += [f"--{kind}", str(_json(root / f"{kind}.json", {**tables, "annotations": rows}))]
    pngs = _folder(root / "maps", {f"{n:012d}.png": _segment_map() for n in range(ITEMS)})
    pictures = _folder(root / "images", {name: picture(WIDTH, HEIGHT, n) for n, name in enumerate(names)})
    return [*given, "--panoptic-maps", str(pngs), "--images", str(pictures)]


def coco_packed(root: Path) -> list[str]:
    """Captions alone, pictures in a tar."""
    images = [{"id": f"i{n}", "file_name": f"{n}.jpg"} for n in range(ITEMS)]
    captions = [{"image_id": f"i{n}", "caption": f"Picture {n}."} for n in range(ITEMS)]
    _json(root / "captions.json", {"images": images, "annotations": captions})
    pictures = _tar(root / "val.tar", {f"val/{n}.jpg": picture(WIDTH, HEIGHT, n) for n in range(ITEMS)})
    return ["--captions", str(root / "captions.json"), "--images", str(pictures)]


def mmc4(root: Path) -> list[str]:
    documents = "".join(json.dumps(_document(n, [f"{n}.jpg", f"{n}b.jpg"])) + "\n" for n in range(ITEMS))
    _zip(root / "docs_shard_7_v2.jsonl.zip", {"docs_shard_7_v2.jsonl": documents.encode()})
    pictures = {f"{n}{letter}.jpg": picture(WIDTH, HEIGHT, n) for n in range(ITEMS) for letter in ("", "b")}
    _folder(root / "images/7", pictures)
    return ["--annotations", str(root / "docs_shard_7_v2.jsonl.zip"), "--images", str(root / "images")]


def mmc4_packed(root: Path) -> list[str]:
    """Pixels inside the lines, a ChatGPT sequence among them, gzip; linear assignment."""
    documents: list[dict[str, Any]] = [_document(n, [f"{n}.jpg", f"{n}b.jpg"], inline=True) for n in range(ITEMS - 1)]
    pixels = base64.b64encode(picture(WIDTH, HEIGHT, 9)).decode()
    documents.append({"is_gpt": True, "example": "See _!_IMAGE1_!_ here.", "image_map": {"_!_IMAGE1_!_": {"base64_image": pixels}}})
    (root / "shard_1.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(one) + "\n" for one in documents).encode(), 1, mtime=0))
    return ["--annotations", str(root / "shard_1.jsonl.gz"), "--assignment", "lsa", "--keep-similarity"]


def visual_genome(root: Path) -> list[str]:
    """All six files; pictures in a zip."""
    folder = root / "annotations"
    folder.mkdir()
    box = {"x": 1, "y": 1, "w": 8, "h": 8}
    ids = range(1, ITEMS + 1)
    rows: dict[str, list[Any]] = {
        "image_data": [{"image_id": n, "url": f"http://example.org/VG_100K/{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in ids],
        "objects": [{"image_id": n, "objects": [{"object_id": 10 * n + k, "names": ["a", "b"], **box} for k in range(2)]} for n in ids],
        "attributes": [{"image_id": n, "attributes": [{"object_id": 10 * n, "names": ["a"], "attributes": ["red"], **box}]} for n in ids],
        "relationships": [
            {
                "image_id": n,
                "relationships": [{"predicate": "on", "subject": {"object_id": 10 * n, **box}, "object": {"object_id": 10 * n + 1, **box}}],
            }
            for n in ids
        ],
        "region_descriptions": [
            {"id": n, "regions": [{"region_id": n, "phrase": "a thing", "x": 1, "y": 1, "width": 5, "height": 5}]} for n in ids
        ],
        "question_answers": [{"id": n, "qas": [{"qa_id": n, "question": "What?", "answer": "A."}]} for n in ids],
    }
    for name, table in rows.items():
        _json(folder / f"{name}.json", table)
    pictures = _zip(root / "VG_100K.zip", {f"VG_100K/{n}.jpg": picture(WIDTH, HEIGHT, n) for n in ids})
    return ["--annotations", str(folder), "--images", str(pictures)]


def laion(root: Path) -> list[str]:
    folder = root / "laion"
    folder.mkdir()
    keys = [f"00000000{n}" for n in range(ITEMS)]
    members = {
        f"{key}.{suffix}": data for n, key in enumerate(keys) for suffix, data in (("jpg", picture(WIDTH, HEIGHT, n)), ("txt", b"said"))
    }
    _tar(folder / "00000.tar", members)
    columns: dict[str, Any] = {"url": [f"http://example.org/{n}" for n in range(ITEMS)] + ["http://example.org/gone"]}
    columns |= {"key": [*keys, "000000009"], "status": ["success"] * ITEMS + ["failed_to_download"]}
    columns |= {
        "error_message": [None] * ITEMS + ["404"],
        "caption": ["a", "b", None, "d", "e"],
        "width": [WIDTH] * 5,
        "height": [HEIGHT] * 5,
    }
    columns |= {"similarity": [0.3] * 5, "LANGUAGE": ["en"] * 5, "original_width": [100] * 5, "NSFW": ["UNLIKELY"] * 5}
    pq.write_table(pa.table(columns), folder / "00000.parquet", compression="snappy")
    _json(folder / "00000_stats.json", {"count": 5, "successes": 4})
    return ["--annotations", str(folder)]


def grand(root: Path) -> list[str]:
    folder = root / "scenes"
    folder.mkdir()
    for n in range(ITEMS):
        _json(folder / f"sa_{n}.json", _scene(n))
    pictures = _folder(root / "images", {f"sa_{n}.jpg": picture(WIDTH, HEIGHT, n) for n in range(ITEMS)})
    return ["--annotations", str(folder), "--images", str(pictures)]


def grand_packed(root: Path) -> list[str]:
    """A tar.gz part; pictures in a tar."""
    part = _tar(root / "part_1.tar", {f"sa_{n}.json": json.dumps(_scene(n)).encode() for n in range(ITEMS)})
    (root / "part_1.tar.gz").write_bytes(gzip.compress(part.read_bytes(), 1, mtime=0))
    part.unlink()
    pictures = _tar(root / "sa1b.tar", {f"sa_{n}.jpg": picture(WIDTH, HEIGHT, n) for n in range(ITEMS)})
    return ["--annotations", str(root / "part_1.tar.gz"), "--images", str(pictures)]


INPUTS: tuple[Input, ...] = (
    llava, llava_packed, coco, coco_packed, mmc4, mmc4_packed, visual_genome, laion, grand, grand_packed,
)  # fmt: skip


def source(input: Input) -> str:
    """The source that reads it."""
    return input.__name__.removesuffix("_packed")


# What they are made of.


def _conversations() -> list[dict[str, Any]]:
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A picture, at [0.1, 0.2, 0.5, 0.6]."}]
    rows: list[dict[str, Any]] = [
        {"id": str(n), "image": name, "conversations": said} for n, name in enumerate(list(_pictures())[: ITEMS - 1])
    ]
    two = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "Both."}]
    return [*rows, {"id": "last", "image": list(_pictures())[-2:], "conversations": two, "model": "v1"}]


def _pictures() -> dict[str, bytes]:
    """One of each format that there is."""
    return {f"vg/{n}.{format}": picture(WIDTH, HEIGHT, n, format) for n, format in enumerate(FORMATS)}


def _document(number: int, names: Iterable[str], *, inline: bool = False) -> dict[str, Any]:
    info = [
        {"image_name": name, "raw_url": f"http://example.org/{name}", "matched_text_index": at, "matched_sim": 0.3}
        for at, name in enumerate(names)
    ]
    if inline:
        for at, one in enumerate(info):
            one["image_base64"] = base64.b64encode(picture(WIDTH, HEIGHT, 10 * number + at)).decode()
    matrix = [[0.1, 0.3, 0.2], [0.3, 0.1, 0.2]]
    return {
        "text_list": [f"Document {number}.", "More.", "End."],
        "url": "http://example.org/",
        "image_info": info,
        "similarity_matrix": matrix,
    }


def _scene(number: int) -> dict[str, Any]:
    box = [1.0, 1.0, 9.0, 9.0]
    runs = mask.from_runs([10, 100, 274], [HEIGHT, WIDTH])
    segmentation = {"size": runs.size, "counts": runs.counts}
    detail = {"phrase": "red thing", "tokens_positive": [2, 11], "ids": [0], "bbox": [box]}
    scene = {
        "objects": [{"id": 0, "bbox": box, "labels": ["thing"], "attributes": ["istant: red"], "score": 0.5, "segmentation": segmentation}],
        "floating_objects": [{"id": 1, "bbox": box, "labels": ["sky"], "depth": 5.5}],
        "floating_attributes": [{"bbox": box, "labels": [], "attributes": ["blue"]}],
        "relationships": {"object_ids": [0], "grounding": [{"phrase": "red thing", "object_ids": [0]}]},
        "dense_caption": {"caption": "A red thing.", "details": [detail]},
        "short_captions": [{"caption": "A red thing.", "details": [{**detail, "ids": None, "id": 0}]}],
        "landmark": {"category": "Outdoor scene"},
        "affordances": {"Sit": {"description": "...", "object_ids": [0]}},
        "additional_context": "Nothing.",
    }
    return {f"sa_{number}.jpg": scene}


def _segment_map() -> bytes:
    pixels_HWC = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels_HWC[:, : WIDTH // 2] = (44, 1, 0)  # 44 + 256
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC).save(stream, "PNG")
    return stream.getvalue()


def _json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def _folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def _zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return path


def _tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
