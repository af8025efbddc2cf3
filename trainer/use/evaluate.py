"""The held-out loss of a trained run, source by source."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from schemas import RequestError
from trainer.data.batch import Batch
from trainer.engines import precision
from trainer.recipe import Recipe, Source
from trainer.run import held_out
from trainer.run.held_out import Measure, Measured
from trainer.use.trained import Trained


def losses(run: Trained, places: Sequence[str] = (), records: int = 0) -> dict[str, Measured]:
    """By source: of the NAME=PLACE given, else of the recipe's held-out sources. `records`: the first so many of each; 0: all.

    A name that the recipe has is shown as the recipe shows it. Raises RequestError where there is nothing to measure.
    """

    @torch.inference_mode()
    def evaluate(batch: Batch) -> torch.Tensor:
        with precision.autocast(run.recipe):
            return run.model(batch.to(run.recipe.device)).sums_B

    measure = Measure(recipe=run.recipe, preprocess=run.preprocess, fit=run.model.fit, evaluate=evaluate)
    found = held_out.opened(run.recipe, sources(run.recipe, places), run.tokenizer, records)
    return {source.name: measure(source) for source in found}


def sources(recipe: Recipe, places: Sequence[str]) -> list[Source]:
    """What these NAME=PLACE mean under a recipe. Raises RequestError."""
    known = {source.name: source for source in (*recipe.sources, *recipe.held_out.sources)}
    chosen: dict[str, Source] = {} if places else {source.name: source for source in recipe.held_out.sources}
    for text in places:
        name, equals, place = text.partition("=")
        if not (name and equals and place):
            raise RequestError(f"--source: expected NAME=PLACE, found {text!r}")
        chosen[name] = dataclasses.replace(known.get(name, Source(name=name)), shards=place, kind="shards")
    if not chosen:
        raise RequestError("--source: expected NAME=PLACE, found none, and no held-out sources in the recipe")
    return list(chosen.values())
