"""Verifying by decoding: a whole conversion with --verify decode beside a bare loop that only decodes the same bytes with the same
decoder."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.figure import Figure
from tests.bench.photos import photos
from tests.bench.write import ours

PHOTOS, ROUNDS = 6_000, 3


def measure(quick: bool = False) -> Iterator[Figure]:
    """Records a second of one worker."""
    number = 500 if quick else PHOTOS
    with photos(number) as root:
        rates: tuple[list[float], list[float]] = ([], [])
        for _ in range(1 if quick else ROUNDS):
            rates[1].append(number / bare(root))
            rates[0].append(number / ours(root, 1, "decode"))
            shutil.rmtree(root / "out")
    yield Figure(f"convert {number:,} JPEGs with --verify decode", "records/s", tuple(rates[0]), tuple(rates[1]), "bare decoding", 0.9)


def bare(root: Path) -> float:
    """Seconds of Pillow's scaled decoding alone; the bytes are in memory."""
    from PIL import Image

    data = [path.read_bytes() for path in sorted((root / "images").iterdir())]
    began = time.perf_counter()
    for item in data:
        image = Image.open(io.BytesIO(item))
        image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
    return time.perf_counter() - began
