"""Everything a recipe stands for, put together once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from trainer import model
from trainer.data import examples, sources
from trainer.data.examples import Examples
from trainer.data.mixture import Mixture
from trainer.data.pixels import Preprocess
from trainer.data.sources import Data
from trainer.engines.engine import Engine
from trainer.model import Model
from trainer.parts import tower
from trainer.recipe import Recipe
from trainer.run import held_out
from trainer.run.held_out import HeldOut, Measure
from trainer.text import tokenizer
from trainer.text.rendered import IMAGE, Rendered
from trainer.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """The parts of a run."""

    recipe: Recipe
    tokenizer: Tokenizer
    data: dict[str, Data]  # by source
    mixture: Mixture
    examples: Examples
    model: Model
    held_out: tuple[HeldOut, ...] = ()

    def measured(self, engine: Engine, done: int) -> dict[str, dict[str, float | None]]:
        """What the log says of held-out sources behind `done` steps; nothing where the recipe does not ask. Called by all ranks."""
        every = self.recipe.held_out.every
        if not self.held_out or not every or (done % every and done != self.recipe.steps):
            return {}
        measure = Measure(
            recipe=self.recipe,
            preprocess=self.examples.preprocess,
            fit=self.model.fit,
            evaluate=engine.evaluate,
            gather=engine.gather,
            rank=engine.rank,
            ranks=engine.ranks,
        )
        return {"held_out": {source.name: measure(source).loss for source in self.held_out}}


def assemble(recipe: Recipe, rank: int = 0, ranks: int = 1) -> Assembly:
    """The parts of this recipe, the cheap ones first: a wrong place is told before weights are read. Raises RequestError."""
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    words = tokenizer.load(recipe.tokenizer)
    data = sources.open_sources(recipe, rank, ranks)
    mixture = sources.mixture(recipe, data)
    measured = held_out.opened(recipe, recipe.held_out.sources, words, recipe.held_out.records)
    pictures = preprocess(recipe)
    built = model.build(recipe, words.size, words.specials)
    built.fit(Rendered(ids=[IMAGE], labels=[0], spans=[(0, 0)], images=[0]))  # measures what a picture takes before an engine has the model
    return Assembly(
        recipe=recipe,
        tokenizer=words,
        data=data,
        mixture=mixture,
        examples=examples.of_recipe(recipe, words, pictures, built.fit),
        model=built,
        held_out=tuple(measured),
    )


def preprocess(recipe: Recipe) -> Preprocess:
    """The tower's own, with scaled decoding where the recipe allows it. Raises RequestError."""
    return dataclasses.replace(tower.preprocess(recipe), dct_scaling=recipe.loader.dct_scaling and recipe.compat == "none")
