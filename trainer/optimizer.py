"""AdamW over the trained parameters."""

from __future__ import annotations

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
