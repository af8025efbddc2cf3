"""Masks: polygons, count lists and bitmaps to COCO compressed run lengths, and back.

Format: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.h. Runs go down the columns and begin with zeros. The C code
reads and writes where a hostile string points it, so `runs` decodes the string here and checks it first; only then may
pycocotools see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from pycocotools import mask as _mask_api

from schemas.record import Mask

MAX_PIXELS = 1 << 31
coco: Any = _mask_api  # its stubs know fewer inputs than it takes


class MaskRefused(ValueError):
    """A mask that is not one. `reason` is mask_runs, mask_size or mask_polygon."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}")


def runs(mask: Mask) -> np.ndarray:
    """Run lengths, int64 (n,), zeros first; not to be written to. Raises MaskRefused where they do not fill height x width exactly."""
    return _runs(*_size(mask.size), mask.counts)


@lru_cache(256)  # the masks of an image, each of which is looked at by its source and by `validate`
def _runs(height: int, width: int, counts: str) -> np.ndarray:
    try:
        text = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError as error:
        raise MaskRefused("mask_runs", "expected ASCII run lengths, found other characters") from error
    if not len(text) or text.min() < 0 or text.max() > 63 or text[-1] & 0x20:
        raise MaskRefused("mask_runs", "expected whole run lengths, found a cut or foreign string")
    lengths = _undo_delta(_numbers(text))
    pixels = height * width
    if lengths.min() < 0 or lengths.max() > pixels or lengths.sum() != pixels:  # the maximum first: a sum can wrap around
        raise MaskRefused("mask_runs", f"expected runs of {pixels} pixels, found {len(lengths)} runs of another sum")
    lengths.flags.writeable = False
    return lengths


def area(mask: Mask) -> int:
    """Pixels that are set."""
    return int(runs(mask)[1::2].sum())


def bitmap(mask: Mask) -> np.ndarray:
    """The mask as uint8 (height, width) of 0 and 1."""
    lengths = runs(mask)
    flat = np.repeat((np.arange(len(lengths)) % 2).astype(np.uint8), lengths)
    return flat.reshape(mask.size[1], mask.size[0]).T


def from_bitmap(bitmap_HW: np.ndarray) -> Mask:
    """The mask of the pixels that are not 0."""
    return _mask(coco.encode(np.asfortranarray((bitmap_HW != 0).astype(np.uint8))))


def from_polygons(polygons: Sequence[Sequence[float]], width: int, height: int) -> Mask:
    """The union of polygons [x0, y0, x1, y1, ...] in pixels, rasterised as COCO does."""
    for polygon in polygons:
        values = list(map(float, polygon))
        if len(values) < 6 or len(values) % 2 or not all(map(math.isfinite, values)):
            raise MaskRefused("mask_polygon", f"expected at least 3 finite points, found {len(values)} numbers")
        # The C rasteriser allocates by edge length: bound it by the image before it sees the numbers.
        if (furthest := max(map(abs, values))) > 4 * max(width, height):
            raise MaskRefused("mask_polygon", f"expected points near a {width} x {height} image, found {furthest:g}")
    if not polygons:
        raise MaskRefused("mask_polygon", "expected at least one polygon, found none")
    return _mask(coco.merge(coco.frPyObjects([list(map(float, polygon)) for polygon in polygons], height, width)))


def from_runs(lengths: Sequence[int], size: Sequence[int]) -> Mask:
    """The mask of an uncompressed count list; size is [height, width]."""
    height, width = _size(size)
    if any(n < 0 for n in lengths) or sum(lengths) != height * width:
        raise MaskRefused("mask_runs", f"expected runs of {height * width} pixels, found {sum(lengths)}")
    return _mask(coco.frPyObjects({"size": [height, width], "counts": list(lengths)}, height, width))


def from_compressed(size: Sequence[int], counts: str) -> Mask:
    """The mask of an already compressed run-length string, checked."""
    mask = Mask(list(size), counts)
    runs(mask)
    return mask


def _mask(rle: dict[str, Any]) -> Mask:
    return Mask([int(n) for n in rle["size"]], rle["counts"].decode("ascii"))


def _size(size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise MaskRefused("mask_size", f"expected [height, width], found {list(size)}")
    return size[0], size[1]


def _numbers(text: np.ndarray) -> np.ndarray:
    """Signed numbers of 5 bits a character, least significant first, bit 6 set on all but a number's last."""
    last = np.flatnonzero((text & 0x20) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(len(text)) - np.repeat(first, last - first + 1)
    if place.max() > 6:  # 35 bits hold any run of MAX_PIXELS
        raise MaskRefused("mask_runs", "expected run lengths below 2**31, found a longer number")
    values = np.add.reduceat((text & 0x1F) << (5 * place), first)
    negative = (text[last] & 0x10) != 0
    return values - np.where(negative, np.int64(1) << (5 * (place[last] + 1)), 0)


def _undo_delta(numbers: np.ndarray) -> np.ndarray:
    """From the third number on, each is stored as the difference to the one two before it."""
    lengths = numbers.copy()
    lengths[1::2] = np.cumsum(numbers[1::2])
    lengths[2::2] = np.cumsum(numbers[2::2])
    return lengths
