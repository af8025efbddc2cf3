"""AdamW over the trained parameters, in groups of one learning rate and weight decay, and its state by their names.

Which parameters decay is a rule by name; `[[optimizer.groups]]` give what fits a pattern another rate or decay.

    matrices      what has two axes or more: no bias, norm, gate
    transformers  what is no bias and in no norm layer, as the Trainer of transformers has it, and LLaVA and Basic-VLM with it: gates decay
    openflamingo  the gated cross-attentions, all of them (open_flamingo/train/train.py at 655f693, lines 392-408)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from schemas import RequestError
from trainer.parts import patterns
from trainer.recipe import Optimizer, ParameterGroup


@dataclass(frozen=True, kw_only=True)
class Group:
    """Trained parameters with one learning rate and weight decay."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    lr: float  # where the schedule's factor is 1
    weight_decay: float


def groups(model: nn.Module, settings: Optimizer) -> list[Group]:
    """All that is trained, in as many groups as there are pairs of learning rate and weight decay; in order of appearance.

    Raises RequestError where a pattern fits nothing, or nothing that is trained and in no group before it.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    chosen, decaying = _chosen(model, settings, trained), decays(model, settings.decay)
    found: dict[tuple[float, float], list[str]] = {}
    for name in trained:
        own = chosen.get(name)
        lr = settings.lr if own is None or own.lr is None else own.lr
        decay = settings.weight_decay if name in decaying else 0.0
        decay = decay if own is None or own.weight_decay is None else own.weight_decay
        found.setdefault((lr, decay), []).append(name)
    return [
        Group(names=tuple(names), parameters=tuple(trained[name] for name in names), lr=lr, weight_decay=decay)
        for (lr, decay), names in found.items()
    ]


def decays(model: nn.Module, rule: str) -> set[str]:
    """The names of the parameters that the rule lets decay."""
    names = {name: parameter.ndim for name, parameter in model.named_parameters()}
    if rule == "matrices":
        return {name for name, axes in names.items() if axes >= 2}
    if rule == "openflamingo":
        return {name for name in names if "gated_cross_attn" in name}
    norms = [
        (prefix, module) for prefix, module in model.named_modules() if "Norm" in type(module).__name__
    ]  # LlamaRMSNorm is no LayerNorm
    inside = {f"{prefix}.{name}" for prefix, module in norms for name, _ in module.named_parameters()}
    return {name for name in names if name not in inside and "bias" not in name}


def param_groups(model: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """The same as torch's optimizers take it. `initial_lr` is the group's own rate, which `set_lr` multiplies."""
    return [
        {"params": list(group.parameters), "lr": group.lr, "initial_lr": group.lr, "weight_decay": group.weight_decay}
        for group in groups(model, settings)
    ]


def build(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW over `groups`."""
    first, second = settings.betas
    return torch.optim.AdamW(param_groups(model, settings), lr=settings.lr, betas=(first, second), eps=settings.eps)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Put each group's own learning rate in force, times the schedule's factor (trainer/run/schedule.py)."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def state(optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """The optimizer's tensors as NAME:TENSOR, as they are."""
    held = {name: optimizer.state.get(parameter, {}) for name, parameter in trained.items()}
    return {f"{name}:{key}": tensor for name, own in held.items() for key, tensor in own.items()}


def restore(optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Put back copies of what `state` gave, one after the other. A step count stays on the CPU, where torch keeps it."""
    optimizer.state.clear()
    for both, tensor in tensors:
        name, _, key = both.rpartition(":")
        parameter = trained[name]
        copied = tensor.clone() if key == "step" else tensor.to(parameter.device, parameter.dtype, copy=True)
        optimizer.state[parameter][key] = copied


def _chosen(model: nn.Module, settings: Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, ParameterGroup]:
    """The first group of the recipe that fits, of the parameters that have one."""
    names = [name for name, _ in model.named_parameters()]
    chosen: dict[str, ParameterGroup] = {}
    for group in settings.groups:
        fitting = patterns.matching(group.match, names, "optimizer.groups")
        mine = [name for name in fitting if name in trained and name not in chosen]
        if not mine:
            why = "only frozen ones" if not any(name in trained for name in fitting) else "only what a group before has"
            raise RequestError(f"optimizer.groups {group.match}: expected a parameter that is trained, found {why}")
        chosen |= dict.fromkeys(mine, group)
    return chosen
