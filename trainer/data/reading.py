"""What a rank of a run reads: the loader of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from trainer.data import batch, sources
from trainer.data.batch import MicroBatch
from trainer.data.examples import Examples
from trainer.data.loader import Feed, Loader
from trainer.data.mixture import Mixture, Position
from trainer.data.sources import Data
from trainer.data.webdataset_source import WebdatasetSource
from trainer.recipe import Recipe


def feed(recipe: Recipe, data: Mapping[str, Data], mixture: Mixture, make: Examples) -> Feed[Any, list[MicroBatch]]:
    """What is read, and made of it: a rank's micro-batches of a step."""
    finish, budgets = partial(batch.micro_batches, recipe=recipe), sources.budgets(recipe, data)
    return Feed(mixture=mixture, data=data, make=make, finish=finish, budgets=budgets)


def loader(fed: Feed[Any, list[MicroBatch]], recipe: Recipe, position: Position, rank: int, ranks: int) -> Loader[list[MicroBatch]]:
    """From there to the recipe's last step, read by threads of this process."""
    for name, data in fed.data.items():
        if isinstance(data, WebdatasetSource):
            data.resume(position.draws[name])
    chosen = recipe.loader
    return Loader(
        fed,
        position,
        stop=recipe.steps,
        rank=rank,
        ranks=ranks,
        workers=chosen.workers,
        prefetch=chosen.prefetch,
        timeout=chosen.timeout,
    )
