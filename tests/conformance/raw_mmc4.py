"""MMC4 documents as their own files say, by all three assignments. One item is one document."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from tests.conformance.commands import converted
from tests.conformance.oracle import SUFFIX, Expected, Folder, Item, Part, Said, Sample, painted

LAYOUTS = {"matched": "shard", "lsa": "position", "argmax": "flat"}  # each assignment with another layout of the picture folder


def samples(folder: Path, work: Path, assignment: str = "matched") -> Iterator[Sample]:
    """All shards at once, with pictures that are made for every name."""
    shards = sorted(path for path in folder.iterdir() if path.name.endswith((".jsonl", ".jsonl.zip", ".zip")))
    pictures, folders = work / "pictures", _folders(shards, LAYOUTS[assignment])
    for shard, under in zip(shards, folders, strict=True):
        for document in _documents(shard):
            _paint(document, pictures / under)
    there = Folder(pictures)
    items = [
        _item(shard.name, number, document, under, there, assignment)
        for shard, under in zip(shards, folders, strict=True)
        for number, document in enumerate(_documents(shard))
    ]
    annotations = [part for shard in shards for part in ("--annotations", shard)]
    options = () if assignment == "matched" else ("--assignment", assignment)
    inputs = [*annotations, "--images", pictures, "--layout", LAYOUTS[assignment]]
    yield Sample(converted("mmc4", inputs, work / "out", *options), items, [there])


def _folders(shards: list[Path], layout: str) -> list[str]:
    if layout != "shard":
        return [str(position) if layout == "position" else "" for position in range(len(shards))]
    numbers = [re.search(r"shard_(\d+)", shard.name) for shard in shards]
    return [number[1] if number else shard.name.split(".")[0] for number, shard in zip(numbers, shards, strict=True)]


def _documents(shard: Path) -> list[dict[str, Any]]:
    data = shard.read_bytes()
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = archive.read(archive.namelist()[0])
    return [json.loads(line) for line in data.split(b"\n") if line.strip()]


def _paint(document: dict[str, Any], folder: Path) -> None:
    """A picture for every name, of the format that the name says."""
    folder.mkdir(parents=True, exist_ok=True)
    for info in document.get("image_info") or ():
        path = folder / info["image_name"]
        format = next((format for format, suffix in SUFFIX.items() if path.suffix.lower() == f".{suffix}"), "JPEG")
        if not path.exists():
            with Image.open(io.BytesIO(painted(40 + len(path.name), 48, path))) as picture:
                picture.save(path, format)


def _item(file: str, number: int, document: dict[str, Any], under: str, pictures: Folder, assignment: str) -> Item:
    info = document.get("image_info") or []
    names = [f"{under}/{one['image_name']}" if under else one["image_name"] for one in info]
    found = [picture for name in names if (picture := pictures.picture(name)) is not None]
    assert len(found) == len(names)
    texts = document["text_list"]
    sentences = _sentences(document, assignment)
    expected = Expected(
        pictures=found,
        turns=[Said("text", _reading_order(texts, sentences))],
        origins=names,
        similarities=[_similarity(document, at, sentence) for at, sentence in enumerate(sentences)],
    )
    return Item(file, number, names, expected if found or any(texts) else None)


def _sentences(document: dict[str, Any], assignment: str) -> list[int | None]:
    """Before which sentence each picture stands."""
    info, count = document.get("image_info") or [], len(document["text_list"])
    if assignment == "matched":
        stated = [one.get("matched_text_index") for one in info]
        return [at if at is not None and 0 <= at < count else None for at in stated]
    if not info or not count:
        return [None] * len(info)
    matrix = np.array(document["similarity_matrix"])
    if assignment == "argmax":
        return [int(np.argmax(row)) for row in matrix]
    pictures, sentences = linear_sum_assignment(matrix, maximize=True)
    assigned = dict(zip(pictures.tolist(), sentences.tolist(), strict=True))
    return [assigned.get(at) for at in range(len(info))]


def _similarity(document: dict[str, Any], picture: int, sentence: int | None) -> float | None:
    if sentence is None:
        return None
    matrix = document.get("similarity_matrix")
    return matrix[picture][sentence] if matrix else document["image_info"][picture]["matched_sim"]


def _reading_order(texts: list[str], sentences: list[int | None]) -> list[Part]:
    """Pictures without a sentence first, then every sentence behind its pictures; a space joins the sentences."""
    parts: list[Part] = [picture for picture, sentence in enumerate(sentences) if sentence is None]
    for at, text in enumerate(texts):
        parts += [picture for picture, sentence in enumerate(sentences) if sentence == at]
        parts.append(text + " " * (at < len(texts) - 1))
    return parts
