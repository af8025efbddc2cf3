"""A record as its readers would see it: what the templates draw, in order, with what belongs together under the same numbers.

Regions are called by their position in the record, so that nothing of upstream's becomes a name in the page.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from schemas import Map, Part, Record, Region, Span, Turn
from shards.view import paint

LETTERS = 100_000  # of a turn that are shown; what is cut off is counted
REGIONS = 300
ROWS = 200  # choices, expressions, relations, spans without text
TRAINED = {"text", "assistant"}  # where a turn does not say
SNIPPET = 160


class Piece(NamedTuple):
    """What stands next: text that names regions or none, an image, or a region."""

    text: str = ""
    regions: str = ""  # numbers with spaces between
    ends: str = ""  # those of the spans that end here
    marked: bool = False
    image: int | None = None
    region: int | None = None


class Said(NamedTuple):
    """A turn."""

    role: str
    trained: bool
    stated: bool  # by the record, not by its role
    pieces: list[Piece]
    more: int  # letters that are not shown


@dataclass(frozen=True)
class Shown:
    """A region, numbered, with the phrases that name it."""

    number: int
    region: Region
    phrases: list[str]
    mask: bool  # drawn over the image

    @property
    def colour(self) -> int:
        """Which of view.css's."""
        return self.number % len(paint.COLOURS)

    @property
    def name(self) -> str:
        """Its label, or the first phrase that names it."""
        return self.region.label or (self.phrases[0] if self.phrases else "")

    @property
    def details(self) -> list[str]:
        """What else there is, in words."""
        found = self.region
        score = [f"score {found.score:.3f}"] if found.score is not None else []
        points = [f"{len(found.points)} points"] if found.points else []
        return [*(["mask"] if found.mask else []), *points, *score, *(["crowd"] if found.crowd else [])]

    @property
    def box(self) -> str:
        """Corners, in pixels."""
        return ", ".join(f"{value:.6g}" for value in self.region.box or ())


