"""From draws to examples: records read, rendered, their pictures preprocessed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import shards
from schemas import RecordError, ShardError, Turn
from trainer import draws
from trainer.batch import Example
from trainer.pixels import Preprocess
from trainer.recipe import Recipe, Source
from trainer.render import Renderer

log = logging.getLogger(__name__)


def example(sample: shards.Sample, render: Renderer, preprocess: Preprocess, turns: Sequence[Turn] | None = None) -> Example:
    """The sample as the model sees it; `turns` are the record's own where none are given.

    Raises RecordError where the template has no place for the record or a picture does not decode.
    """
    record = sample.record
    rendered = render(record, record.turns if turns is None else turns)
    pixels = {index: preprocess.pixels(sample.image(index)) for index in set(rendered.images)}
    return Example(rendered=rendered, pixels=[pixels[index] for index in rendered.images])


@dataclass(kw_only=True)
class Feed:
    """Serves a step's examples. A bad record leaves a hole, is logged and counted; over the budget it ends the run."""

    recipe: Recipe
    data: dict[str, shards.Shards]
    render: Renderer
    preprocess: Preprocess
    bad: dict[str, int] = field(default_factory=dict)  # records skipped, by source

    def examples(self, source: Source, step: int) -> list[Example]:
        """The source's records in this step: draws step * batch_size and on. Raises ShardError over the budget."""
        first = step * source.batch_size
        drawn = (self._example(source, draw) for draw in range(first, first + source.batch_size))
        return [example for example in drawn if example is not None]

    def _example(self, source: Source, draw: int) -> Example | None:
        data = self.data[source.name]
        index = draws.record_at(self.recipe.seed, source.name, draw, len(data))
        key = None
        try:
            sample = data[index]
            key = sample.record.key
            turns = draws.turns_at(self.recipe.seed, source.name, draw, sample.record)
            return example(sample, self.render, self.preprocess, turns)
        except (RecordError, ShardError) as error:
            self._skip(source, key or f"record {index}", error)
            return None

    def _skip(self, source: Source, key: str, error: Exception) -> None:
        self.bad[source.name] = self.bad.get(source.name, 0) + 1
        log.warning("%s %s: skipped: %s", source.name, key, error)
        if sum(self.bad.values()) > self.recipe.max_bad_records:
            expected, found = f"at most {self.recipe.max_bad_records} bad records", self.bad
            raise BudgetError(f"{source.shards}", key, "bad records", expected, found)


class BudgetError(ShardError):
    """More records were bad than the recipe allows."""
