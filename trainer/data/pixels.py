"""Pictures to the tensors of a vision tower, with Pillow and numpy, as the towers' own processors do it.

The decisions: EXIF orientation is not applied; transparency, palettes and CMYK go through Pillow's convert("RGB"); of an animation the
first frame counts. The resulting float32 equals that of transformers' slow CLIP and SigLIP processors to the last bit; with `dct_scaling`
large JPEGs are within one 255th of that on average.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow

from schemas import RecordError
from schemas.picture import MAX_PIXELS

Pixels = np.ndarray
Buffer = bytes | memoryview

# About EXIF that can not be read, not about pixels. Once for all: catch_warnings changes what every thread sees.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", message=r".*(EXIF|Transparency|decompression bomb)", module=__name__)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture becomes size x size. `squash`: to the square at once (SigLIP), else shortest edge and centre crop (CLIP)."""

    size: int  # pixels
    mean: tuple[float, ...]  # of 0..1
    std: tuple[float, ...]
    squash: bool
    pad: bool  # first to a square, with the mean colour
    dct_scaling: bool = False  # JPEGs at a half, quarter or eighth, where that still is 1.5 times what is asked for

    def pixels(self, data: Buffer) -> Pixels:
        """float32 (3, size, size), normalised. Raises RecordError: image_decode, or image_shape where the picture is too long to resize."""
        found = _decoded(data, self._scale if self.dct_scaling else None)
        if not self._bounded(found.picture):
            raise RecordError("image_shape", f"expected edges that resize within {MAX_PIXELS} pixels, found {found.picture.size}")
        return self._normal(self._sized(found))

    def blank(self) -> Pixels:
        """What a picture of nothing but the mean colour gives."""
        return self.normalised(Pillow.new("RGB", (self.size, self.size), self.colour()))

    def normalised(self, picture: Pillow.Image) -> Pixels:
        """float32 (3, size, size) of an RGB picture."""
        return self._normal(self._sized(_Decoded(picture, *picture.size, 1)))

    def _normal(self, sized: Pillow.Image) -> Pixels:
        rgb_HWC = np.asarray(sized)
        pixels_CHW = np.empty((3, *rgb_HWC.shape[:2]), np.float32)
        for channel, values in enumerate(_normals(self.mean, self.std)):
            np.take(values, rgb_HWC[..., channel], out=pixels_CHW[channel], mode="clip")  # "raise" would copy
        return pixels_CHW

    def colour(self) -> tuple[int, int, int]:
        """The mean colour, 0..255, rounded down."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue

    def _scale(self, width: int, height: int) -> int:
        """How many times smaller a picture may be decoded. 1.5 times the target is kept: below, the resize would not hide it."""
        edge = max(width, height) if self.pad else min(width, height)
        return next((scale for scale in (8, 4, 2) if 2 * (edge // scale) >= 3 * self.size), 1)

    def _bounded(self, picture: Pillow.Image) -> bool:
        """A line of pixels is small, but not the square around it, nor what it is when its short edge is the tower's."""
        short, long = sorted(picture.size)
        return (long**2 if self.pad else self.size**2 * long / short) <= MAX_PIXELS

    def _sized(self, found: _Decoded) -> Pillow.Image:
        """The same part of the picture whatever the scale: its last row and column may be parts of a pixel."""
        if self.pad:
            found, left, top = _squared(found, self.colour())
        else:
            left, top = 0.0, 0.0
        box = (left, top, left + found.width / found.scale, top + found.height / found.scale)
        if self.squash:
            return found.picture.resize((self.size, self.size), Pillow.Resampling.BICUBIC, box)
        short = min(found.width, found.height)
        wide, high = int(self.size * found.width / short), int(self.size * found.height / short)
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        resized = found.picture.resize((wide, high), Pillow.Resampling.BICUBIC, box)
        return resized.crop((left, top, left + self.size, top + self.size))


@cache
def _normals(mean: tuple[float, ...], std: tuple[float, ...]) -> Pixels:
    """float32 (3, 256): what each of the 256 values becomes. Looking them up is eight times as fast as working them out for every pixel."""
    scaled = (np.arange(256, dtype=np.uint8) * (1 / 255)).astype(np.float32)  # in float64 first: so do the processors
    return np.stack([(scaled - np.float32(middle)) / np.float32(spread) for middle, spread in zip(mean, std, strict=True)])


class _Decoded(NamedTuple):
    """A picture that may have been decoded `scale` times smaller, its edges rounded up."""

    picture: Pillow.Image
    width: int  # as stored
    height: int
    scale: int


def decoded(data: Buffer) -> Pillow.Image:
    """The picture as RGB. Raises RecordError("image_decode")."""
    return _decoded(data, None).picture


def _decoded(data: Buffer, scale: Callable[[int, int], int] | None) -> _Decoded:
    """A JPEG `scale(width, height)` times smaller, which costs a fraction."""
    try:
        with Pillow.open(io.BytesIO(data)) as opened:
            width, height = opened.size
            smaller = 1 if scale is None or opened.format != "JPEG" else scale(width, height)
            if smaller > 1:
                opened.draft(None, (width // smaller, height // smaller))
            return _Decoded(opened.convert("RGB"), width, height, smaller)
    except Exception as error:  # whatever a decoder raises on hostile bytes, it did not decode
        raise RecordError("image_decode", f"{type(error).__name__}: {error}"[:200]) from error


def _squared(found: _Decoded, colour: tuple[int, int, int]) -> tuple[_Decoded, float, float]:
    """In the middle of a square of its longer edge, and where that begins in what is given: between pixels, if it was scaled."""
    edge, scale = max(found.width, found.height), found.scale
    if scale == 1:
        return _Decoded(squared(found.picture, colour), edge, edge, 1), 0.0, 0.0
    across, down = (edge - found.width) // 2 / scale, (edge - found.height) // 2 / scale
    square = Pillow.new("RGB", (math.ceil(edge / scale) + 1, math.ceil(edge / scale) + 1), colour)
    square.paste(found.picture, (math.ceil(across), math.ceil(down)))
    return _Decoded(square, edge, edge, scale), math.ceil(across) - across, math.ceil(down) - down


def squared(picture: Pillow.Image, colour: tuple[int, int, int]) -> Pillow.Image:
    """The picture in the middle of a square of its longer edge; an odd pixel goes to the right or below."""
    width, height = picture.size
    if width == height:
        return picture
    edge = max(width, height)
    square = Pillow.new("RGB", (edge, edge), colour)
    square.paste(picture, ((edge - width) // 2, (edge - height) // 2))
    return square
