"""Everything a recipe stands for, put together once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from trainer import examples, held_out, model, sources, tokenizer, tower
from trainer.examples import Examples
from trainer.held_out import HeldOut
from trainer.mixture import Mixture
from trainer.model import Model
from trainer.pixels import Preprocess
from trainer.recipe import Recipe
from trainer.rendered import IMAGE, Rendered
from trainer.sources import Data
from trainer.tokenizer import Tokenizer


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
