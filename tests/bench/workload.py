"""The workload: 20,000 records of one photograph each, the same bytes for everybody, made once and kept in the scratch folder.

The photographs are those inside scikit-image, cut and shrunk, with noise that makes them as large as wanted; each record's JPEG has its own
number in a comment, so that no two are equal and all cost the same to decode.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

import shards
from schemas import Record, record

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg", "rocket.jpg")
DISTINCT = 500


@dataclass(frozen=True)
class Workload:
    """Pictures of one size. `noise`: standard deviation of what is added to the pixels, of 255."""

    name: str
    width: int
    height: int
    noise: float
    records: int
    shard_bytes: int

    def folder(self) -> Path:
        """Our data set of it in the scratch folder; made where it is not there."""
        final = scratch() / f"{self.name}-{self.records}" / "ours"
        if not (final / "manifest.json").exists():
            shutil.rmtree(final, ignore_errors=True)
            shards.write(final, self._items(), source="bench", shard_bytes=self.shard_bytes)
        return final

    def _items(self) -> Iterator[tuple[Record, list[bytes], list[bytes]]]:
        made = [self._picture(seed) for seed in range(min(DISTINCT, self.records))]
        for number in range(self.records):
            data = _numbered(made[number % len(made)], number)
            image = record.image(width=self.width, height=self.height, format="jpg", bytes=len(data))
            turn = record.turn("text", [record.image_part(0), record.text_part(f"picture {number}")])
            yield record.record("bench", images=[image], turns=[turn]), [data], []

    def _picture(self, seed: int) -> bytes:
        chance = np.random.default_rng(seed)
        photo = _photos()[seed % len(PHOTOS)]
        share = chance.uniform(0.5, 1)
        width, height = int(photo.width * share), int(photo.height * share)
        left, top = (int(chance.integers(0, rest + 1)) for rest in (photo.width - width, photo.height - height))
        cut = photo.crop((left, top, left + width, top + height)).resize((self.width, self.height))
        pixels_HWC = np.asarray(cut) + chance.normal(0, self.noise, (self.height, self.width, 1))
        stream = io.BytesIO()
        Image.fromarray(np.clip(pixels_HWC, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        return stream.getvalue()


SMALL = Workload("20kB", 256, 256, 2.0, 20_000, 32 << 20)
LARGE = Workload("110kB", 640, 480, 6.5, 20_000, 64 << 20)


def scratch() -> Path:
    """Where inputs are kept from run to run: $TMPDIR/shardweave-bench."""
    folder = Path(os.environ.get("TMPDIR") or tempfile.gettempdir()) / "shardweave-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def _photos() -> list[Image.Image]:
    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise SystemExit("bench: scikit-image is not installed: it carries the photographs")
    return [Image.open(Path(found.origin).parent / "data" / name).convert("RGB") for name in PHOTOS]


def _numbered(jpeg: bytes, number: int) -> bytes:
    """The JPEG with a comment after its first marker."""
    comment = f"{number:08d}".encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
