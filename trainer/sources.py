"""The data of a recipe's sources."""

from __future__ import annotations

import shards
from schemas import RequestError
from trainer.recipe import Recipe


def open_sources(recipe: Recipe) -> dict[str, shards.Shards]:
    """The data of each source by name. Raises RequestError where there is none, or a source has no place or no records."""
    if not recipe.sources:
        raise RequestError("sources: expected at least one, found none; give --source NAME=PLACE")
    opened: dict[str, shards.Shards] = {}
    for source in recipe.sources:
        if source.shards is None:
            raise RequestError(f"sources.{source.name}.shards: expected a place, found none; give --source {source.name}=PLACE")
        opened[source.name] = shards.open(source.shards)
        if not len(opened[source.name]):
            raise RequestError(f"sources.{source.name}: expected records in {source.shards}, found none")
    return opened
