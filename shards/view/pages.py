"""The pages, as HTML. Every template escapes; what is drawn comes from the record, and is checked before it is."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

import jinja2

from schemas import Record, RecordError, ShardError, validate
from shards import manifest
from shards.manifest import RejectRow
from shards.view import filter as filters
from shards.view import plots
from shards.view.desk import Desk
from shards.view.filter import Filter
from shards.view.ledger import ROWS, Ledger
from shards.view.mixture import Mixture
from shards.view.numbers import Conversion, Numbers, conversion
from shards.view.page import Page, Tile, tile
from shards.view.plots import Plot
from shards.view.runs import Run
from shards.view.tokens import Tokens
from shards.view.upstream import Upstream

HERE = Path(__file__).parent
TILES = 12  # records on a page
SECONDS = 0.7  # that a request may look through indexes
SIDE_BY_SIDE = 12  # records that are asked of object storage at a time


class Links(Protocol):
    """Where a template finds records and pictures: on the server, or in the page itself."""

    def record(self, number: int) -> str | None:
        """A record's page, None where there is none."""
        ...

    def picture(self, number: int, image: int) -> str:
        """A record's image."""
        ...

    def thumb(self, number: int) -> str:
        """Its first image, small."""
        ...

    def mask(self, number: int, region: int) -> str:
        """A region's mask, coloured."""
        ...

    def map(self, number: int, at: int) -> str:
        """A label map, coloured."""
        ...


class Served:
    """Links to the server that shows the page."""

    def record(self, number: int) -> str | None:
        """See Links."""
        return f"/record/{number}"

    def picture(self, number: int, image: int) -> str:
        """See Links."""
        return f"/picture/{number}/{image}"

    def thumb(self, number: int) -> str:
        """See Links."""
        return f"/thumb/{number}"

    def mask(self, number: int, region: int) -> str:
        """See Links."""
        return f"/mask/{number}/{region}"

    def map(self, number: int, at: int) -> str:
        """See Links."""
        return f"/map/{number}/{at}"


@dataclass
class View:
    """What is looked at: a data set, and, where they are given, a run, what a recipe makes of it, and the upstream files."""

    desk: Desk
    run: Run | None = None
    tokens: Tokens | None = None
    mixture: Mixture | None = None
    upstream: Upstream | None = None
    ledger: Ledger = field(init=False)
    numbers: Numbers = field(init=False)

    def __post_init__(self) -> None:
        self.ledger, self.numbers = Ledger(self.desk.data), Numbers(self.desk)

    @cached_property
    def conversion(self) -> Conversion:
        """What became of the input."""
        return conversion(self.desk, self.ledger, manifest.families(self.desk.data.place))

    @property
    def token_plots(self) -> list[Plot]:
        """Lengths under the recipe."""
        found = {"Tokens": self.tokens.lengths, "Tokens trained on": self.tokens.trained} if self.tokens else {}
        return [plots.histogram(title, values.bins(), "tokens") for title, values in found.items() if len(values)]

    def record(self, number: int) -> Record:
        """The record, found to be sound. Raises ShardError, RecordError, StoreError, IndexError."""
        record = self.desk.sample(number).record
        validate(record)
        return record

    def tiles(self, numbers: list[int]) -> list[tuple[Tile | int, str | None]]:
        """A tile a record, or its number and what is wrong with it. From object storage side by side: each is a request."""
        if self.desk.data.place.folder is not None:
            return [self._tile(number) for number in numbers]
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            return list(pool.map(self._tile, numbers))

    def last(self) -> dict[str, list[Tile]]:
        """Tiles of the records that the run drew last, by source."""
        drawn = self.run.last(self.desk) if self.run else {}
        return {name: [one for one, _ in self.tiles(numbers) if isinstance(one, Tile)] for name, numbers in drawn.items()}

    def _tile(self, number: int) -> tuple[Tile | int, str | None]:
        try:
            return tile(number, self.desk.sample(number).record), None
        except ShardError as error:
            return number, str(error)


