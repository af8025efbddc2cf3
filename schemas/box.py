"""Boxes: every upstream frame to [x0, y0, x1, y1] in pixels of the stored image, half open.

A box that leaves the image by less than a pixel is rounding upstream, and is clipped; one that leaves it further is wrong about the
image it belongs to, and is refused, because clipping it would invent a region nobody drew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = list[float]
TOLERANCE = 1.0  # pixels


class BoxRefused(ValueError):
    """A box that can not be kept. `reason` is box_not_finite, box_empty or box_outside."""

    def __init__(self, reason: str, found: object) -> None:
        self.reason = reason
        super().__init__(f"{reason}: found {found}")


def from_xywh(box: Sequence[float]) -> Box:
    """Corners of a COCO box [x, y, width, height]."""
    x, y, width, height = box
    return [x, y, x + width, y + height]


def fit(box: Sequence[float], width: int, height: int) -> tuple[Box, bool]:
    """The box inside a width x height image, as floats, and whether it had to be clipped.

    Raises BoxRefused where a number is not finite, an edge lies a pixel or more outside, or nothing is left.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    if not (math.isfinite(x0) and math.isfinite(y0) and math.isfinite(x1) and math.isfinite(y1)):
        raise BoxRefused("box_not_finite", list(box))
    if x0 >= x1 or y0 >= y1:
        raise BoxRefused("box_empty", list(box))
    if min(x0, y0) <= -TOLERANCE or x1 >= width + TOLERANCE or y1 >= height + TOLERANCE:
        raise BoxRefused("box_outside", list(box))
    inside = [max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))]
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise BoxRefused("box_empty", list(box))
    return inside, inside != [x0, y0, x1, y1]
