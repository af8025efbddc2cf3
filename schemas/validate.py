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

import msgspec

from schemas import mask as masks
from schemas.errors import RecordError
from schemas.record import FORMAT, IMAGE_FORMATS, ROLES, Choice, Image, Map, Record, Region, Span, Turn

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


def _require(holds: bool, reason: str, where: str, expected: object, found: object) -> None:
    if not holds:
        raise RecordError(reason, f"{where}: expected {expected}, found {found!r}"[:500])


def _finite(value: float | None, where: str) -> None:
    _require(value is None or math.isfinite(value), "not_finite", where, "a finite number", value)


def _identity(record: Record) -> None:
    _require(record.format == FORMAT, "format", "format", FORMAT, record.format)
    _require(KEY.fullmatch(record.key) is not None, "key", "key", "UUUUUU-RRRRRRRR", record.key)
    _require(bool(record.source), "source", "source", "a name", record.source)
    language = record.language
    _require(language is None or LANGUAGE.fullmatch(language) is not None, "language", "language", "BCP 47", language)
    _json_object(record.meta)


def _json_object(text: str) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    _require(size < MAX_META, "meta", "meta", f"under {MAX_META} bytes", size)
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise RecordError("meta", f"meta: expected JSON text, found {error}") from error
    _require(isinstance(value, dict), "meta", "meta", "a JSON object", type(value).__name__)


def _image(key: str, index: int, image: Image) -> None:
    where = f"image {index}"
    _require(image.format in IMAGE_FORMATS, "image_format", where, IMAGE_FORMATS, image.format)
    sized = 0 < image.width <= MAX_SIDE and 0 < image.height <= MAX_SIDE
    _require(sized, "image_size", where, f"sides of 1 to {MAX_SIDE}", (image.width, image.height))
    _require(image.bytes > 0, "image_bytes", where, "bytes", image.bytes)
    _member(image.member, f"{key}.{index}.{image.format}", where)
    _finite(image.similarity, f"{where} similarity")
    _finite(image.seconds, f"{where} seconds")


def _member(member: str, expected: str, where: str) -> None:
    _require(member == expected and len(member) <= MAX_MEMBER, "member", where, expected, member)


def _regions(record: Record) -> set[str]:
    seen: set[str] = set()
    for region in record.regions:
        _require(bool(region.id) and region.id not in seen, "region_id", "regions", "unique ids", region.id)
        seen.add(region.id)
        inside = 0 <= region.image < len(record.images)
        _require(inside, "region_image", f"region {region.id}", f"an image below {len(record.images)}", region.image)
        _region(region, record.images[region.image])
    return seen


def _region(region: Region, image: Image) -> None:
    where = f"region {region.id}"
    if region.box is not None:
        _box(region.box, image, where)
    if region.mask is not None:
        _mask(region.mask, image, where)
    for point in region.points or ():
        finite = len(point) == 3 and all(math.isfinite(value) for value in point)
        _require(finite, "points", where, "[x, y, visibility]", point)
    _finite(region.score, f"{where} score")
    if region.attributes is not None:
        _attributes(region.attributes, where)


def _box(box: list[float], image: Image, where: str) -> None:
    fits = len(box) == 4 and 0 <= box[0] < box[2] <= image.width and 0 <= box[1] < box[3] <= image.height
    _require(fits, "box", where, f"a box inside {image.width}x{image.height}", box)


def _mask(mask: masks.Mask, image: Image, where: str) -> None:
    _require(mask.size == [image.height, image.width], "mask", where, [image.height, image.width], mask.size)
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
        at = f"{where} {number}"
        _require(turn.role in ROLES, "role", at, ROLES, turn.role)
        placed.update(_parts(turn, len(images), regions, at))
        if turn.spans:
            _spans(turn.spans, len(turn.text()), regions, at)
    missing = sorted(set(range(len(images))) - placed)
    _require(not missing, "image_unplaced", where, "every image placed", missing)


def _parts(turn: Turn, images: int, regions: Collection[str], where: str) -> Iterable[int]:
    placed: list[int] = []
    for part in turn.parts:
        filled = (part.text is not None) + (part.image is not None) + (part.region is not None)
        _require(filled == 1, "part", where, "one of text, image, region", filled)
        if part.image is not None:
            _require(0 <= part.image < images, "part_image", where, f"an image below {images}", part.image)
            placed.append(part.image)
        elif part.region is not None:
            _require(part.region in regions, "part_region", where, "a region's id", part.region)
    return placed


def _spans(spans: list[Span], length: int, regions: Collection[str], where: str) -> None:
    for span in spans:
        _require(0 <= span.start < span.end <= length, "span_range", where, f"inside {length}", (span.start, span.end))
        unknown = [id for id in span.regions if id not in regions]
        _require(not unknown, "span_region", where, "regions' ids", unknown)
    _require(not crossing(spans), "span_cross", where, "spans apart or nested", [(s.start, s.end) for s in spans])


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
        _require(not unknown, "expression_region", f"expression {expression.text[:40]!r}", "regions' ids", unknown)
    for relation in record.relations:
        unknown = [id for id in (relation.subject, relation.object) if id not in regions]
        _require(not unknown, "relation_region", f"relation {relation.predicate[:40]!r}", "regions' ids", unknown)


def _maps(record: Record) -> None:
    seen: set[str] = set()
    for map in record.maps:
        where = f"map {map.member}"
        inside = 0 <= map.image < len(record.images)
        _require(inside, "map_image", where, f"an image below {len(record.images)}", map.image)
        _require(map.kind in ("classes", "panoptic"), "map_kind", where, "classes or panoptic", map.kind)
        _require(map.encoding in ("L8", "L16", "RGB24"), "map_encoding", where, "L8, L16 or RGB24", map.encoding)
        name = map_name(record.key, map)
        _require(name is not None and map.member not in seen, "map_member", where, "KEY.<image>.<name>.png", map.member)
        seen.add(map.member)
        ids = [segment.id for segment in map.segments or ()]
        _require(len(ids) == len(set(ids)), "map_segments", where, "unique ids", len(ids))


def map_name(key: str, map: Map) -> str | None:
    """The name in a map's member KEY.<image>.<name>.png; None where the member is not of that form."""
    prefix = f"{key}.{map.image}."
    if not (map.member.startswith(prefix) and map.member.endswith(".png") and len(map.member) <= MAX_MEMBER):
        return None
    name = map.member[len(prefix) : -len(".png")]
    return name if MAP_NAME.fullmatch(name) else None


def _something_left(record: Record) -> None:
    spoken: list[Turn] = [*record.turns, *(turn for choice in record.choices for turn in _turns(choice))]
    text = any(part.text for turn in spoken for part in turn.parts)
    _require(bool(record.images) or text, "empty", "record", "an image or text", "neither")


def _turns(choice: Choice) -> list[Turn]:
    return choice.turns
