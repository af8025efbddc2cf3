"""Tars as other tools write them: img2dataset's and OpenFlamingo's, through webdataset's own writer, and tars of any dialect."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import webdataset

from tests.shards.records import picture

CAPTIONS = ["a bus", "zwei Züge", "three </s> cats", "", "<image> four"]


def img2dataset_rows(shard: int, number: int, **fields: Any) -> list[dict[str, Any]]:
    """Samples as webdataset's writer takes them: jpg, json and txt under img2dataset's keys."""
    rows = []
    for n in range(number):
        key = f"{shard:05d}{n:04d}"
        caption = CAPTIONS[n % len(CAPTIONS)]
        row = {
            "caption": caption,
            "url": f"https://example.org/{key}.jpg",
            "key": key,
            "status": "success",
            "error_message": None,
            "width": 8 + n,
            "height": 6,
            "original_width": 80,
            "original_height": 60,
            "exif": "{}",
            "sha256": "0" * 64,
            "similarity": 0.25 + n / 100,
            "LANGUAGE": "en",
            **fields,
        }
        rows.append(
            {"__key__": key, "jpg": picture(8 + n, 6, seed=100 * shard + n), "json": json.dumps(row).encode(), "txt": caption.encode()}
        )
    return rows


def by_webdataset(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """A tar by webdataset's writer: a PAX header before every member, as in img2dataset's own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for row in rows:
            writer.write(row)
    return path


def img2dataset(folder: Path, sizes: Sequence[int] = (5, 3), *, stats: bool = True) -> Path:
    """A folder as img2dataset leaves it: of each shard a tar, a parquet (here only its name) and its counts."""
    for shard, number in enumerate(sizes):
        by_webdataset(folder / f"{shard:05d}.tar", img2dataset_rows(shard, number))
        if stats:
            counts = {"count": number + 2, "successes": number, "failed_to_download": 2, "failed_to_resize": 0}
            (folder / f"{shard:05d}_stats.json").write_text(json.dumps(counts))
    return folder


def document(
    *pictures: bytes | str | None, matched: Sequence[int | None] = (), text: Sequence[str] = ("One.", "Two.", "Three.")
) -> dict[str, Any]:
    """An MMC4 document with pixels inside; None for a picture that the script did not find, a str for what stands there instead."""
    info = []
    for n, data in enumerate(pictures):
        at = matched[n] if n < len(matched) else n % len(text)
        entry: dict[str, Any] = {
            "image_name": f"{n:012x}.jpg",
            "raw_url": f"https://example.org/{n}",
            "matched_text_index": at,
            "matched_sim": 0.5,
        }
        if data is not None:
            entry["image_base64"] = data if isinstance(data, str) else base64.b64encode(data).decode()
        info.append(entry)
    matrix = [[0.1 + n / 10 + at / 100 for at in range(len(text))] for n in range(len(pictures))]
    return {
        "text_list": list(text),
        "url": "https://example.org/",
        "image_info": info,
        "similarity_matrix": matrix,
        "could_have_url_duplicate": 0,
    }


def openflamingo(path: Path, documents: Iterable[dict[str, Any]]) -> Path:
    """A tar as convert_mmc4_to_wds.py writes it: one .json a document, under a key that says nothing."""
    return by_webdataset(path, ({"__key__": f"{n:032x}", "json": json.dumps(one).encode()} for n, one in enumerate(documents)))


def any_tar(members: Iterable[tuple[str, bytes] | tarfile.TarInfo], format: int = tarfile.USTAR_FORMAT, **fields: Any) -> bytes:
    """A tar of these files, or of what a TarInfo says, in one of Python's dialects."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()
