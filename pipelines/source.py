"""Source: what a module of this folder provides to turn one upstream format into records.

A source is a frozen dataclass. Its fields are its options, and so its flags; its class attribute `name` is the module's name. It answers
four questions, and never touches keys, tars, counts of rejects or processes:

    units(limit)   how the input is cut: contiguous, decided by the input alone
    rows(unit)     the input items of a unit, in order
    sample(row)    the record of one item; raises Reject where there is none
    references()   the names of the pictures that each item refers to, for `pipelines check`

One item gives exactly one record or one reject, because nothing else can be said. Where a source has more to say, it may also have

    notes()        counts that belong to the input as a whole: a Tally, put into the manifest once
    names()        (name, size) of the pictures, where they do not lie in `images`
    absent()       paths that were asked for and are known never to have existed
    listed(folder) the files of an annotation folder that count, where the source has listed it already
    fetch          a dataclass whose fields are flags of `convert`; its `fetched(source, out, limit)` downloads: the source that reads it
    look(units, each)  a look at every unit before anything is written, by whoever `each` has do it; raises SourceError
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from pipelines.images import Found, Images
from schemas import Image, Record, Reject
from schemas.box import BoxRefused, fit

MAX_UNIT = 10_000  # items
UNITS = 64
MAX_IMAGES = 10_000  # of one record
T = TypeVar("T")


class Row(NamedTuple):
    """One input item: where it stands, and whatever the source needs to read it."""

    file: str
    number: int
    data: Any


class Tally(Counter[tuple[str, str]]):
    """How often what was dropped or mended: (family, reason) to number.

    Families end up in the manifest under their names: images_dropped, regions_dropped, masks_dropped, spans_dropped,
    expressions_dropped, relations_dropped, maps_dropped, turns_dropped, captions_dropped, meta_dropped; mended; notes.
    """

    def note(self, family: str, reason: str, times: int = 1) -> None:
        """Count it."""
        if times:
            self[family, reason] += times

    def box(self, box: Sequence[float], image: Image) -> list[float] | None:
        """The box inside the image; None, counted in regions_dropped, where it can not be kept."""
        try:
            fitted, clipped = fit(box, image.width, image.height)
        except BoxRefused as error:
            self.note("regions_dropped", error.reason)
            return None
        self.note("mended", "box_clipped", int(clipped))
        return fitted

    def pictures(self, images: Images, names: Sequence[str]) -> list[Found | None]:
        """Each picture, None where it is bad. Of several, the bad are dropped and counted; raises Reject where none is left."""
        found, refused = [], []
        for name in few(names):
            try:
                found.append(images.read(name))
                self.note("mended", "other_suffix", int(found[-1].other_suffix))
            except Reject as reject:
                refused.append(reject)
                found.append(None)
        if refused and len(refused) == len(found):
            raise refused[0]
        for reject in refused:
            self.note("images_dropped", reject.reason)
        return found


def few(pictures: Sequence[T]) -> Sequence[T]:
    """The pictures of a record, which a worker holds all together. Raises Reject(too_many_images) where they are more than MAX_IMAGES."""
    if len(pictures) > MAX_IMAGES:
        raise Reject("too_many_images", f"expected at most {MAX_IMAGES} pictures, found {len(pictures)}")
    return pictures


@dataclass
class Sample:
    """A record on its way: its pictures' bytes in order, its maps' PNG bytes in order, and what was mended or dropped.

    The runner gives the record its key and the members their names; a map's `member` is only its name (`panoptic`) here.
    """

    record: Record
    files: list[bytes]
    maps: list[bytes] = field(default_factory=list)
    counts: Tally = field(default_factory=Tally)


class Source(Protocol):
    """What a source module's dataclass is. See the module's docstring."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def units(self, limit: int | None) -> Sequence[Any]:
        """Contiguous, picklable parts of the input, in order, of at most `limit` items in all. Raises SourceError, RequestError."""
        ...

    def rows(self, unit: Any) -> Iterator[Row]:
        """The items of a unit. Raises SourceError where the file is not what it claims to be."""
        ...

    def sample(self, row: Row) -> Sample:
        """The item's record. Raises Reject."""
        ...

    def references(self) -> Iterator[Sequence[str]]:
        """For every item, the names of the pictures that it refers to; [] for text, and for a row that can not be read."""
        ...


def even(items: int, limit: int | None) -> list[range]:
    """Units of a 64th of the items, of at most 10,000 each: by the input alone, whoever converts it."""
    items = items if limit is None else min(items, limit)
    size = max(1, min(MAX_UNIT, math.ceil(items / UNITS)))
    return [range(start, min(start + size, items)) for start in range(0, items, size)]


def option(help: str, *, reads: str = "", default: Any = MISSING, choices: Sequence[str] = ()) -> Any:
    """A field that is a flag. reads: "annotations" (hashed), "pictures" (listed) or "" (a plain value).

    A field typed tuple[Path, ...] may be given several times; one without a default is required.
    """
    return field(default=default, metadata={"help": help, "reads": reads, "choices": tuple(choices)})


def verify() -> Any:
    """The field `verify`: how closely pictures are looked at."""
    return option("header: format and size from the bytes; decode: the pixels, too", default="header", choices=("header", "decode"))
