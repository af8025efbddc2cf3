"""The report: one file that holds everything it shows, and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from markupsafe import Markup

from schemas import RecordError, Reject, ShardError
from schemas.mask import MaskRefused
from shards import durable
from shards.manifest import RejectRow
from shards.view import paint
from shards.view.page import Page
from shards.view.pages import HERE, View, numbered, placed, templates
from shards.view.paint import Painted
from shards.view.upstream import Upstream

SIDE, SMALL = 640, 240  # pixels of an image's longest side, and of a tile's
NOTHING = "data:,"


class Embedded:
    """Links that are what they lead to. What can not be drawn is an empty picture."""

    def __init__(self, view: View, shown: Container[int]) -> None:
        self._view, self._shown = view, shown

    def record(self, number: int) -> str | None:
        """See Links."""
        return f"#record-{number}" if number in self._shown else None

    def picture(self, number: int, image: int) -> str:
        """See Links."""
        return self._image(number, image, SIDE)

    def thumb(self, number: int) -> str:
        """See Links."""
        return self._image(number, 0, SMALL)

    def mask(self, number: int, region: int) -> str:
        """See Links."""
        found = self._view.record(number).regions[region].mask
        return NOTHING if found is None else _data(lambda: paint.drawn_mask(found, region))

    def map(self, number: int, at: int) -> str:
        """See Links."""
        return _data(lambda: paint.drawn_map(self._view.desk.sample(number).map(at), self._view.record(number).maps[at]))

    def _image(self, number: int, image: int, side: int) -> str:
        return _data(lambda: paint.resized(self._view.desk.sample(number).image(image), side))


def export(view: View, out: Path, records: int, progress: Callable[[], object] = lambda: None) -> int:
    """Write the report: all numbers, the rejects, so many records evenly from all. Gives its bytes. Raises OSError, StoreError."""
    view.numbers.advance(float("inf"), progress)
    while view.run and not view.run.advance():
        pass
    samples = view.ledger.samples()
    if view.upstream:
        view.upstream.look(row for rows in samples.values() for _, row in rows)
    style, script = ((HERE / "static" / name).read_text("utf-8") for name in ("view.css", "view.js"))
    total = len(view.desk)
    count = min(records, total)
    shown = [total * at // count for at in range(count)]
    text = (
        templates()
        .get_template("report.html")
        .render(
            **placed(view),
            **numbered(view),
            pages={"Numbers": "#numbers", **({"Run": "#run"} if view.run else {}), "Rejects": "#rejects", "Records": "#records"}.items(),
            here="",
            source=view.desk.data.manifest.source,
            run=view.run,
            last=view.last(),
            samples=samples,
            reasons=view.ledger.reasons,
            pictures=_came_from(view.upstream) if view.upstream else None,
            pages_shown=[_shown(view, number) for number in shown],
            links=Embedded(view, set(shown)),
            style=Markup(style),  # noqa: S704  our own files
            script=Markup(script),  # noqa: S704
            policy=_policy(style, script),
        )
    )
    data = text.encode("utf-8", "replace")
    durable.write(out, data)
    return len(data)


def _shown(view: View, number: int) -> tuple[int, Page | None, str | None, Any]:
    """A record's number, its page, what is wrong with it, and its tokens."""
    try:
        page = Page(number, view.record(number))
    except (ShardError, RecordError) as error:
        return number, None, str(error), None
    return number, page, None, view.tokens.seen(page.record.key) if view.tokens else None


def _came_from(upstream: Upstream) -> Callable[[int, RejectRow], tuple[str | None, str | None]]:
    def found(_: int, row: RejectRow) -> tuple[str | None, str | None]:
        data, stood = upstream.picture(row), upstream.stood(row)
        image = _data(lambda: paint.resized(data, SIDE)) if data else NOTHING
        return (None if image == NOTHING else image), stood.text if stood else None

    return found


def _data(paint_it: Callable[[], Painted]) -> str:
    try:
        painted = paint_it()
    except (Reject, MaskRefused, ShardError, IndexError):
        return NOTHING
    return f"data:{painted.type};base64,{base64.b64encode(painted.data).decode()}"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _policy(style: str, script: str) -> str:
    """What a browser lets the report do: draw what is in it, with our own style and script."""
    own = f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    return f"default-src 'none'; img-src data:; {own}; base-uri 'none'; form-action 'none'"
