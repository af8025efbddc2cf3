"""Pictures to the tensors of a vision tower, with Pillow and numpy, as the towers' own processors do it.

The decisions: EXIF orientation is not applied; transparency, palettes and CMYK go through Pillow's convert("RGB"); of an animation the
first frame counts. The resulting float32 equals that of transformers' slow CLIP and SigLIP processors to the last bit.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow

from schemas import RecordError
from schemas.picture import MAX_PIXELS

Pixels = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture becomes size x size. `squash`: to the square at once (SigLIP), else shortest edge and centre crop (CLIP)."""

    size: int  # pixels
    mean: tuple[float, ...]  # of 0..1
    std: tuple[float, ...]
    squash: bool
    pad: bool  # first to a square, with the mean colour

    def pixels(self, data: bytes | memoryview) -> Pixels:
        """float32 (3, size, size), normalised. Raises RecordError: image_decode, or image_shape where the picture is too long to resize."""
        picture = decoded(data)
        if not self._bounded(picture):
            raise RecordError("image_shape", f"expected edges that resize within {MAX_PIXELS} pixels, found {picture.size}")
        return self.normalised(picture)

    def blank(self) -> Pixels:
        """What a picture of nothing but the mean colour gives."""
        return self.normalised(Pillow.new("RGB", (self.size, self.size), self.colour()))

    def normalised(self, picture: Pillow.Image) -> Pixels:
        """float32 (3, size, size) of an RGB picture."""
        if self.pad:
            picture = squared(picture, self.colour())
        rgb_HWC = np.asarray(self._sized(picture))
        scaled = (rgb_HWC * (1 / 255)).astype(np.float32)  # in float64 first: so do the processors
        normal = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1))

    def colour(self) -> tuple[int, int, int]:
        """The mean colour, 0..255, rounded down."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue

    def _bounded(self, picture: Pillow.Image) -> bool:
        """A line of pixels is small, but not the square around it, nor what it is when its short edge is the tower's."""
        short, long = sorted(picture.size)
        return (long**2 if self.pad else self.size**2 * long / short) <= MAX_PIXELS

    def _sized(self, picture: Pillow.Image) -> Pillow.Image:
        if self.squash:
            return picture.resize((self.size, self.size), Pillow.Resampling.BICUBIC)
        width, height = picture.size
        short = min(width, height)
        wide, high = int(self.size * width / short), int(self.size * height / short)
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        resized = picture.resize((wide, high), Pillow.Resampling.BICUBIC)
        return resized.crop((left, top, left + self.size, top + self.size))


def decoded(data: bytes | memoryview) -> Pillow.Image:
    """The picture as RGB. Raises RecordError("image_decode")."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about EXIF that can not be read, not about pixels
        try:
            with Pillow.open(io.BytesIO(data)) as opened:
                return opened.convert("RGB")
        except Exception as error:  # whatever a decoder raises on hostile bytes, it did not decode
            raise RecordError("image_decode", f"{type(error).__name__}: {error}"[:200]) from error


def squared(picture: Pillow.Image, colour: tuple[int, int, int]) -> Pillow.Image:
    """The picture in the middle of a square of its longer edge; an odd pixel goes to the right or below."""
    width, height = picture.size
    if width == height:
        return picture
    edge = max(width, height)
    square = Pillow.new("RGB", (edge, edge), colour)
    square.paste(picture, ((edge - width) // 2, (edge - height) // 2))
    return square
