"""The gradient of a step: as the loop makes it, and as plain torch does, a record at a time. Both in float64.

As a program, it forks two ranks of the loop: `python gradients.py RECIPE OUT` writes rank 0's gradient to OUT, a safetensors file.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from trainer import assembly, loop
from trainer import recipe as recipes
from trainer.assembly import Assembly
from trainer.data import batch
from trainer.engines import single, start
from trainer.log import RunFolder
from trainer.recipe import Recipe

Gradient = dict[str, torch.Tensor]
RANKS, DEADLINE = 2, 60


class Caught(Exception):
    """The step's gradient is there; what the optimizer makes of it is not asked."""


def of_the_loop(recipe: Recipe) -> Gradient:
    """What the first step hands to the optimizer, of all parameters that are trained."""
    made = _assembled(recipe)
    found: Gradient = {}

    def catch(self: Any, *_: object, **__: object) -> float:
        found.update(_gradient(made))
        raise Caught

    kept = single.Single.update
    single.Single.update = catch  # type: ignore[method-assign]
    try:
        with contextlib.suppress(Caught), RunFolder(recipe, rank=start.launched()[0]) as folder:
            loop.train(made, folder)
    finally:
        single.Single.update = kept  # type: ignore[method-assign]
    return found


def by_hand(recipe: Recipe) -> Gradient:
    """Of the sum over sources of multiplier * mean over the source's supervised tokens of -log p(token)."""
    made = _assembled(recipe)
    planned = made.mixture.step(made.mixture.start())
    total = torch.zeros((), dtype=torch.float64)
    for source, drawn in zip(recipe.sources, made.mixture.sources, strict=True):
        draws = planned.draws[source.name]
        losses = [loss for place in zip(draws, *drawn.order.at(draws), strict=True) for loss in _losses(made, source.name, *place)]
        total = total + source.loss_multiplier * torch.stack(losses).mean()
    total.backward()
    return _gradient(made)


def _losses(made: Assembly, source: str, draw: np.int64, shard: np.int64, row: np.int64) -> list[torch.Tensor]:
    """Of every supervised token of a record."""
    sample = made.data[source].shards[int(shard)][int(row)]  # type: ignore[union-attr]
    logits_BSV, labels_BS = made.model.logits(batch.collate([made.examples(source, int(draw), sample)]))
    return [
        torch.logsumexp(logits_BSV[0, at - 1], 0) - logits_BSV[0, at - 1, label]
        for at, label in enumerate(labels_BS[0].tolist())
        if at and label != -100
    ]


def _assembled(recipe: Recipe) -> Assembly:
    made = assembly.assemble(recipe, *start.launched())
    made.model.double()
    return made


def _gradient(made: Assembly) -> Gradient:
    return {name: p.grad.detach().clone() for name, p in made.model.named_parameters() if p.grad is not None}


def _fork(rank: int, port: int, recipe: Recipe, out: str) -> int:
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), **place}
        with start.started(recipe) as own:
            gradient = of_the_loop(own)
            if rank == 0:
                safetensors.torch.save_file(gradient, out)
        status = 0
    except BaseException:  # noqa: BLE001 - told, and the status says so
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _main(path: str, out: str) -> int:
    recipe = recipes.load(path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    children = [_fork(rank, port, recipe, f"{Path(out)}") for rank in range(RANKS)]
    return max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children)


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
