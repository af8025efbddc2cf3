"""How the ranks work together. The loop knows an `Engine` and nothing of processes: one process, or DDP under torchrun.

Ranks meet in `gather`, `accumulate(last=True)`, `update` and `barrier`, the same number of times on each. A rank that ends without the
others is told by these within the timeout, as PeerError.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from schemas import RequestError, ShardweaveError
from trainer import optimizer as optimizers
from trainer.batch import Batch
from trainer.model import Model
from trainer.recipe import Recipe

WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"


class PeerError(ShardweaveError):
    """Another rank has ended, or does not answer."""


class DivergedError(ShardweaveError):
    """The loss or its gradient is no longer a finite number."""


class Engine(Protocol):
    """One rank's part of the model and the optimizer."""

    rank: int
    ranks: int

    def accumulate(self, batch: Batch, weights_B: torch.Tensor, *, last: bool) -> torch.Tensor:
        """Add the gradient of (sum of token losses of each row) @ weights_B. After the `last` of a step it is the sum over all ranks.

        Each row's sum of token losses, float32 (B,), detached.
        """
        ...

    def update(self, lr: float) -> float:
        """Clip, make the optimizer's step and forget the gradient: its norm before it was clipped. Raises DivergedError, on all ranks
        alike and before a weight is touched, where that is not finite.
        """
        ...

    def forget(self) -> None:
        """Forget the gradient."""
        ...

    def gather(self, numbers: Sequence[float]) -> torch.Tensor:
        """Every rank's numbers on every rank: float64 (ranks, numbers), on the CPU."""
        ...

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        ...

    def save(self, folder: Path) -> None:
        """Write what is trained, and the optimizer's state, into a folder that is there. Called by all ranks."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, under any engine that writes the same files. Raises RequestError where it does not fit the model."""
        ...

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained parameters, whole, by name, on the CPU. Called by all ranks; rank 0 gets them."""
        ...


class Single:
    """One process."""

    rank, ranks = 0, 1

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.adam = optimizers.build(model, recipe.optimizer)

    def accumulate(self, batch: Batch, weights_B: torch.Tensor, *, last: bool) -> torch.Tensor:
        """Forward and backward of one micro-batch."""
        return _backward(self.model, batch, weights_B, self.recipe.device)

    def update(self, lr: float) -> float:
        """The gradient is whole on every rank, so that the norm and all decisions are the same."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained.values(), self.recipe.optimizer.max_grad_norm or math.inf))
        if not math.isfinite(norm):
            raise DivergedError(f"gradient: expected a finite norm, found {norm}")
        optimizers.set_lr(self.adam, lr)
        self.adam.step()
        self.forget()
        return norm

    def forget(self) -> None:
        """Frees the gradients' memory, too."""
        self.model.zero_grad(set_to_none=True)

    def gather(self, numbers: Sequence[float]) -> torch.Tensor:
        """One row."""
        return torch.tensor([list(numbers)], dtype=torch.float64)

    def barrier(self) -> None:
        """Nobody to wait for."""

    def save(self, folder: Path) -> None:
        """Two safetensors files: parameters by name, and the optimizer's tensors as NAME:TENSOR."""
        safetensors.torch.save_file(self.weights(), folder / WEIGHTS)
        safetensors.torch.save_file(optimizers.state(self.adam, self.trained), folder / OPTIMIZER)

    def load(self, folder: Path) -> None:
        """Into the model and the optimizer as they are."""
        weights = safetensors.torch.load_file(folder / WEIGHTS)
        _same_shapes(self.trained, weights, folder / WEIGHTS)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])
        optimizers.restore(self.adam, self.trained, safetensors.torch.load_file(folder / OPTIMIZER))

    def weights(self) -> dict[str, torch.Tensor]:
        """As they are, until the next update."""
        return {name: parameter.detach().cpu().contiguous() for name, parameter in self.trained.items()}


