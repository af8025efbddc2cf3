"""The record, format 1: one JSON object that interleaves text, images and regions in reading order.

Every field of every struct is always present, null where empty; readers ignore fields they do not know. The structs have
no defaults, so that a record with a field left out is refused when it is read; the functions in lower case (`image`, `part`,
`turn`, `region`, ...) fill in the empty fields for whoever builds one. README.md shows a whole record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from schemas.errors import RecordError

FORMAT = 1
IMAGE_FORMATS = ("jpg", "png", "gif", "webp", "tif", "bmp")
ROLES = ("text", "system", "user", "assistant", "tool")


class Image(msgspec.Struct, gc=False):
    """A picture as it is stored: pixels are never touched, EXIF orientation is not applied."""

    member: str  # full name in the tar: KEY.<position>.<format>
    width: int  # pixels
    height: int  # pixels
    format: str  # one of IMAGE_FORMATS, by magic bytes
    bytes: int
    origin: str | None  # upstream path relative to its root, or URL
    similarity: float | None  # to its text, if upstream gives one
    seconds: float | None  # position in a video


class Part(msgspec.Struct, gc=False):
    """One piece of a turn: exactly one of the three is not null."""

    text: str | None
    image: int | None  # index into Record.images
    region: str | None  # a Region.id


class Span(msgspec.Struct):
    """A stretch of a turn's text that names regions: code points [start, end) of the text parts joined by nothing."""

    start: int
    end: int
    regions: list[str]


class Turn(msgspec.Struct):
    """What one role says, in reading order."""

    role: str  # one of ROLES
    parts: list[Part]
    spans: list[Span]
    train: bool | None  # null: by role (text and assistant are trained on)

    def text(self) -> str:
        """The text parts joined by nothing: what spans count in."""
        return "".join(part.text for part in self.parts if part.text is not None)


class Choice(msgspec.Struct):
    """Other turns that are equally right for the same images."""

    turns: list[Turn]


class Mask(msgspec.Struct):
    """COCO compressed run lengths, column-major, of the stored size."""

    size: list[int]  # [height, width]
    counts: str


class Region(msgspec.Struct):
    """A part of an image. Coordinates are pixels of the stored image, origin at its top left corner."""

    id: str
    image: int
    box: list[float] | None  # [x0, y0, x1, y1], half open
    mask: Mask | None
    points: list[list[float]] | None  # [x, y, visibility]
    label: str | None
    crowd: bool | None
    attributes: str | None  # JSON text
    score: float | None


class Expression(msgspec.Struct):
    """A phrase that refers: to several regions, to one, or ([]) to none of them."""

    text: str
    regions: list[str]


class Relation(msgspec.Struct, gc=False):
    """Two regions and what is said of them."""

    subject: str
    predicate: str
    object: str


class Segment(msgspec.Struct, gc=False):
    """One value of a label map."""

    id: int
    label: str | None
    area: int | None
    crowd: bool | None


class Map(msgspec.Struct):
    """A label map: an image of the same size whose values are classes or segment ids."""

    image: int
    member: str  # KEY.<image>.<name>.png
    kind: str  # classes | panoptic
    encoding: str  # L8 | L16 | RGB24 (id = R + 256 G + 65536 B)
    ignore: int | None
    classes: list[str] | None
    segments: list[Segment] | None


class Record(msgspec.Struct):
    """One training record. `schemas.validate.validate` holds the rules."""

    format: int
    key: str  # UNIT-ROW, unique in the data set
    source: str
    language: str | None  # BCP 47
    images: list[Image]
    turns: list[Turn]
    choices: list[Choice]
    regions: list[Region]
    expressions: list[Expression]
    relations: list[Relation]
    maps: list[Map]
    meta: str  # JSON text of an object, under 64 kB


def image(
    *,
    width: int,
    height: int,
    format: str,
    bytes: int,
    origin: str | None = None,
    similarity: float | None = None,
    seconds: float | None = None,
    member: str = "",
) -> Image:
    """An Image whose member name is given when its record gets its key."""
    return Image(member, width, height, format, bytes, origin, similarity, seconds)


def text_part(text: str) -> Part:
    """A Part that is text."""
    return Part(text, None, None)


def image_part(index: int) -> Part:
    """A Part that is the image at this index of the record."""
    return Part(None, index, None)


def region_part(region: str) -> Part:
    """A Part that is a region, by id."""
    return Part(None, None, region)


def turn(role: str, parts: Iterable[Part], *, spans: Iterable[Span] = (), train: bool | None = None) -> Turn:
    """A Turn; trained on by role unless `train` says otherwise."""
    return Turn(role, list(parts), list(spans), train)


def region(
    id: str,
    image: int,
    *,
    box: list[float] | None = None,
    mask: Mask | None = None,
    points: list[list[float]] | None = None,
    label: str | None = None,
    crowd: bool | None = None,
    attributes: str | None = None,
    score: float | None = None,
) -> Region:
    """A Region; `box` is [x0, y0, x1, y1] in pixels of the stored image."""
    return Region(id, image, box, mask, points, label, crowd, attributes, score)


def label_map(
    image: int,
    kind: str,
    encoding: str,
    *,
    ignore: int | None = None,
    classes: list[str] | None = None,
    segments: list[Segment] | None = None,
    member: str = "",
) -> Map:
    """A Map whose member name is given when its record gets its key."""
    return Map(image, member, kind, encoding, ignore, classes, segments)


def record(
    source: str,
    *,
    images: Sequence[Image] = (),
    turns: Sequence[Turn] = (),
    choices: Sequence[Choice] = (),
    regions: Sequence[Region] = (),
    expressions: Sequence[Expression] = (),
    relations: Sequence[Relation] = (),
    maps: Sequence[Map] = (),
    language: str | None = None,
    meta: dict[str, Any] | None = None,
    key: str = "",
) -> Record:
    """A Record of format 1. `meta` is a dict of JSON values; the key is given by whoever writes it."""
    return Record(
        format=FORMAT,
        key=key,
        source=source,
        language=language,
        images=list(images),
        turns=list(turns),
        choices=list(choices),
        regions=list(regions),
        expressions=list(expressions),
        relations=list(relations),
        maps=list(maps),
        meta=json_text(meta or {}),
    )


def json_text(value: Any) -> str:
    """Compact JSON text, as `meta` and `attributes` hold it. NaN and infinities become null. Raises RecordError for a lone surrogate."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError as error:
        raise RecordError("text_unicode", f"expected text that UTF-8 can hold, found {error}"[:300]) from error


_decoder = msgspec.json.Decoder(Record)
_encoder = msgspec.json.Encoder()


def encode(record: Record) -> bytes:
    """The record's JSON bytes: encode(decode(encode(r))) == encode(r)."""
    return _encoder.encode(record)


def decode(data: bytes | memoryview) -> Record:
    """The record in these JSON bytes. Raises msgspec.ValidationError or DecodeError where they are not one."""
    return _decoder.decode(data)