class Page:
    """One record, its parts as they are drawn."""

    def __init__(self, number: int, record: Record) -> None:
        self.number, self.record = number, record
        self._place = {region.id: at for at, region in enumerate(record.regions)}
        phrases = _phrases(record)
        kept = record.regions[:REGIONS]
        self.regions = [Shown(at, region, phrases[region.id], region.mask is not None) for at, region in enumerate(kept)]
        self.more_regions = len(record.regions) - len(self.regions)
        self.turns = self._said(record.turns)
        self.choices = [self._said(choice.turns) for choice in record.choices[:ROWS]]
        self.expressions = [(one.text, [self._place.get(id) for id in one.regions]) for one in record.expressions[:ROWS]]
        self.relations = [(self._place.get(one.subject), one.predicate, self._place.get(one.object)) for one in record.relations[:ROWS]]
        self.maps = [(at, one, _legend(one)) for at, one in enumerate(record.maps)]

    @property
    def hidden(self) -> list[str]:
        """What is there and not shown."""
        record = self.record
        many = {"choices": len(record.choices), "expressions": len(record.expressions), "relations": len(record.relations)}
        rest = [f"{count - ROWS:,} more {name}" for name, count in many.items() if count > ROWS]
        return rest + ([f"{self.more_regions:,} more regions"] if self.more_regions else [])

    @property
    def layers(self) -> list[str]:
        """What lies over the images."""
        drawn = {"boxes": any(one.box or one.region.points for one in self.regions), "masks": any(one.mask for one in self.regions)}
        return [name for name, there in {**drawn, "maps": bool(self.maps)}.items() if there]

    def on(self, image: int) -> list[Shown]:
        """The regions of an image, the largest first, so that small ones lie on top."""
        return sorted((one for one in self.regions if one.region.image == image), key=lambda one: -_area(one.region))

    def beside(self, image: int) -> dict[int, int]:
        """Of each region of an image, how many before it begin in about the same corner: their numbers stand side by side."""
        size = self.record.images[image]
        near = max(size.width, size.height) / 25
        corners = {one.number: (one.region.box[0] // near, one.region.box[1] // near) for one in self.on(image) if one.region.box}
        seen: Counter[tuple[float, float]] = Counter()
        found = {}
        for number in sorted(corners):
            found[number] = seen[corners[number]]
            seen[corners[number]] += 1
        return found

    def maps_of(self, image: int) -> list[tuple[int, Map]]:
        """The label maps of an image, with their numbers."""
        return [(at, one) for at, one, _ in self.maps if one.image == image]

    def name(self, at: int | None) -> str:
        """A region, in words."""
        if at is None:
            return "unknown region"
        return f"{at} {self.regions[at].name}".strip() if at < len(self.regions) else str(at)

    @property
    def meta(self) -> str:
        """Upstream's id, licence and so on, a line each."""
        try:
            return json.dumps(json.loads(self.record.meta), indent=1, ensure_ascii=False)
        except ValueError:
            return self.record.meta

    def _said(self, turns: Sequence[Turn]) -> list[Said]:
        return [self._turn(turn) for turn in turns]

    def _turn(self, turn: Turn) -> Said:
        pieces, at = [], 0
        for part in turn.parts:
            if part.text is None:
                pieces.append(self._pointer(part))
            else:
                pieces += self._text(part.text[: max(0, LETTERS - at)], at, turn.spans)
                at += len(part.text)
        trained = turn.train if turn.train is not None else turn.role in TRAINED
        return Said(turn.role, trained, turn.train is not None, pieces, max(0, at - LETTERS))

    def _pointer(self, part: Part) -> Piece:
        if part.image is not None:
            return Piece(image=part.image)
        at = self._place.get(part.region or "")
        return Piece(region=at, regions=_numbers([at]))

    def _text(self, text: str, begin: int, spans: Sequence[Span]) -> Iterator[Piece]:
        """The text cut where spans begin and end; a piece that several cover names all their regions."""
        end = begin + len(text)
        mine = [span for span in spans if span.start < end and span.end > begin][:ROWS]
        cuts = sorted({begin, end, *(at for span in mine for at in (span.start, span.end) if begin < at < end)})
        for start, stop in pairwise(cuts):
            over = [span for span in mine if span.start <= start and span.end >= stop]
            ended = [span for span in over if span.end == stop]
            yield Piece(text[start - begin : stop - begin], self._named(over), self._named(ended), marked=bool(over))

    def _named(self, spans: Sequence[Span]) -> str:
        return _numbers([self._place.get(id) for span in spans for id in span.regions])


class Tile(NamedTuple):
    """A record among others: what tells it from its neighbours."""

    number: int
    key: str
    source: str
    images: int
    regions: int
    snippet: str


def tile(number: int, record: Record) -> Tile:
    """The record's tile."""
    turns = [*record.turns, *(turn for choice in record.choices for turn in choice.turns)]
    snippet = next((text for turn in turns if (text := turn.text().strip())), "")
    short = snippet if len(snippet) <= SNIPPET else snippet[:SNIPPET] + "…"
    return Tile(number, record.key, record.source, len(record.images), len(record.regions), short)


def _phrases(record: Record) -> dict[str, list[str]]:
    """What each region is called, by id: by expressions, and by spans of the text."""
    found: dict[str, list[str]] = defaultdict(list)
    for expression in record.expressions:
        for id in expression.regions:
            found[id].append(expression.text)
    for turn in [*record.turns, *(turn for choice in record.choices for turn in choice.turns)]:
        text = turn.text()
        for span in turn.spans:
            for id in span.regions:
                found[id].append(text[span.start : span.end])
    return defaultdict(list, {id: list(dict.fromkeys(phrases))[:8] for id, phrases in found.items()})


def _numbers(places: Sequence[int | None]) -> str:
    return " ".join(str(at) for at in dict.fromkeys(places) if at is not None)


def _area(region: Region) -> float:
    if not region.box:
        return float("inf") if region.mask else 0.0
    return (region.box[2] - region.box[0]) * (region.box[3] - region.box[1])


def _legend(map: Map) -> list[dict[str, Any]]:
    names = paint.entries(map)[:ROWS]
    return [{"colour": at % len(paint.COLOURS), "name": name or f"segment {id}", "id": id} for at, (id, name) in enumerate(names)]
