"""Show: one record as a person reads it: text and pictures in reading order, then what lies on them."""

from __future__ import annotations

from collections.abc import Iterator

from schemas import Part, Record, Region, Turn
from shards.reader import Sample

MAX_LINES = 12  # of one kind of thing, before the rest is only counted


def show(sample: Sample) -> str:
    """The record as lines of text. Control characters in upstream text are escaped, so that it can not drive the terminal."""
    return "\n".join(_plain(line) for line in _lines(sample.record))


def _lines(record: Record) -> Iterator[str]:
    yield f"{record.key}  {record.source}{'  ' + record.language if record.language else ''}"
    for index, image in enumerate(record.images):
        similarity = f"  similarity {image.similarity:.3f}" if image.similarity is not None else ""
        origin = f"  {_plain(image.origin)}" if image.origin else ""
        yield f"  image {index}: {image.width} x {image.height} {image.format}, {image.bytes:,} bytes{similarity}{origin}"
    for turn in record.turns:
        yield from _turn(turn)
    for number, choice in enumerate(record.choices[:MAX_LINES]):
        yield f"  or {number + 1}:"
        for turn in choice.turns:
            yield from _turn(turn, "    ")
    yield from _rest(len(record.choices), "choices")
    yield from _regions(record)
    for map in record.maps:
        yield f"  map on image {map.image}: {map.kind} {map.encoding}, {len(map.segments or map.classes or ())} entries, {map.member}"
    yield f"  meta: {_plain(record.meta)[:600]}"


def _turn(turn: Turn, indent: str = "  ") -> Iterator[str]:
    trained = {True: " (trained)", False: " (context)", None: ""}[turn.train]
    yield f"{indent}{turn.role}{trained}: {''.join(_part(part) for part in turn.parts)}"
    text = turn.text()
    for span in turn.spans[:MAX_LINES]:
        yield f"{indent}  [{span.start}:{span.end}] {_plain(text[span.start : span.end])!r} -> {', '.join(span.regions)}"
    yield from _rest(len(turn.spans), "spans")


def _part(part: Part) -> str:
    if part.image is not None:
        return f"[image {part.image}]"
    return f"[region {part.region}]" if part.region is not None else _plain(part.text or "")


def _regions(record: Record) -> Iterator[str]:
    for region in record.regions[:MAX_LINES]:
        yield f"  region {_plain(region.id)} on image {region.image}:{_region(region)}"
    yield from _rest(len(record.regions), "regions")
    for expression in record.expressions[:MAX_LINES]:
        yield f"  expression {_plain(expression.text)!r} -> {', '.join(expression.regions) or 'nothing'}"
    yield from _rest(len(record.expressions), "expressions")
    for relation in record.relations[:MAX_LINES]:
        yield f"  relation {relation.subject} {_plain(relation.predicate)} {relation.object}"
    yield from _rest(len(record.relations), "relations")


def _region(region: Region) -> str:
    box = f" box {[round(value, 1) for value in region.box]}" if region.box else ""
    mask = " mask" if region.mask else ""
    points = f" {len(region.points)} points" if region.points else ""
    return f" {_plain(region.label or '')}{' crowd' if region.crowd else ''}{box}{mask}{points}"


def _rest(number: int, what: str) -> Iterator[str]:
    if number > MAX_LINES:
        yield f"  ... {number - MAX_LINES} more {what}"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)
