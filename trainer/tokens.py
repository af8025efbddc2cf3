"""What the model will see, and what it is trained on. Needs the tokenizer and the shards, and no weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from schemas import RecordError
from trainer import render, sources, tokenizer
from trainer.recipe import Recipe
from trainer.rendered import IGNORE, Rendered

OPEN, CLOSE = "⟦", "⟧"  # around trained text


class Seen(NamedTuple):
    """A record under a recipe: its tokens, or why it has none."""

    source: str
    key: str
    rendered: Rendered | None
    problem: str | None


def seen(recipe: Recipe, records: int | None = None) -> Iterator[Seen]:
    """The first `records` records of each source (None: all), their turns as stored. Raises RequestError and ShardError."""
    words = tokenizer.load(recipe.tokenizer)
    opened = sources.open_sources(recipe)
    for source in recipe.sources:
        show = render.renderer(recipe, words, source)
        for sample in sources.first(opened[source.name], records):
            yield _seen(source.name, sample, show)


def _seen(source: str, sample: sources.Sample, show: render.Renderer) -> Seen:
    record = sample.record
    try:
        return Seen(source, record.key, show(record, record.turns), None)
    except RecordError as error:
        return Seen(source, record.key, None, str(error))


def as_json(source: str, key: str, rendered: Rendered) -> dict[str, Any]:
    """One line of `trainer tokens --json`. `images`: for each picture in input_ids (-200; Flamingo's <image>), its index in the record."""
    return {
        "source": source,
        "key": key,
        "input_ids": rendered.ids,
        "labels": rendered.labels,
        "images": rendered.images,
        "text": rendered.text,
    }


def readable(source: str, key: str, rendered: Rendered) -> str:
    """A heading and the text, with ⟦ ⟧ around what is trained on."""
    trained = sum(label != IGNORE for label in rendered.labels)
    heading = f"{source} {key}: {len(rendered.ids)} tokens, {trained} trained, {len(rendered.images)} pictures"
    return f"{heading}\n{marked(rendered)}\n"


def marked(rendered: Rendered) -> str:
    """The text as far as its tokens go, trained stretches between ⟦ and ⟧."""
    out, at, inside = "", 0, False
    for label, (start, end) in zip(rendered.labels, rendered.spans, strict=True):
        if (label != IGNORE) != inside and end > start:
            out += rendered.text[at:start] + (CLOSE if inside else OPEN)
            at, inside = start, not inside
    end = max((end for _, end in rendered.spans), default=0)
    return out + rendered.text[at:end] + (CLOSE if inside else "") + (" [cut here]" if end < len(rendered.text) else "")
