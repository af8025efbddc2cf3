"""How the ranks work together. The loop knows an `Engine` and nothing of processes: one process, or several under a launcher.

Single, Ddp: here. FSDP2: trainer/fsdp.py. DeepSpeed: trainer/deepspeed.py. All write the same files, so a run may go on under another.

Ranks meet in all but `forget`, the same number of times on each. A rank that ends without the others is told within the timeout, as
PeerError.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from schemas import RequestError, ShardweaveError
from trainer import launch, precision
from trainer import optimizer as optimizers
from trainer.batch import Batch
from trainer.model import Model
from trainer.precision import Scale
from trainer.recipe import Recipe

WEIGHTS, OPTIMIZER, SCALE = "weights.safetensors", "optimizer.safetensors", "scale.json"


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

    def update(self, factor: float) -> float | None:
        """Clip, make the optimizer's step at the schedule's factor, forget the gradient: its norm before it was clipped.

        None where float16's loss scale was too large and has been halved: there was no step. Raises DivergedError where the norm is not
        finite, before a weight is touched. All ranks alike.
        """
        ...

    def forget(self) -> None:
        """Forget the gradient."""
        ...

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Each row's sum of token losses, float32 (B,), in evaluation mode and without a gradient."""
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
        """Read what `save` wrote, under any engine. Raises RequestError where it does not fit the model."""
        ...

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained parameters, whole, by name, float32, on the CPU. Called by all ranks; rank 0 gets them."""
        ...


class Single:
    """One process."""

    rank, ranks = 0, 1

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.adam = optimizers.build(model, recipe.optimizer)
        self.scale = precision.scale(recipe)

    def accumulate(self, batch: Batch, weights_B: torch.Tensor, *, last: bool) -> torch.Tensor:
        """Forward and backward of one micro-batch."""
        return self._backward(self.model, batch, weights_B)

    def update(self, factor: float) -> float | None:
        """The gradient's norm is that of all ranks, so that all decisions are the same."""
        gradients = self._gradients()
        norm = self._norm(gradients) / self.scale.value
        if not math.isfinite(norm):
            if not self.scale.halved():
                raise DivergedError(f"gradient: expected a finite norm, found {norm}")
            self.forget()
            return None
        clip = min(1.0, (self.recipe.optimizer.max_grad_norm or math.inf) / (norm + 1e-6)) / self.scale.value
        if clip != 1.0:
            torch._foreach_mul_(gradients, clip)  # type: ignore[attr-defined]
        optimizers.set_lr(self.adam, factor)
        self.adam.step()
        self.scale.kept()
        self.forget()
        return norm

    def forget(self) -> None:
        """Frees the gradients' memory, too."""
        for parameter in self.trained.values():
            parameter.grad = None

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> torch.Tensor:
        """The model is left in the mode that it was in."""
        was_training = self.model.training
        self.model.eval()
        sums_B = self._forward(self.model, batch)
        self.model.train(was_training)
        return sums_B

    def gather(self, numbers: Sequence[float]) -> torch.Tensor:
        """One row."""
        return torch.tensor([list(numbers)], dtype=torch.float64)

    def barrier(self) -> None:
        """Nobody to wait for."""

    def save(self, folder: Path) -> None:
        """Two safetensors files: parameters by name, and the optimizer's tensors as NAME:TENSOR. With float16, its loss scale too."""
        safetensors.torch.save_file(self.weights(), folder / WEIGHTS)
        safetensors.torch.save_file(optimizers.state(self.adam, self.trained), folder / OPTIMIZER)
        self._save_scale(folder)

    def load(self, folder: Path) -> None:
        """Into the model and the optimizer as they are."""
        weights = safetensors.torch.load_file(folder / WEIGHTS)
        same_shapes({name: parameter.shape for name, parameter in self.trained.items()}, weights, folder / WEIGHTS)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self._own(parameter, weights[name]))
        held = safetensors.torch.load_file(folder / OPTIMIZER)
        mine = {both: self._held(both, tensor) for both, tensor in held.items()}
        optimizers.restore(self.adam, self.trained, mine)
        self._load_scale(folder)

    def weights(self) -> dict[str, torch.Tensor]:
        """As they are, until the next update."""
        return {name: parameter.detach().cpu().contiguous() for name, parameter in self.trained.items()}

    def _backward(self, model: nn.Module, batch: Batch, weights_B: torch.Tensor) -> torch.Tensor:
        sums_B = self._forward(model, batch)
        ((sums_B * weights_B.to(sums_B.device)).sum() * self.scale.value).backward()
        return sums_B.detach()

    def _forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        with precision.autocast(self.recipe):
            return model(batch.to(self.recipe.device)).sums_B

    def _gradients(self) -> list[torch.Tensor]:
        """What this rank updates by."""
        return [parameter.grad for parameter in self.trained.values() if parameter.grad is not None]

    def _norm(self, gradients: list[torch.Tensor]) -> float:
        return float(torch.nn.utils.get_total_norm(gradients))

    def _held(self, both: str, tensor: torch.Tensor) -> torch.Tensor:
        parameter = self.trained.get(both.rpartition(":")[0])
        return tensor if parameter is None or tensor.shape != parameter.shape else self._own(parameter, tensor)

    def _own(self, parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of a tensor that has the parameter's shape."""
        return whole

    def _save_scale(self, folder: Path) -> None:
        if self.scale.moves:
            (folder / SCALE).write_text(json.dumps({"value": self.scale.value, "updates": self.scale.updates}))

    def _load_scale(self, folder: Path) -> None:
        if self.scale.moves and (folder / SCALE).is_file():
            self.scale = Scale(**json.loads((folder / SCALE).read_text()), moves=True)


class Ddp(Single):
    """torch's DistributedDataParallel: the whole model on every rank, gradients added up while the last backward runs."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__(model, recipe)
        self._place()
        # Every trained parameter gets a gradient from every batch (trainer/model.py), so nobody has to look for unused ones.
        devices = [torch.device(recipe.device)] if "cuda" in recipe.device else None
        self.wrapped = DistributedDataParallel(model, device_ids=devices)
        self.wrapped.register_comm_hook(None, lambda _, bucket: _added_up(bucket.buffer()))  # it reads annotations, and knows no string

    def accumulate(self, batch: Batch, weights_B: torch.Tensor, *, last: bool) -> torch.Tensor:
        """Ranks meet in the last backward of a step alone."""
        with peers(), contextlib.nullcontext() if last else self.wrapped.no_sync():
            return self._backward(self.wrapped, batch, weights_B)

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Ranks that share the model out meet."""
        with peers():
            return super().evaluate(batch)

    def gather(self, numbers: Sequence[float]) -> torch.Tensor:
        """One collective of a few numbers."""
        mine = torch.tensor(list(numbers), dtype=torch.float64, device=self.recipe.device)
        found = [torch.empty_like(mine) for _ in range(self.ranks)]
        with peers():
            dist.all_gather(found, mine)
        return torch.stack(found).cpu()

    def barrier(self) -> None:
        """A gather of nothing much, because a barrier of gloo has no timeout of its own."""
        self.gather([0.0])

    def save(self, folder: Path) -> None:
        """Every rank has the whole; rank 0 writes it."""
        if self.rank == 0:
            super().save(folder)

    def _place(self) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()


def _added_up(gradient: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """The sum over ranks where DDP takes a mean: what a step divides by is global already."""
    work = dist.all_reduce(gradient, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


def same_shapes(shapes: Mapping[str, torch.Size], weights: Mapping[str, torch.Tensor], where: Path) -> None:
    """Raises RequestError where a saved tensor is not the model's."""
    expected = {name: tuple(shape) for name, shape in shapes.items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise RequestError(f"{where}: {name}: expected shape {expected.get(name, 'none')}, found {found.get(name, 'none')}")


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """What a collective raises where another rank has gone, or keeps everybody waiting: as PeerError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistBackendError | dist.DistNetworkError) and not any(word in str(error) for word in _GONE):
            raise
        told = " ".join(str(error).split())[:200]
        raise PeerError(f"rank {dist.get_rank()}: expected the other ranks' part, found that one has ended or hangs: {told}") from error


_GONE = ("Connection closed by peer", "Connection reset by peer", "Timed out", "timed out", "gloo", "NCCL", "Broken pipe")


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

    Raises RequestError where several ranks run an engine for one, or the ranks do not find each other.
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
        from trainer.deepspeed import Deepspeed

        return Deepspeed(model, recipe)
    if chosen == "fsdp":
        from trainer.fsdp import Fsdp

        return Fsdp(model, recipe)
    return Ddp(model, recipe) if dist.is_initialized() else Single(model, recipe)
