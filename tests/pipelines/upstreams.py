"""The smallest whole input of each source: three items and their pictures, and the flags that name them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.shards.records import picture

WIDTH, HEIGHT, ITEMS = 24, 16, 3


def pictures(folder: Path, names: Iterable[str]) -> Path:
    """A folder of JPEGs with these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture(WIDTH, HEIGHT, number))
    return folder


def llava(root: Path) -> tuple[Path, list[str]]:
    rows = [{"id": n, "image": f"{n}.jpg", "conversations": [{"from": "human", "value": f"<image>\nWhat is {n}?"}]} for n in range(ITEMS)]
    (root / "rows.json").write_text(json.dumps(rows))
    return root / "rows.json", ["--images", str(pictures(root / "images", (f"{n}.jpg" for n in range(ITEMS))))]


def coco(root: Path) -> tuple[Path, list[str]]:
    images = [{"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(ITEMS)]
    captions = [{"id": 100 + n, "image_id": n, "caption": f"Picture {n}."} for n in range(ITEMS)]
    (root / "captions.json").write_text(json.dumps({"info": {}, "images": images, "annotations": captions}))
    return root / "captions.json", ["--images", str(pictures(root / "images", (f"{n}.jpg" for n in range(ITEMS))))]


def mmc4(root: Path) -> tuple[Path, list[str]]:
    documents = [
        {
            "text_list": [f"Document {n}.", "And no more."],
            "url": f"http://example.org/{n}",
            "image_info": [{"image_name": f"{n}.jpg", "matched_text_index": 1, "matched_sim": 0.3}],
            "similarity_matrix": [[0.1, 0.3]],
        }
        for n in range(ITEMS)
    ]
    path = root / "docs_shard_7_v2.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    pictures(root / "images/7", (f"{n}.jpg" for n in range(ITEMS)))
    return path, ["--images", str(root / "images")]


def visual_genome(root: Path) -> tuple[Path, list[str]]:
    regions = [{"region_id": 10 + n, "image_id": n + 1, "x": 1, "y": 1, "width": 5, "height": 5, "phrase": f"a {n}"} for n in range(ITEMS)]
    rows = [{"id": n + 1, "regions": [region]} for n, region in enumerate(regions)]
    (root / "region_descriptions.json").write_text(json.dumps(rows))
    return root / "region_descriptions.json", ["--images", str(pictures(root / "images", (f"{n + 1}.jpg" for n in range(ITEMS))))]


def laion(root: Path) -> tuple[Path, list[str]]:
    folder = root / "laion"
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for n in range(ITEMS):
            data = picture(WIDTH, HEIGHT, n)
            info = tarfile.TarInfo(f"00000000{n}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    columns = {"url": [f"http://example.org/{n}" for n in range(ITEMS)], "key": [f"00000000{n}" for n in range(ITEMS)]}
    columns |= {"status": ["success"] * ITEMS, "caption": [f"picture {n}" for n in range(ITEMS)]}
    pq.write_table(pa.table(columns), folder / "00000.parquet")
    return folder, []


def grand(root: Path) -> tuple[Path, list[str]]:
    folder = root / "grand"
    folder.mkdir()
    for n in range(ITEMS):
        scene = {
            "objects": [{"id": 0, "bbox": [1, 1, 9, 9], "labels": ["thing"]}],
            "dense_caption": {"caption": f"A thing {n}.", "details": []},
        }
        (folder / f"sa_{n}.json").write_text(json.dumps({f"sa_{n}.jpg": scene}))
    return folder, ["--images", str(pictures(root / "images", (f"sa_{n}.jpg" for n in range(ITEMS))))]


UPSTREAMS: dict[str, Callable[[Path], tuple[Path, list[str]]]] = {
    "coco": coco,
    "grand": grand,
    "laion": laion,
    "llava": llava,
    "mmc4": mmc4,
    "visual_genome": visual_genome,
}


def flag(source: str) -> str:
    """What names the annotations."""
    return "--captions" if source == "coco" else "--annotations"


def made(source: str, root: Path) -> tuple[Path, list[Any]]:
    """The annotations, and all flags."""
    root.mkdir(parents=True, exist_ok=True)
    path, more = UPSTREAMS[source](root)
    return path, [flag(source), str(path), *more]
