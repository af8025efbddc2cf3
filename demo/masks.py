"""Masks as upstream writes them. pycocotools and numpy, none of ours: the demo must not agree with itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pycocotools import mask as coco

from demo.photos import Box


def polygon(box: Box, corners: int = 16) -> list[float]:
    """An ellipse that fills the box, as [x0, y0, x1, y1, ...]."""
    x0, y0, x1, y1 = box
    angles = [2 * math.pi * at / corners for at in range(corners)]
    points = [((x0 + x1 + (x1 - x0) * math.cos(a)) / 2, (y0 + y1 + (y1 - y0) * math.sin(a)) / 2) for a in angles]
    return [round(value, 2) for point in points for value in point]


def bitmap(box: Box, width: int, height: int) -> np.ndarray:
    """The same ellipse as uint8 (height, width) of 0 and 1."""
    polygons: Any = [polygon(box, 64)]
    return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width)))


def compressed(pixels_HW: np.ndarray) -> dict[str, object]:
    """COCO's compressed run lengths."""
    runs: Any = coco.encode(np.asfortranarray(pixels_HW))
    return {"size": [int(value) for value in runs["size"]], "counts": runs["counts"].decode("ascii")}


def count_list(pixels_HW: np.ndarray) -> dict[str, object]:
    """COCO's uncompressed runs, down the columns, zeros first: how crowds are written."""
    flat = pixels_HW.T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flat)))).tolist()
    counts = np.diff([0, *edges, len(flat)]).tolist()
    return {"size": list(pixels_HW.shape), "counts": counts}
