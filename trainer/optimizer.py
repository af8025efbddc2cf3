"""AdamW over the trained parameters, and its state by their names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from trainer.recipe import Optimizer


def build(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """Two groups: matrices with the recipe's weight decay, vectors (biases, norms) with none."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    first, second = settings.betas
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=(first, second), eps=settings.eps)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Put this learning rate in force."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def state(optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """The optimizer's tensors as NAME:TENSOR, on the CPU; as they are, until the next step."""
    held = {name: optimizer.state.get(parameter, {}) for name, parameter in trained.items()}
    return {f"{name}:{key}": tensor.cpu() for name, own in held.items() for key, tensor in own.items()}


def restore(optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `state` gave. A step count stays on the CPU, where torch keeps it."""
    optimizer.state.clear()
    for both, tensor in tensors.items():
        name, _, key = both.rpartition(":")
        parameter = trained[name]
        optimizer.state[parameter][key] = tensor.clone() if key == "step" else tensor.to(parameter.device, parameter.dtype)
