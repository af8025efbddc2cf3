"""Tree: where an upstream tree was written, the flags that name it, and what was planted in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Counts = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """What shardweave must find, counted by hand: the numbers stand in the source, nothing computes them.

    `dropped` has the manifest's other families: images_dropped, regions_dropped, mended, ...
    """

    written: int
    images: int  # pictures of the written records
    rejected: Counts
    dropped: dict[str, Counts] = field(default_factory=dict)
    references: int  # of all records to pictures, as `pipelines check` counts them
    missing: int  # distinct pictures that are nowhere
    other_suffix: int = 0
    unreferenced: int = 0

    @property
    def read(self) -> int:
        """Every input item is one record or one reject."""
        return self.written + sum(self.rejected.values())


@dataclass(frozen=True)
class Tree:
    """A written tree: the source it belongs to, and the inputs as flags and paths."""

    source: str
    folder: Path
    inputs: tuple[tuple[str, Path], ...]

    def flags(self) -> list[str]:
        """As the command line has them."""
        return [word for flag, path in self.inputs for word in (flag, str(path))]


def as_json(value: Any) -> bytes:
    """Compact JSON, as upstream files are."""
    return json.dumps(value, ensure_ascii=False).encode()


def xywh(box: tuple[float, float, float, float]) -> list[float]:
    """COCO's and Visual Genome's boxes."""
    x0, y0, x1, y1 = box
    return [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
