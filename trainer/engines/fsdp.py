"""FSDP2: every rank holds a part of each parameter, of its gradient and of the optimizer's state, and whole layers only while they run.

Zhao et al. 2023, https://arxiv.org/abs/2304.11277; torch.distributed.fsdp.fully_shard. The layers of the model are units of their own; the
rest (tower, projector, embeddings, head, new tokens' rows) is one unit, whole from the forward to the backward pass. Parts may be frozen:
each parameter is shared out by itself. What is written is whole, under the same names as without.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.data.batch import Batch
from trainer.engines import precision
from trainer.engines.ddp import Ddp, peers
from trainer.engines.single import Single
from trainer.model import Model
from trainer.recipe import Recipe


class Fsdp(Ddp):
    """A part of the model on every rank. It meets the others in every forward and backward pass."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        _share_out(model, recipe)
        Single.__init__(self, model, recipe)  # parameters are DTensors from here on
        self._place()

    def accumulate(self, batch: Batch, weights_BL: torch.Tensor, *, last: bool) -> torch.Tensor:
        """Gradients are added up over ranks in the last backward of a step alone; until then each rank keeps its own, whole."""
        shared = cast(FSDPModule, self.model)
        shared.set_requires_gradient_sync(last)
        shared.set_is_last_backward(last)
        with peers():
            return self._backward(self.model, batch, weights_BL)

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Without a backward pass nobody else would put the whole parts away."""
        sums_B = super().evaluate(batch)
        cast(FSDPModule, self.model).reshard()
        return sums_B

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        with peers():
            return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor  # a step count has no parts

    def _forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Weights have the dtype that they are used in: nothing for autocast to do."""
        return model(batch.to(self.recipe.device)).sums_BL

    def _own(self, parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part, without a word to the others."""
        shared = cast(DTensor, parameter)
        part = distribute_tensor(whole, shared.device_mesh, shared.placements, src_data_rank=None)
        local = part.to_local().to(shared.to_local().device)
        return DTensor.from_local(local, shared.device_mesh, shared.placements, run_check=False, shape=whole.shape, stride=whole.stride())

    def _gradients(self) -> list[torch.Tensor]:
        return [cast(DTensor, parameter.grad).to_local() for parameter in self.trained.values() if parameter.grad is not None]

    def _norm(self, gradients: list[torch.Tensor]) -> float:
        """Every number is on one rank: squares add up."""
        return math.sqrt(sum(square for (square,) in self.gather([super()._norm(gradients) ** 2])))


def _share_out(model: Model, recipe: Recipe) -> None:
    """In place. A gradient is the sum over ranks, not their mean, and in float32 also where the weights in use have 16 bits."""
    mesh = init_device_mesh(torch.device(recipe.device).type, (torch.distributed.get_world_size(),))
    narrow = recipe.precision.dtype != "fp32"
    dtype = precision.DTYPES[recipe.precision.dtype] if narrow else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory="cuda" in recipe.device) if recipe.engine.cpu_offload else OffloadPolicy()
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "offload_policy": offload}
    for layer in model.layers():
        fully_shard(layer, reshard_after_forward=recipe.engine.reshard_after_forward, **options)
    fully_shard(cast(nn.Module, model), reshard_after_forward=False, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