class Pages:
    """Renders them."""

    def __init__(self, view: View) -> None:
        self.view, self.links = view, Served()

    def browse(self, wanted: Filter, at: int, backwards: bool) -> str:
        """Records from a number on, or up to it."""
        desk = self.view.desk
        found = desk.find(wanted, at, most=TILES, seconds=SECONDS, step=-1 if backwards else 1)
        numbers = found.numbers[::-1] if backwards else found.numbers
        if backwards:
            before, after = found.resume, (at + 1 if at + 1 < len(desk) else None)
        else:
            before, after = (at - 1 if at > 0 else None), found.resume
        return self._page(
            "browse.html",
            "Records",
            tiles=self.view.tiles(numbers),
            filter=wanted,
            before=before,
            after=after,
            resume=found.resume,
            page_size=TILES,
            **self._searched(),
        )

    def record(self, number: int, wanted: Filter) -> str:
        """One record. Raises IndexError."""
        desk, tokens = self.view.desk, self.view.tokens
        shard, row = desk.where(number)
        page, problem = None, None
        try:
            page = Page(number, self.view.record(number))
        except (ShardError, RecordError) as error:
            problem = str(error)
        key = page.record.key if page else desk.key(shard, row)
        return self._page(
            "record.html",
            "",
            page=page,
            problem=problem,
            key=key,
            number=number,
            filter=wanted,
            seen=tokens.seen(key) if tokens else None,
            recipe=tokens.name if tokens else None,
            recipe_records=len(tokens) if tokens else 0,
            **self._searched(),
        )

    def numbers(self) -> str:
        """The numbers, as far as they are counted."""
        self.view.numbers.advance(SECONDS)
        return self._page("numbers.html", "Numbers", **numbered(self.view))

    def rejects(self, reason: str | None, skip: int) -> str:
        """A few rejects of each reason, or one reason's."""
        ledger = self.view.ledger
        listed = ledger.rows(reason, skip) if reason in ledger.reasons else None
        samples = {reason: listed.rows} if listed else ledger.samples()
        upstream = self.view.upstream
        whole = upstream is None or upstream.look((row for rows in samples.values() for _, row in rows), SECONDS)
        totals = self.view.desk.data.manifest.totals
        return self._page(
            "rejects.html",
            "Rejects",
            reasons=ledger.reasons,
            reason=reason if listed else None,
            samples=samples,
            more=listed.more if listed else False,
            skip=skip + ROWS,
            whole=whole,
            again="/rejects?" + urlencode({"reason": reason, "skip": skip} if listed else {}),
            total=totals["rejected"],
            read=totals["read"],
            pictures=self._came_from if upstream else None,
        )

    def run(self) -> str:
        """The run, as far as its log is read. Raises LookupError where no run was given."""
        run = self.view.run
        if run is None:
            raise LookupError("no run: give --run FOLDER")
        whole = run.advance()
        return self._page("run.html", "Run", run=run, whole=whole, last=self.view.last())

    def message(self, title: str, text: str, status: int = 200, go_on: str | None = None) -> str:
        """A page that says one thing."""
        return self._page("message.html", "", title=title, text=text, status=status, go_on=go_on)

    def somewhere(self) -> int:
        """A record's number, drawn."""
        return random.randrange(max(1, len(self.view.desk)))

    def _came_from(self, number: int, row: RejectRow) -> tuple[str | None, str | None]:
        """Where the picture of a reject is to be had, and the row of upstream's file."""
        upstream = self.view.upstream
        if upstream is None or not upstream.looked(row):
            return None, "not looked up yet"
        stood = upstream.stood(row)
        return (f"/reject/{number}" if upstream.picture(row) else None), stood.text if stood else None

    def _searched(self) -> dict[str, Any]:
        sources = sorted({self.view.desk.data.manifest.source, *self.view.numbers.tallies})
        return {"bounded": filters.BOUNDED, "sources": sources}

    def _page(self, template: str, here: str, **values: Any) -> str:
        found = {"Records": "/", "Numbers": "/numbers", "Rejects": "/rejects"} | ({"Run": "/run"} if self.view.run else {})
        common = {"pages": found.items(), "here": here, "links": self.links, **placed(self.view)}
        return templates().get_template(template).render(**{**common, **values})


def placed(view: View) -> dict[str, Any]:
    """What every page says of the data set."""
    data = view.desk.data
    return {"place": data.place.url, "total": len(data), "shards": len(data.shards)}


def numbered(view: View) -> dict[str, Any]:
    """What numbers.part.html takes."""
    shown = {"numbers": view.numbers, "conversion": view.conversion}
    return {**shown, "mixture": view.mixture, "tokens": view.tokens, "token_plots": view.token_plots}


@cache
def templates() -> jinja2.Environment:
    """The templates. Everything is escaped, and a name that is not given is an error."""
    loader = jinja2.FileSystemLoader(HERE / "templates")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals |= {"amount": plots.amount, "plots": plots}
    return made
