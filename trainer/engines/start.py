"""Which engine a recipe has, the process group around it, and the engine built."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from schemas import RequestError
from trainer.engines import launch, precision
from trainer.engines.ddp import Ddp
from trainer.engines.engine import Engine
from trainer.engines.single import Single
from trainer.model import Model, device
from trainer.recipe import Recipe


def launched() -> tuple[int, int]:
    """Rank and ranks as the launcher states them: 0 and 1 where there is none."""
    return launch.place()[:2]


def kind(recipe: Recipe) -> str:
    """`auto`: deepspeed where its configuration is given, ddp under a launcher, else single."""
    if recipe.engine.kind != "auto":
        return recipe.engine.kind
    if recipe.engine.deepspeed is not None:
        return "deepspeed"
    return "ddp" if launch.launched() else "single"


@contextlib.contextmanager
def started(recipe: Recipe) -> Iterator[Recipe]:
    """The process group, if the recipe wants one, while it is needed; the recipe with this rank's own device.

    Raises RequestError where several ranks run an engine for one, the device is not there, or the ranks do not find each other.
    """
    chosen, place = kind(recipe), launch.place()
    if chosen == "single" and place.ranks > 1:
        raise RequestError(f"engine.kind: expected auto, ddp, fsdp or deepspeed for {place.ranks} ranks, found single")
    if chosen == "single":
        yield recipe
        return
    if not launch.launched():
        raise RequestError(f"engine.kind {chosen}: expected to be started by torchrun, deepspeed or srun, found no RANK in the environment")
    if recipe.device == "cuda" and torch.cuda.is_available():
        os.environ["LOCAL_RANK"] = str(place.local % torch.cuda.device_count())  # srun may show each rank a GPU of its own
        recipe = dataclasses.replace(recipe, device=f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(recipe.device)
    device(recipe.device)  # before ranks wait for each other
    recipe = dataclasses.replace(recipe, engine=dataclasses.replace(recipe.engine, kind=chosen))
    backend = "cpu:gloo,cuda:nccl" if "cuda" in recipe.device else "gloo"
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=recipe.engine.timeout))
    except (RuntimeError, ValueError) as error:
        raise RequestError(
            f"engine: expected {place.ranks} ranks that find each other, found {' '.join(str(error).split())[:200]}"
        ) from error
    yield recipe
    dist.destroy_process_group()  # not after an error: it would wait for ranks that have gone


def build(model: Model, recipe: Recipe) -> Engine:
    """The recipe's engine around the model, for the processes that are there. Raises RequestError."""
    precision.prepare(model, recipe)
    chosen = kind(recipe)
    if chosen == "deepspeed":
        from trainer.engines.deepspeed import Deepspeed

        return Deepspeed(model, recipe)
    if chosen == "fsdp":
        from trainer.engines.fsdp import Fsdp

        return Fsdp(model, recipe)
    return Ddp(model, recipe) if dist.is_initialized() else Single(model, recipe)
