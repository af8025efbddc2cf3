"""Torch datasets for whoever has a training loop of his own: records, or rendered and collated batches; of one place or a mixture.

    dataset = BatchDataset(recipe.load("mine.toml"))
    for step in DataLoader(dataset, batch_size=None, num_workers=2):
        for batch, sources in step.parts: ...
    dataset.load_state_dict(step.state)        # the step after this one comes next

The order is that of `trainer train`, whatever the number of DataLoader workers: worker w of n makes every n-th step. Iterating again begins
where it began the first time. Each item carries the `state` behind it, because with workers the dataset itself does not know how far its
readers are; saved with a checkpoint, the last item's is where a later run goes on, at any number of workers, and between two steps at any
number of ranks.

Ranks get different records by themselves. So the DataLoader gets no sampler, and Accelerate and Lightning are told to leave it as it is:
README.md shows how.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from schemas import RequestError
from trainer import assembly
from trainer import recipe as recipes
from trainer.data import batch, examples, sources
from trainer.data.batch import MicroBatch
from trainer.data.examples import Fit
from trainer.data.loader import Feed, Loader, Step
from trainer.data.mixture import Position
from trainer.data.pixels import Preprocess
from trainer.data.sources import Sample
from trainer.engines import start
from trainer.recipe import Recipe, Source
from trainer.text import tokenizer

State = dict[str, Any]  # of whole numbers, texts and tables of them: JSON
Make = Callable[[str, int, Sample], Any]  # of a source's name, the draw's number, and the sample; called by several threads


@dataclass(frozen=True)
class StepBatches:
    """What a rank gets of a step: micro-batches of one source each under `every`, of all sources under `one` and `mixed`."""

    step: int
    parts: list[MicroBatch]
    state: State  # behind this step

    def to(self, device: torch.device | str) -> StepBatches:
        """On this device. Lightning and Accelerate call it."""
        return dataclasses.replace(self, parts=[MicroBatch(part.batch.to(device), part.sources) for part in self.parts])

    def pin_memory(self) -> StepBatches:
        """For faster copies to a GPU. DataLoader calls it."""
        return dataclasses.replace(self, parts=[MicroBatch(part.batch.pin_memory(), part.sources) for part in self.parts])


class _Stepwise(IterableDataset):
    """Steps of a mixture, this rank's part, those of this DataLoader worker."""

    def __init__(self, recipe: Recipe, rank: int | None, ranks: int | None, steps: int | None) -> None:
        self.recipe, self.steps = recipe, steps
        self.rank, self.ranks = _of_ranks(rank, ranks)
        self.data = sources.open_sources(recipe, self.rank, self.ranks)
        self.mixture = sources.mixture(recipe, self.data)
        self._begin = self._now = (self.mixture.start(), 0)  # where iterating begins, and where it is: position, records of the step given

    def state_dict(self) -> State:
        """Where the next item comes from. With DataLoader workers this never moves: save the last item's `state`."""
        return self._state(*self._now)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there. Raises RequestError where a source's data, or its order, is another; at another number of ranks inside a step."""
        position, _ = self.mixture.resumed(state)
        given = state.get("given", 0)
        if given and state.get("ranks") != self.ranks:
            raise RequestError(f"state: expected {state.get('ranks')} ranks to go on inside step {position.step}, found {self.ranks}")
        self._begin = self._now = (position, given)

    def _state(self, position: Position, given: int = 0) -> State:
        return self.mixture.state(position) | {"given": given, "ranks": self.ranks}

    def _loader(self, make: Make, finish: Callable[[dict[str, list[Any]]], Any]) -> Loader[Any]:
        """Threads read ahead in the process itself; a DataLoader worker is ahead already."""
        worker, chosen = get_worker_info(), self.recipe.loader
        feed = Feed(mixture=self.mixture, data=self.data, make=make, finish=finish, budgets=sources.budgets(self.recipe, self.data))
        return Loader(
            feed,
            self._begin[0],
            stop=self.steps,
            rank=self.rank,
            ranks=self.ranks,
            every=worker.num_workers if worker else 1,
            first=worker.id if worker else 0,
            workers=0 if worker else chosen.workers,
            prefetch=chosen.prefetch,
            timeout=chosen.timeout,
        )


