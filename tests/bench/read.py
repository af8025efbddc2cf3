"""Reading shards: by index with every byte checked, beside webdataset's reader over the same tars."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from webdataset.compat import WebDataset

import shards
from tests.bench.figure import Figure
from tests.bench.photos import photos
from tests.bench.write import ours as convert

PHOTOS, ROUNDS = 30_000, 3


def measure(quick: bool = False) -> Iterator[Figure]:
    """Records a second of one process, page cache warm."""
    number = 500 if quick else PHOTOS
    with photos(number) as root:
        convert(root, 1)
        rates: tuple[list[float], list[float]] = ([], [])
        for _ in range(1 if quick else ROUNDS):
            rates[1].append(number / webdataset(root / "out", number))
            rates[0].append(number / ours(root / "out", number))
    yield Figure("read by index, every byte checked", "records/s", tuple(rates[0]), tuple(rates[1]), "webdataset, unchecked", 5.0)


def ours(place: Path, number: int) -> float:
    began = time.perf_counter()
    data = shards.open(place)
    seen = sum(len(sample.image(0)) > 0 for sample in data)
    seconds = time.perf_counter() - began
    assert seen == number
    return seconds


def webdataset(place: Path, number: int) -> float:
    tars = sorted(str(path) for path in place.glob("*.tar"))
    began = time.perf_counter()
    seen = sum(len(sample["0.jpg"]) > 0 for sample in WebDataset(tars, shardshuffle=False))
    seconds = time.perf_counter() - began
    assert seen == number
    return seconds
