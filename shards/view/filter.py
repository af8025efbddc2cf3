"""Which records are wanted: bounds on what the index knows of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

import numpy as np

from shards.columns import Columns

BOUNDED = {
    "images": "images",
    "text_length": "text length (code points)",
    "regions": "regions",
    "longest_side": "longest side (pixels)",
}
MOST = 2**53


@dataclass(frozen=True)
class Filter:
    """A source (none: any), and for some numbers of a record the least and the most, None where open."""

    source: str | None = None
    bounds: tuple[tuple[str, int | None, int | None], ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether every record passes."""
        return self.source is None and not self.bounds

    def match(self, columns: Columns) -> np.ndarray:
        """The rows that pass, int (m,)."""
        passes = np.ones(len(columns), bool)
        if self.source is not None:
            wanted = [name == self.source for name in columns.sources]
            passes &= np.array(wanted, bool)[columns.source]
        for name, least, most in self.bounds:
            numbers = getattr(columns, name)
            passes &= (numbers >= (0 if least is None else least)) & (numbers <= (MOST if most is None else most))
        return np.flatnonzero(passes)

    def query(self, **more: object) -> str:
        """The filter, and more, as a query string that `read` understands."""
        found = {"source": self.source} if self.source is not None else {}
        for name, least, most in self.bounds:
            found |= {f"{name}_min": least} if least is not None else {}
            found |= {f"{name}_max": most} if most is not None else {}
        return urlencode(found | more)

    def value(self, field: str) -> str:
        """What a form's field of this name holds."""
        for name, least, most in self.bounds:
            if field in (f"{name}_min", f"{name}_max"):
                value = least if field.endswith("_min") else most
                return "" if value is None else str(value)
        return (self.source or "") if field == "source" else ""


def read(query: Mapping[str, str]) -> Filter:
    """The filter in a query; what is no number is no bound."""
    bounds = []
    for name in BOUNDED:
        least, most = (number(query.get(f"{name}_{end}", "")) for end in ("min", "max"))
        if (least, most) != (None, None):
            bounds.append((name, least, most))
    return Filter(query.get("source") or None, tuple(bounds))


def number(text: str) -> int | None:
    """A whole number from 0 that fits an index, else None."""
    text = text.strip()
    return min(int(text), MOST) if text.isascii() and text.isdecimal() and len(text) <= 20 else None
