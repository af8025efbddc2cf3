"""Every rule of format 1. `validate` is the last gate before a record is written: it catches the source that forgot.

Reasons are fixed and short because they are counted:

    format key source language meta empty             the record
    image_size image_format image_bytes member        a picture's entry
    not_finite                                        similarity, seconds, score
    role part part_image part_region image_unplaced   a turn
    span_range span_region span_cross                 a span
    region_id region_image box mask points attributes
    expression_region relation_region
    map_image map_kind map_encoding map_member map_segments

`shards.writer` adds what only whoever writes the bytes can see: types (a field of another type), text_unicode (a lone surrogate),
image_bytes, payloads, map_png, map_size and map_encoding (the PNG is not what the record says).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from typing import NoReturn

import msgspec

from schemas import mask as masks
from schemas.errors import RecordError
from schemas.record import FORMAT, IMAGE_FORMATS, ROLES, Image, Map, Part, Record, Region, Span, Turn

MAX_META = 64_000  # bytes
MAX_MEMBER = 100  # bytes of a ustar name
MAX_SIDE = 2**31 - 1  # pixels; what the index holds
KEY = re.compile(r"[0-9]{6}-[0-9]{8}")
LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
MAP_NAME = re.compile(r"[a-z0-9_]{1,32}")


def validate(record: Record) -> None:
    """Raise RecordError with the first rule that the record breaks."""
    _identity(record)
    for index, image in enumerate(record.images):
        _image(record.key, index, image)
    regions = _regions(record)
    _conversation(record.turns, record.images, regions, "turns")
    for index, choice in enumerate(record.choices):
        _conversation(choice.turns, record.images, regions, f"choices {index}")
    _references(record, regions)
    _maps(record)
    _something_left(record)


def _refuse(reason: str, where: str, expected: object, found: object) -> NoReturn:
    """Called behind an `if` and not with its outcome: what it says is made up for bad records alone."""
    raise RecordError(reason, f"{where}: expected {expected}, found {found!r}"[:500])


def _finite(value: float | None, where: str, what: str) -> None:
    if value is not None and not math.isfinite(value):
        _refuse("not_finite", f"{where} {what}", "a finite number", value)


def _identity(record: Record) -> None:
    if record.format != FORMAT:
        _refuse("format", "format", FORMAT, record.format)
    if KEY.fullmatch(record.key) is None:
        _refuse("key", "key", "UUUUUU-RRRRRRRR", record.key)
    if not record.source:
        _refuse("source", "source", "a name", record.source)
    if record.language is not None and LANGUAGE.fullmatch(record.language) is None:
        _refuse("language", "language", "BCP 47", record.language)
    _json_object(record.meta)


def _json_object(text: str) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size >= MAX_META:
        _refuse("meta", "meta", f"under {MAX_META} bytes", size)
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise RecordError("meta", f"meta: expected JSON text, found {error}") from error
    if not isinstance(value, dict):
        _refuse("meta", "meta", "a JSON object", type(value).__name__)


def _image(key: str, index: int, image: Image) -> None:
    where = f"image {index}"
    if image.format not in IMAGE_FORMATS:
        _refuse("image_format", where, IMAGE_FORMATS, image.format)
    if not (0 < image.width <= MAX_SIDE and 0 < image.height <= MAX_SIDE):
        _refuse("image_size", where, f"sides of 1 to {MAX_SIDE}", (image.width, image.height))
    if image.bytes <= 0:
        _refuse("image_bytes", where, "bytes", image.bytes)
    expected = f"{key}.{index}.{image.format}"
    if image.member != expected or len(image.member) > MAX_MEMBER:
        _refuse("member", where, expected, image.member)
    _finite(image.similarity, where, "similarity")
    _finite(image.seconds, where, "seconds")


def _regions(record: Record) -> set[str]:
    seen: set[str] = set()
    for region in record.regions:
        if not region.id or region.id in seen:
            _refuse("region_id", "regions", "unique ids", region.id)
        seen.add(region.id)
        if not 0 <= region.image < len(record.images):
            _refuse("region_image", f"region {region.id}", f"an image below {len(record.images)}", region.image)
        _region(region, record.images[region.image])
    return seen


def _region(region: Region, image: Image) -> None:
    where = f"region {region.id}"
    if region.box is not None:
        _box(region.box, image, where)
    if region.mask is not None:
        _mask(region.mask, image, where)
    for point in region.points or ():
        if len(point) != 3 or not all(math.isfinite(value) for value in point):
            _refuse("points", where, "[x, y, visibility]", point)
    _finite(region.score, where, "score")
    if region.attributes is not None:
        _attributes(region.attributes, where)


def _box(box: list[float], image: Image, where: str) -> None:
    if not (len(box) == 4 and 0 <= box[0] < box[2] <= image.width and 0 <= box[1] < box[3] <= image.height):
        _refuse("box", where, f"a box inside {image.width}x{image.height}", box)


def _mask(mask: masks.Mask, image: Image, where: str) -> None:
    if mask.size != [image.height, image.width]:
        _refuse("mask", where, [image.height, image.width], mask.size)
    try:
        masks.runs(mask)
    except masks.MaskRefused as error:
        raise RecordError("mask", f"{where}: {error}") from error


def _attributes(text: str, where: str) -> None:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise RecordError("attributes", f"{where}: expected JSON text, found {error}") from error


def _conversation(turns: list[Turn], images: list[Image], regions: Collection[str], where: str) -> None:
    placed: set[int] = set()
    for number, turn in enumerate(turns):
        if turn.role not in ROLES:
            _refuse("role", f"{where} {number}", ROLES, turn.role)
        for part in turn.parts:
            if part.text is None or part.image is not None or part.region is not None:
                _pointer(part, len(images), regions, f"{where} {number}")
            if part.image is not None:
                placed.add(part.image)
        if turn.spans:
            _spans(turn.spans, len(turn.text()), regions, f"{where} {number}")
    if len(placed) < len(images):
        _refuse("image_unplaced", where, "every image placed", sorted(set(range(len(images))) - placed))


def _pointer(part: Part, images: int, regions: Collection[str], where: str) -> None:
    """A part that is not text alone: one image or one region, and there is such a one."""
    filled = (part.text is not None) + (part.image is not None) + (part.region is not None)
    if filled != 1:
        _refuse("part", where, "one of text, image, region", filled)
    if part.image is not None and not 0 <= part.image < images:
        _refuse("part_image", where, f"an image below {images}", part.image)
    if part.region is not None and part.region not in regions:
        _refuse("part_region", where, "a region's id", part.region)


def _spans(spans: list[Span], length: int, regions: Collection[str], where: str) -> None:
    for span in spans:
        if not 0 <= span.start < span.end <= length:
            _refuse("span_range", where, f"inside {length}", (span.start, span.end))
        unknown = [id for id in span.regions if id not in regions]
        if unknown:
            _refuse("span_region", where, "regions' ids", unknown)
    if crossing(spans):
        _refuse("span_cross", where, "spans apart or nested", [(s.start, s.end) for s in spans])


def crossing(spans: Iterable[Span]) -> bool:
    """Whether two spans overlap without one holding the other."""
    open_ends: list[int] = []
    for start, end in sorted(((span.start, span.end) for span in spans), key=lambda se: (se[0], -se[1])):
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        if open_ends and end > open_ends[-1]:
            return True
        open_ends.append(end)
    return False


def _references(record: Record, regions: Collection[str]) -> None:
    for expression in record.expressions:
        unknown = [id for id in expression.regions if id not in regions]
        if unknown:
            _refuse("expression_region", f"expression {expression.text[:40]!r}", "regions' ids", unknown)
    for relation in record.relations:
        unknown = [id for id in (relation.subject, relation.object) if id not in regions]
        if unknown:
            _refuse("relation_region", f"relation {relation.predicate[:40]!r}", "regions' ids", unknown)


def _maps(record: Record) -> None:
    seen: set[str] = set()
    for map in record.maps:
        where = f"map {map.member}"
        if not 0 <= map.image < len(record.images):
            _refuse("map_image", where, f"an image below {len(record.images)}", map.image)
        if map.kind not in ("classes", "panoptic"):
            _refuse("map_kind", where, "classes or panoptic", map.kind)
        if map.encoding not in ("L8", "L16", "RGB24"):
            _refuse("map_encoding", where, "L8, L16 or RGB24", map.encoding)
        if map_name(record.key, map) is None or map.member in seen:
            _refuse("map_member", where, "KEY.<image>.<name>.png", map.member)
        seen.add(map.member)
        ids = [segment.id for segment in map.segments or ()]
        if len(ids) != len(set(ids)):
            _refuse("map_segments", where, "unique ids", len(ids))


def map_name(key: str, map: Map) -> str | None:
    """The name in a map's member KEY.<image>.<name>.png; None where the member is not of that form."""
    prefix = f"{key}.{map.image}."
    if not (map.member.startswith(prefix) and map.member.endswith(".png") and len(map.member) <= MAX_MEMBER):
        return None
    name = map.member[len(prefix) : -len(".png")]
    return name if MAP_NAME.fullmatch(name) else None


def _something_left(record: Record) -> None:
    if record.images or _speaks(record.turns) or any(_speaks(choice.turns) for choice in record.choices):
        return
    _refuse("empty", "record", "an image or text", "neither")


def _speaks(turns: list[Turn]) -> bool:
    return any(part.text for turn in turns for part in turn.parts)
