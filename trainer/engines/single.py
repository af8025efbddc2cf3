"""One process; what the engines of several have in common with it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from trainer.data.batch import Batch
from trainer.engines import optimizer as optimizers
from trainer.engines import precision, tensor_files
from trainer.engines.engine import OPTIMIZER, SCALE, WEIGHTS, DivergedError, same_shapes
from trainer.engines.precision import Scale
from trainer.engines.tensor_files import Entry
from trainer.model import Model
from trainer.recipe import Recipe


class Single:
    """One process."""

    rank, ranks = 0, 1

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.adam = optimizers.build(model, recipe.optimizer)
        self.scale = precision.scale(recipe)

    def accumulate(self, batch: Batch, weights_BL: torch.Tensor, *, last: bool) -> torch.Tensor:
        """Forward and backward of one micro-batch."""
        return self._backward(self.model, batch, weights_BL)

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
        sums_BL = self._forward(self.model, batch)
        self.model.train(was_training)
        return sums_BL[:, 0]

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """One row."""
        return [[float(number) for number in numbers]]

    def barrier(self) -> None:
        """Nobody to wait for."""

    def save(self, folder: Path) -> None:
        """Parameters by name, and the optimizer's tensors as NAME:TENSOR, each on one rank. With float16, its loss scale too."""
        for stem, entries in ((WEIGHTS, self.weights()), (OPTIMIZER, self._state())):
            tensor_files.save(folder, stem, entries, self.rank, self.ranks)
        if self.rank == 0:
            self._save_scale(folder)

    def load(self, folder: Path) -> None:
        """Into the model and the optimizer as they are."""
        with tensor_files.opened(folder, WEIGHTS) as weights, torch.no_grad():
            same_shapes({name: parameter.shape for name, parameter in self.trained.items()}, weights, folder / WEIGHTS)
            for name, parameter in self.trained.items():
                parameter.copy_(self._own(parameter, weights[name]))
        with tensor_files.opened(folder, OPTIMIZER) as held:
            optimizers.restore(self.adam, self.trained, ((both, self._held(both, tensor)) for both, tensor in held.items()))
        self._load_scale(folder)

    def weights(self) -> list[Entry]:
        """As they are."""
        return self._entries(self.trained)

    def _state(self) -> list[Entry]:
        return self._entries(optimizers.state(self.adam, self.trained))

    def _entries(self, tensors: Mapping[str, torch.Tensor]) -> list[Entry]:
        return [Entry(name, tensor.dtype, tuple(tensor.shape), partial(self._whole, tensor)) for name, tensor in tensors.items()]

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Of a tensor that ranks may share. They meet."""
        return tensor.detach()

    def _backward(self, model: nn.Module, batch: Batch, weights_BL: torch.Tensor) -> torch.Tensor:
        sums_BL = self._forward(model, batch)
        (sums_BL * (weights_BL.to(sums_BL.device) * self.scale.value)).sum().backward()
        return sums_BL.detach()

    def _forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        with precision.autocast(self.recipe):
            return model(batch.to(self.recipe.device)).sums_BL

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
            (folder / SCALE).write_text(json.dumps({name: getattr(self.scale, name) for name in ("value", "updates", "hysteresis")}))

    def _load_scale(self, folder: Path) -> None:
        if self.scale.moves and (folder / SCALE).is_file():
            self.scale = Scale(**json.loads((folder / SCALE).read_text()), moves=True)
