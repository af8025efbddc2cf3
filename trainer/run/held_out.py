"""Held-out loss: of each source the mean over the supervised tokens of its first records, every record once, turns as stored.

The recipe's [held_out] names sources that are measured while the run trains; `python -m trainer evaluate` measures any. Each rank takes
every ranks-th batch, and all make the same number of forward calls, with a row of nothing where a rank has no batch left: under an engine
whose ranks meet in a forward none waits for another. Nothing is drawn, so that measuring changes no step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tqdm import tqdm

import shards
from schemas import RecordError, RequestError, ShardError
from shards import Shards
from shards.budget import Budget
from trainer.data import batch as batches
from trainer.data.batch import Batch, Example, collate
from trainer.data.examples import Fit, example
from trainer.data.pixels import Preprocess
from trainer.recipe import Recipe, Source
from trainer.text import render
from trainer.text.render import Renderer
from trainer.text.rendered import LeftOut
from trainer.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The records of a source that are measured, and how they are shown."""

    name: str
    data: Shards
    records: int  # the first so many
    show: Renderer


class Measured(NamedTuple):
    """Of one source, over all ranks."""

    loss: float | None  # None where there is nothing to train on
    tokens: int  # supervised
    records: int  # measured
    left_out: int  # by the source's own rules
    bad: int  # damaged, or without a place in the template


def _alone(numbers: Sequence[float]) -> list[list[float]]:
    return [list(numbers)]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Measures sources with a model as it stands, on one rank or several."""

    recipe: Recipe
    preprocess: Preprocess
    fit: Fit
    evaluate: Callable[[Batch], torch.Tensor]  # of trainer.engines.engine.Engine: each row's sum of token losses, (B,)
    gather: Callable[[Sequence[float]], list[list[float]]] = _alone  # of Engine too: every rank's numbers
    rank: int = 0
    ranks: int = 1

    def __call__(self, source: HeldOut) -> Measured:
        """Called by all ranks. Raises BudgetError where more records are bad than the recipe allows."""
        size, allowed = self.recipe.held_out.batch_size, self.recipe.bad_records
        parts = [range(at, min(at + size, source.records)) for at in range(0, source.records, size)]
        rounds = -(-len(parts) // self.ranks)
        mine = [*parts[self.rank :: self.ranks], range(0)][:rounds]
        reader = _Reader(source, self.preprocess, self.fit, Budget(allowed.rate, allowed.run, where=source.name))
        with ThreadPoolExecutor(max(1, self.recipe.loader.workers)) as pool:
            for part in tqdm(mine, desc=f"held out {source.name}", unit="batch", leave=False, disable=None if self.rank == 0 else True):
                self._add(reader.counts, reader.examples(part, pool))
        told = self.gather([reader.counts[key] for key in Measured._fields])
        loss, tokens, records, left_out, bad = (sum(column) for column in zip(*told, strict=True))
        return Measured(loss / tokens if tokens else None, int(tokens), int(records), int(left_out), int(bad))

    def _add(self, counts: Counter[str], shown: Sequence[Example]) -> None:
        made = collate(shown) if shown else batches.blank().batch
        sums_B = self.evaluate(made)
        if shown:
            counts["loss"] += float(sums_B.double().sum())  # type: ignore[assignment]
            counts["tokens"] += int(made.counts_B.sum())


class _Reader:
    """Makes examples of records, and counts those that are none."""

    def __init__(self, source: HeldOut, preprocess: Preprocess, fit: Fit, budget: Budget) -> None:
        self.source, self.preprocess, self.fit, self.budget = source, preprocess, fit, budget
        self.counts: Counter[str] = Counter()  # under Measured's names

    def examples(self, part: range, pool: Executor) -> list[Example]:
        """Those of these records, in order."""
        made = []
        for number, found in zip(part, pool.map(self._one, part), strict=True):
            if isinstance(found, Example):
                made.append(found)
                self.budget.good()
            elif isinstance(found, LeftOut):
                self.counts["left_out"] += 1
            else:
                self.counts["bad"] += 1
                self.budget.bad(found, None if isinstance(found, ShardError) else f"record {number}")
        self.counts["records"] += len(made)
        return made

    def _one(self, number: int) -> Example | RecordError | ShardError:
        try:
            return example(self.source.data[number], self.source.show, self.preprocess, fit=self.fit)
        except (RecordError, ShardError) as error:
            return error


def opened(recipe: Recipe, sources: Sequence[Source], tokenizer: Tokenizer, records: int) -> list[HeldOut]:
    """These sources' first `records` records (0: all of them). Raises RequestError where one has no place or no records."""
    return [_opened(recipe, source, tokenizer, records) for source in sources]


def _opened(recipe: Recipe, source: Source, tokenizer: Tokenizer, records: int) -> HeldOut:
    where = f"held_out.sources.{source.name}"
    if source.shards is None or source.kind != "shards":
        told = "none" if source.shards is None else f"kind {source.kind}, which does not say how many records there are"
        raise RequestError(f"{where}.shards: expected the place of indexed shards, found {told}; give --source {source.name}=PLACE")
    data = shards.open(source.shards)
    if not len(data):
        raise RequestError(f"{where}: expected records in {source.shards}, found none")
    count = min(records or len(data), len(data))
    return HeldOut(name=source.name, data=data, records=count, show=render.renderer(recipe, tokenizer, source))