class BatchDataset(_Stepwise):
    """StepBatches, rendered and collated as the recipe says: `recipe.steps` of them from the first, or from the state that was loaded.

    preprocess: of the pictures, in place of the recipe's tower's own. fit: cuts records to the model (trainer.model.Model.fit).
    rank, ranks: those of torch.distributed or of the launcher's environment where none are given. Raises RequestError.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        rank: int | None = None,
        ranks: int | None = None,
        preprocess: Preprocess | None = None,
        fit: Fit | None = None,
    ) -> None:
        super().__init__(recipe, rank, ranks, recipe.steps)
        self.preprocess, self.fit = preprocess or assembly.preprocess(recipe), fit
        tokenizer.load(recipe.tokenizer)  # a wrong folder is told here, and not by a worker

    def __len__(self) -> int:
        return self.recipe.steps - self._begin[0].step

    def __iter__(self) -> Iterator[StepBatches]:
        make = examples.of_recipe(self.recipe, tokenizer.load(self.recipe.tokenizer), self.preprocess, self.fit)
        with self._loader(make, partial(batch.micro_batches, recipe=self.recipe)) as loader:
            for step in loader:
                self._now = (step.position, 0)
                yield StepBatches(step.number, step.made, self._state(step.position))


class RecordDataset(_Stepwise):
    """Records of a place, or of a recipe's mixture, without end or for so many `epochs`; what `make` makes of each, and its state.

    An item is {"source", "key", "record", "images", "state"}: the record of format 1, its pictures' bytes as they were upstream; or, with
    `make`, {"value", "state"}. batch_size: records of a step over all ranks, what a DataLoader's batch_size times the ranks should be.
    Raises RequestError.
    """

    def __init__(
        self,
        data: str | Path | Recipe,
        *,
        batch_size: int = 16,
        seed: int = 0,
        epochs: float | None = None,
        make: Make | None = None,
        rank: int | None = None,
        ranks: int | None = None,
    ) -> None:
        recipe = data if isinstance(data, Recipe) else _of_place(str(data), batch_size, seed)
        super().__init__(recipe, rank, ranks, None)
        self.make = make
        self.steps = None if epochs is None else self.mixture.steps(epochs)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        before, given = self._begin
        with self._loader(self.make or _as_dict, _together) as loader:
            for step in loader:
                yield from self._items(step, before, given)
                before, given = step.position, 0

    def _items(self, step: Step[list[Any]], before: Position, given: int) -> Iterator[dict[str, Any]]:
        for number, value in enumerate(step.made[given:], given + 1):
            self._now = (before, number) if number < len(step.made) else (step.position, 0)
            item = value if self.make is None else {"value": value}
            yield item | {"state": self._state(*self._now)}


def _as_dict(source: str, draw: int, sample: Sample) -> dict[str, Any]:
    record = sample.record
    images = [bytes(sample.image(number)) for number in range(len(record.images))]
    return {"source": source, "key": sample.key, "record": record, "images": images}


def _together(made: dict[str, list[Any]]) -> list[Any]:
    return [value for values in made.values() for value in values]


def _of_place(place: str, batch_size: int, seed: int) -> Recipe:
    """A recipe of one source."""
    recipe = Recipe(seed=seed, sources=(Source(name="records", shards=place, batch_size=batch_size),))
    recipes.check(recipe, "RecordDataset")
    return recipe


def _of_ranks(rank: int | None, ranks: int | None) -> tuple[int, int]:
    """As given, as torch.distributed says, as the launcher says."""
    if (rank is None) != (ranks is None):
        raise RequestError(f"rank and ranks: expected both or neither, found {rank} and {ranks}")
    if rank is not None and ranks is not None:
        if not 0 <= rank < ranks:
            raise RequestError(f"rank: expected one from 0 to {ranks - 1}, found {rank}")
        return rank, ranks
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return start.launched()