class Ddp(Single):
    """torch's DistributedDataParallel: the whole model on every rank, gradients added up while the last backward runs."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__(model, recipe)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        # Every trained parameter gets a gradient from every batch (trainer/model.py), so nobody has to look for unused ones.
        devices = [torch.device(recipe.device)] if "cuda" in recipe.device else None
        self.wrapped = DistributedDataParallel(model, device_ids=devices)
        self.wrapped.register_comm_hook(None, lambda _, bucket: _added_up(bucket.buffer()))  # it reads annotations, and knows no string

    def accumulate(self, batch: Batch, weights_B: torch.Tensor, *, last: bool) -> torch.Tensor:
        """Ranks meet in the last backward of a step alone."""
        with _peers(), contextlib.nullcontext() if last else self.wrapped.no_sync():
            return _backward(self.wrapped, batch, weights_B, self.recipe.device)

    def gather(self, numbers: Sequence[float]) -> torch.Tensor:
        """One collective of a few numbers."""
        mine = torch.tensor(list(numbers), dtype=torch.float64, device=self.recipe.device)
        found = [torch.empty_like(mine) for _ in range(self.ranks)]
        with _peers():
            dist.all_gather(found, mine)
        return torch.stack(found).cpu()

    def barrier(self) -> None:
        """A gather of nothing much, because a barrier of gloo has no timeout of its own."""
        self.gather([0.0])

    def save(self, folder: Path) -> None:
        """Every rank has the whole; rank 0 writes it."""
        if self.rank == 0:
            super().save(folder)


def _backward(model: nn.Module, batch: Batch, weights_B: torch.Tensor, device: str) -> torch.Tensor:
    loss = model(batch.to(device))
    (loss.sums_B * weights_B.to(device)).sum().backward()
    return loss.sums_B.detach()


def _added_up(gradient: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """The sum over ranks where DDP takes a mean: what a step divides by is global already."""
    work = dist.all_reduce(gradient, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


def _same_shapes(trained: dict[str, nn.Parameter], weights: dict[str, torch.Tensor], where: Path) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in trained.items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise RequestError(f"{where}: {name}: expected shape {expected.get(name, 'none')}, found {found.get(name, 'none')}")


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """What a collective raises where another rank has gone, or keeps everybody waiting."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistBackendError | dist.DistNetworkError) and not any(word in str(error) for word in _GONE):
            raise
        told = " ".join(str(error).split())[:200]
        raise PeerError(f"rank {dist.get_rank()}: expected the other ranks' part, found that one has ended or hangs: {told}") from error


_GONE = ("Connection closed by peer", "Connection reset by peer", "Timed out", "timed out", "gloo", "NCCL", "Broken pipe")


def launched() -> tuple[int, int]:
    """Rank and ranks as torchrun states them: 0 and 1 where nobody does."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def started(recipe: Recipe) -> Iterator[Recipe]:
    """The process group, if the recipe wants one, while it is needed; the recipe with this rank's own device.

    Raises RequestError where several ranks run an engine for one, or the ranks do not find each other.
    """
    kind, ranks = recipe.engine.kind, launched()[1]
    if kind == "single" and ranks > 1:
        raise RequestError(f"engine.kind: expected auto or ddp for {ranks} ranks, found single")
    if kind == "single" or (kind == "auto" and "RANK" not in os.environ):
        yield recipe
        return
    if "RANK" not in os.environ:
        raise RequestError("engine.kind ddp: expected to be started by torchrun, found no RANK in the environment")
    if recipe.device == "cuda":
        recipe = dataclasses.replace(recipe, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(recipe.device)
    backend = "nccl" if "cuda" in recipe.device else "gloo"
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=recipe.engine.timeout))
    except (RuntimeError, ValueError) as error:
        raise RequestError(f"engine: expected {ranks} ranks that find each other, found {' '.join(str(error).split())[:200]}") from error
    yield recipe
    dist.destroy_process_group()  # not after an error: it would wait for ranks that have gone


def build(model: Model, recipe: Recipe) -> Engine:
    """The engine for the processes that are there."""
    return Ddp(model, recipe) if dist.is_initialized() else Single(model, recipe)
