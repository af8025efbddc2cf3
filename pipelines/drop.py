"""Drop: a record less some of its pictures, and less all that hangs on them, so that it still keeps every rule of format 1."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import compress, count
from typing import Any, TypeVar

import msgspec

from pipelines.source import Sample, Tally
from schemas import Part, Record, Turn
from schemas.record import json_text

GONE = "image_dropped"  # why what hung on a picture went, too
_AN_IMAGE_EACH = ("raw_urls", "similarity_matrix")  # lists in meta with an item a picture
T = TypeVar("T")


def without(sample: Sample, pictures: Collection[int]) -> Sample:
    """The same sample, changed: less the pictures at these positions, of which it must have others, too.

    Their parts, regions and maps go; the others are numbered anew. Regions, maps, spans, expressions and relations that go are counted
    (reason `image_dropped`); the pictures themselves are the caller's to count, who knows why. Text is untouched.
    """
    record, counts = sample.record, sample.counts
    stays = [position not in pictures for position in range(len(record.images))]
    numbers = {old: new for new, old in enumerate(compress(count(), stays))}
    record.images, sample.files = list(compress(record.images, stays)), list(compress(sample.files, stays))
    gone = {region.id for region in record.regions if region.image not in numbers}
    for turn in [*record.turns, *(turn for choice in record.choices for turn in choice.turns)]:
        _mend(turn, numbers, gone, counts)
    _less_regions(record, gone, counts)
    _less_maps(sample, numbers)
    for placed in (*record.regions, *record.maps):
        placed.image = numbers[placed.image]
    record.meta = _meta(record.meta, stays, numbers)
    return sample


def _mend(turn: Turn, numbers: dict[int, int], gone: Collection[str], counts: Tally) -> None:
    """A turn whose pictures and regions are those that are left. It stays, though it be empty: roles alternate."""
    turn.parts = [_renumbered(part, numbers) for part in turn.parts if _points_at_something(part, numbers, gone)]
    turn.spans = _kept(turn.spans, [not _lost(span.regions, gone) for span in turn.spans], "spans_dropped", counts)
    for span in turn.spans:
        span.regions = [id for id in span.regions if id not in gone]


def _points_at_something(part: Part, numbers: dict[int, int], gone: Collection[str]) -> bool:
    return (part.image is None or part.image in numbers) and (part.region is None or part.region not in gone)


def _renumbered(part: Part, numbers: dict[int, int]) -> Part:
    return part if part.image is None else Part(part.text, numbers[part.image], part.region)


def _lost(regions: Sequence[str], gone: Collection[str]) -> bool:
    """Whether all that it names is gone. What named nothing from the start says that nothing is meant, and stays."""
    return bool(regions) and all(id in gone for id in regions)


def _less_regions(record: Record, gone: Collection[str], counts: Tally) -> None:
    record.regions = _kept(record.regions, [region.id not in gone for region in record.regions], "regions_dropped", counts)
    stays = [not _lost(expression.regions, gone) for expression in record.expressions]
    record.expressions = _kept(record.expressions, stays, "expressions_dropped", counts)
    for expression in record.expressions:
        expression.regions = [id for id in expression.regions if id not in gone]
    stays = [relation.subject not in gone and relation.object not in gone for relation in record.relations]
    record.relations = _kept(record.relations, stays, "relations_dropped", counts)


def _less_maps(sample: Sample, numbers: Collection[int]) -> None:
    stays = [map.image in numbers for map in sample.record.maps]
    sample.maps = list(compress(sample.maps, stays))
    sample.record.maps = _kept(sample.record.maps, stays, "maps_dropped", sample.counts)


def _kept(things: Sequence[T], stays: Sequence[bool], family: str, counts: Tally) -> list[T]:
    counts.note(family, GONE, len(things) - sum(stays))
    return list(compress(things, stays))


def _meta(text: str, stays: Sequence[bool], numbers: dict[int, int]) -> str:
    """`unplaced` names pictures by position, some lists have one item a picture: they are mended, and all else is left as it is."""
    meta: dict[str, Any] = msgspec.json.decode(text)
    mended: dict[str, Any] = {}
    if isinstance(meta.get("unplaced"), list):
        mended["unplaced"] = [numbers[position] for position in meta["unplaced"] if position in numbers]
    for name in _AN_IMAGE_EACH:
        if isinstance(meta.get(name), list) and len(meta[name]) == len(stays):
            mended[name] = list(compress(meta[name], stays))
    return json_text({**meta, **mended}) if mended else text
