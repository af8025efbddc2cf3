"""Check: count before converting. How many records and pictures, how many of them missing, and where; nothing is written.

The store is listed once and the annotations are streamed, so that 665,000 LLaVA rows take seconds and little memory: a present picture
costs a bit, only missing names are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from pipelines.images import Images
from pipelines.source import Source
from pipelines.stores import by_stem, safe, stem
from schemas import Reject, SourceError

EXAMPLES = 5  # of each kind
_BY_NAME, _AS_TWIN = 1, 2  # how a file was referred to


class Listing:
    """The names in the picture stores, and which of them a record has referred to."""

    def __init__(self, names: Iterable[tuple[str, int]]) -> None:
        self._number: dict[str, int] = {}
        for name, _ in names:
            self._number.setdefault(name, len(self._number))
        self._referred = bytearray(len(self._number))
        self._by_stem: dict[str, str] | None = None
        self.absent: dict[str, str | None] = {}  # asked for and not there: the name of its twin under another suffix

    def refer(self, name: str) -> None:
        """Mark a name as asked for."""
        number = self._number.get(name)
        if number is not None:
            self._referred[number] |= _BY_NAME
        elif name not in self.absent:
            self._look_further(name)

    def _look_further(self, name: str) -> None:
        try:
            clean = safe(name)
        except Reject:
            clean = name
        number = self._number.get(clean)
        if number is not None:
            self._referred[number] |= _BY_NAME
            return
        twin = self.absent[clean] = self._twin(clean)
        if twin is not None:
            self._referred[self._number[twin]] |= _AS_TWIN

    def _twin(self, name: str) -> str | None:
        if self._by_stem is None:
            self._by_stem = by_stem(self._number)
        return self._by_stem.get(stem(name))

    @property
    def present(self) -> int:
        """Distinct names that were asked for and are there."""
        return self._referred.count(_BY_NAME) + self._referred.count(_BY_NAME | _AS_TWIN)

    @property
    def missing(self) -> list[str]:
        """Names that are nowhere."""
        return [name for name, twin in self.absent.items() if twin is None]

    @property
    def other_suffix(self) -> list[str]:
        """Names that are there under another suffix."""
        return [f"{name} -> {twin}" for name, twin in self.absent.items() if twin is not None]

    def unreferenced(self) -> Iterator[str]:
        """Files that nobody asked for."""
        return (name for name, number in self._number.items() if not self._referred[number])


def check(source: Source) -> dict[str, Any]:
    """The counts that `pipelines check --json` prints. Raises SourceError, RequestError."""
    references = source.references()
    listing = Listing(_names(source))
    records = asked = 0
    refer = listing.refer
    for names in references:
        records += 1
        for name in names:
            asked += 1
            refer(name)
    if not records:
        raise SourceError(f"{source.name}: expected at least one item to check, found none")
    missing, other, unreferenced = listing.missing, listing.other_suffix, list(listing.unreferenced())
    return {
        "records": records,
        "image_references": asked,
        "images": {
            "distinct": listing.present + len(missing) + len(other),
            "present": listing.present,
            "missing": len(missing),
            "other_suffix": len(other),
        },
        "missing_by_folder": dict(Counter(map(_leading_folder, missing)).most_common()),
        "unreferenced_files": len(unreferenced),
        "examples": {
            "missing": missing[:EXAMPLES],
            "other_suffix": other[:EXAMPLES],
            "unreferenced": sorted(unreferenced)[:EXAMPLES],
        },
    }


def _names(source: Source) -> Iterable[tuple[str, int]]:
    """What the source lists itself, or else everything under --images."""
    names = getattr(source, "names", None)
    return names() if names else Images(getattr(source, "images", ())).names()


def _leading_folder(name: str) -> str:
    return name.split("/", 1)[0] if "/" in name else "."


def missing_rate(found: dict[str, Any]) -> float:
    """Share of the distinct pictures that are missing."""
    images = found["images"]
    return images["missing"] / max(1, images["distinct"])


def table(found: dict[str, Any]) -> str:
    """The counts as a person reads them."""
    images = found["images"]
    lines = [
        f"{found['records']:>12,} records",
        f"{found['image_references']:>12,} image references",
        f"{images['distinct']:>12,} distinct images",
        f"{images['present']:>12,} present",
        f"{images['missing']:>12,} missing" + _by_folder(found["missing_by_folder"]),
        f"{images['other_suffix']:>12,} there under another suffix (convert finds them)",
        f"{found['unreferenced_files']:>12,} files that no record refers to",
    ]
    for kind, names in found["examples"].items():
        lines += [f"  {kind.replace('_', ' ')}: {_plain(name)}" for name in names]
    return "\n".join(lines)


def _by_folder(folders: dict[str, int]) -> str:
    listed = ", ".join(f"{_plain(folder)} {number:,}" for folder, number in list(folders.items())[:10])
    return f"  ({listed})" if listed else ""


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
