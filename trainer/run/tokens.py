"""What the model will see, and what it is trained on. Needs the tokenizer and the shards, and no weights."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from schemas import RecordError, RequestError, ShardError
from shards import Shards
from trainer.data import sources
from trainer.data.sources import Data, Sample
from trainer.recipe import Recipe, Source
from trainer.text import render, tokenizer
from trainer.text.rendered import IGNORE, Rendered
from trainer.text.tokenizer import Tokenizer

OPEN, CLOSE = "⟦", "⟧"  # around trained text
LOOKED = 100  # records of a source that are looked at before it is said that there is nothing to train on


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


def check(recipe: Recipe) -> None:
    """Raises RequestError where none of a source's first records has a token to train on: it names the first, and why it has none."""
    words = tokenizer.load(recipe.tokenizer)
    ranged = dataclasses.replace(recipe.loader, cache=None)  # a few records are no reason to fetch whole shards
    opened = sources.open_sources(dataclasses.replace(recipe, loader=ranged))
    for source, data in zip(recipe.sources, opened.values(), strict=True):
        if told := _untrained(source, data, recipe, words):
            raise RequestError(f"sources.{source.name}: expected records with something to train on, found none in its first {told}")


def _untrained(source: Source, data: Data, recipe: Recipe, words: Tokenizer) -> str | None:
    """How many records were looked at, the first of them, and its problem; None as soon as one can be trained on."""
    show = render.renderer(recipe, words, source)
    first: str | None = None
    count = 0
    for sample in _samples(data):
        seen = _seen(source.name, sample, show)
        if seen.rendered is not None and any(label != IGNORE for label in seen.rendered.labels):
            return None
        count += 1
        first = first or f"{seen.key}: {seen.problem or 'nothing that its turns say is trained on'}"
    return f"{count}: {first}" if first else None  # else all are damaged: the run's budget says so


def _samples(data: Data) -> Iterator[Sample]:
    """The first, whole ones; of shards one by one, so that no more is read than is looked at."""
    if not isinstance(data, Shards):
        yield from itertools.islice(sources.first(data, LOOKED), LOOKED)
        return
    for number in range(min(len(data), LOOKED)):
        try:
            yield data[number]
        except ShardError:
            continue  # told when it is drawn


def _seen(source: str, sample: Sample, show: render.Renderer) -> Seen:
    record = sample.record
    try:
        return Seen(source, record.key, show(record, record.turns), None)
    except RecordError as error:
        return Seen(source, record.key, None, str(error))


def as_json(source: str, key: str, rendered: Rendered) -> dict[str, Any]:
    """One line of `trainer tokens --json`.

    images: for each picture in input_ids (-200; Flamingo's <image>), its index in the record. spans: where each token stands in `text`.
    """
    return {
        "source": source,
        "key": key,
        "input_ids": rendered.ids,
        "labels": rendered.labels,
        "images": rendered.images,
        "text": rendered.text,
        "spans": rendered.spans,
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
