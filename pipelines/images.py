"""Images: from a name in an annotation file to a measured picture and its untouched bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pipelines.stores import Store, open_store, safe
from schemas import Image, Reject, record
from schemas.picture import measure


class Found(NamedTuple):
    """A picture: its entry in a record, its bytes, and whether it stood under another suffix than the annotation says."""

    image: Image
    data: bytes
    other_suffix: bool


class Images:
    """The pictures under one or more roots; of several roots that hold a name, the first counts. Picklable."""

    def __init__(self, roots: Sequence[Path], verify: str = "header") -> None:
        self.roots, self.verify = tuple(roots), verify

    @cached_property
    def stores(self) -> list[Store]:
        """One store a root. Raises RequestError where a root is none."""
        return [open_store(root) for root in self.roots]

    def names(self) -> Iterator[tuple[str, int]]:
        """Relative name and size of every file under every root."""
        for store in self.stores:
            yield from store.names()

    def read(self, name: str, *, similarity: float | None = None, seconds: float | None = None) -> Found:
        """The picture of this name. Raises Reject: image_path, image_missing, image_unreadable, image_bytes, and `measure`'s reasons."""
        origin, data, other_suffix = self.bytes_of(name)
        picture = measure(data, self.verify)
        entry = record.image(
            width=picture.width,
            height=picture.height,
            format=picture.format,
            bytes=len(data),
            origin=origin,
            similarity=similarity,
            seconds=seconds,
        )
        return Found(entry, data, other_suffix)

    def any_of(self, names: Sequence[str]) -> Found:
        """The first of these names, at least one, that there is. Raises Reject as `read` does, of the first name."""
        for name in names:
            try:
                return self.read(name)
            except Reject as reject:
                if reject.reason != "image_missing":
                    raise
        return self.read(names[0])

    def resolve(self, wanted: Iterable[Sequence[str]]) -> Iterator[list[str]]:
        """For each picture that goes by several names, the one that it stands under, or else the first; [] for no names."""
        there = {name for name, _ in self.names()}
        for names in wanted:
            yield [next((name for name in names if name in there), names[0])] if names else []

    def bytes_of(self, name: str) -> tuple[str, bytes, bool]:
        """The name found, its bytes, and whether its suffix is another. Raises Reject as `read` does, before measuring."""
        clean = safe(name)
        for store in self.stores:
            data = store.read(clean)
            if data is not None:
                return clean, data, False
        for store in self.stores:
            twin = store.twin(clean)
            data = store.read(twin) if twin else None
            if twin and data is not None:
                return twin, data, True
        raise Reject("image_missing", f"expected {clean[:200]} under {self._under()}, found nothing")

    def _under(self) -> str:
        return ", ".join(root.name for root in self.roots) or "no --images"
