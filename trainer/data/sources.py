"""The data of a recipe's sources, and the mixture of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

import shards
from schemas import Record, RequestError, ShardError
from shards import Shards, splitmix
from shards.budget import Budget
from shards.cache import Cache
from shards.order import Order
from trainer.data.mixture import Mixture, MixtureSource
from trainer.data.webdataset_source import WebdatasetSource
from trainer.recipe import Recipe, Source

Buffer = bytes | memoryview
Data = Shards | WebdatasetSource


class Sample(Protocol):
    """What a drawn sample has, whether of a place or of tars made elsewhere."""

    @property
    def key(self) -> str: ...

    @property
    def record(self) -> Record: ...

    def image(self, position: int) -> Buffer: ...


WITHOUT_END = Order([1], 0)  # of tars whose records are not counted: they come in an order of their own


def open_sources(recipe: Recipe, rank: int = 0, ranks: int = 1) -> dict[str, Data]:
    """The data of each source by name. Raises RequestError where there is none, or a source has no place or no records."""
    if not recipe.sources:
        raise RequestError("sources: expected at least one, found none; give --source NAME=PLACE")
    cache = Cache(Path(recipe.loader.cache), recipe.loader.cache_bytes) if recipe.loader.cache else None
    return {source.name: _opened(source, recipe.seed, cache, rank, ranks) for source in recipe.sources}


def _opened(source: Source, seed: int, cache: Cache | None, rank: int, ranks: int) -> Data:
    if source.shards is None:
        raise RequestError(f"sources.{source.name}.shards: expected a place, found none; give --source {source.name}=PLACE")
    if source.kind == "webdataset":
        return WebdatasetSource(source.name, source.shards, seed=seed, part=rank, parts=ranks, layout=source.layout)
    data = shards.open(source.shards, cache=cache)
    if not len(data):
        raise RequestError(f"sources.{source.name}: expected records in {source.shards}, found none")
    return data


def mixture(recipe: Recipe, data: Mapping[str, Data]) -> Mixture:
    """How the recipe draws from its data. Raises RequestError, naming the source, for what can not be drawn."""
    chosen = recipe.mixture
    sources = [_source(source, recipe, data[source.name]) for source in recipe.sources]
    return Mixture(sources, chosen.draw, recipe.seed, groups=chosen.groups, group_steps=chosen.group_steps)


def _source(source: Source, recipe: Recipe, data: Data) -> MixtureSource:
    order = WITHOUT_END
    if isinstance(data, Shards):
        counts = [len(shard) for shard in data.shards]
        order = Order(counts, splitmix.key(recipe.seed, source.name), window=source.window, resampled=source.resampled)
    grouped = recipe.mixture.draw == "mixed" and recipe.mixture.group_steps > 1
    return MixtureSource(
        name=source.name,
        order=order,
        batch_size=source.batch_size if recipe.mixture.draw == "every" else recipe.mixture.batch_size or source.batch_size,
        weight=source.weight,
        group=source.group,
        epoch_samples=source.epoch_samples,
        lengths=partial(_lengths, data, order) if grouped and isinstance(data, Shards) else None,
        fingerprint=data.manifest.fingerprint if isinstance(data, Shards) else f"tars {source.shards}",
    )


def _lengths(data: Shards, order: Order, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of these draws has a picture, and how long its text is in code points: by the indexes alone."""
    shard, row = order.at(draws)
    pictured, length = np.zeros(len(draws), bool), np.zeros(len(draws), np.int64)
    for number in np.unique(shard).tolist():
        mine = shard == number
        try:
            index = data.shards[number].index
        except ShardError:
            continue  # told when its records are read
        pictured[mine] = np.diff(np.asarray(index.first_image, np.int64))[row[mine]] > 0
        length[mine] = np.asarray(index.table["text_length"])[row[mine]]
    return pictured, length


def budgets(recipe: Recipe, data: Mapping[str, Data]) -> dict[str, Budget]:
    """One of each source: its own bad records count."""
    allowed = recipe.bad_records
    sizes = {name: one.sizes for name, one in data.items() if isinstance(one, Shards)}
    return {name: Budget(allowed.rate, allowed.run, where=name, shards=sizes.get(name)) for name in data}


def first(data: Data, count: int | None) -> Iterator[Sample]:
    """The first `count` samples in written order (None: all). Of tars made elsewhere: the first that come, damaged ones left out."""
    if isinstance(data, Shards):
        return itertools.islice(data, count)
    found = (item for _ in itertools.count() for item in data.fetch([0]))
    return (item for item in itertools.islice(found, count) if not isinstance(item, Exception))
