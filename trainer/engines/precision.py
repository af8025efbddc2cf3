"""What a model computes in, and what it computes twice. Weights and the optimizer's state are float32 whatever `precision.dtype` says.

bf16 and fp16: matrix products in 16 bits, by autocast where a rank has the whole model; FSDP and DeepSpeed hold a 16 bit copy instead.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

from schemas import RequestError
from trainer.recipe import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLASH = "flash_attention_2"


@dataclass
class Scale:
    """What a float16 loss is multiplied by, so that small gradients do not vanish; every other loss by 1.

    Halved where a gradient overflows, doubled after 2000 updates without: Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740
    """

    value: float = 1.0
    updates: int = 0  # since it last changed
    hysteresis: int = 1  # overflows that it takes to halve it: only DeepSpeed asks for more than one
    moves: bool = False

    def kept(self) -> None:
        """A gradient was finite."""
        self.updates += 1
        if self.moves and self.updates == 2000:
            self.value, self.updates = self.value * 2, 0

    def halved(self) -> bool:
        """A gradient was not: whether a smaller scale may help."""
        if not self.moves or self.value <= 1.0:
            return False
        self.value, self.updates = self.value / 2, 0
        return True


def scale(recipe: Recipe) -> Scale:
    """At the start of a run."""
    return Scale(value=2.0**16, moves=True) if recipe.precision.dtype == "fp16" else Scale()


def autocast(recipe: Recipe) -> AbstractContextManager[Any]:
    """For the forward pass of a model whose weights are float32."""
    if recipe.precision.dtype == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(recipe.device).type, DTYPES[recipe.precision.dtype])


def prepare(model: nn.Module, recipe: Recipe) -> None:
    """Put the recipe's attention, TF32 and activation checkpointing in force. Raises RequestError where the attention is not there."""
    torch.set_float32_matmul_precision("high" if recipe.precision.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = recipe.precision.tf32
    _attend(model, recipe)
    if recipe.engine.activation_checkpointing:
        for layer in model.layers():  # type: ignore[operator]
            _again(layer)


def _attend(model: nn.Module, recipe: Recipe) -> None:
    """`auto`: flash attention where it can be used, else what transformers chose."""
    asked, halves = recipe.precision.attention, recipe.precision.dtype != "fp32"
    flash = halves and "cuda" in recipe.device and importlib.util.find_spec("flash_attn") is not None
    for name, part in model.named_children():
        if isinstance(part, transformers.PreTrainedModel) and (asked != "auto" or flash):
            try:
                part.set_attn_implementation(FLASH if asked == "auto" else asked)
            except (ImportError, ValueError) as error:
                if asked != "auto":
                    told = " ".join(str(error).split())[:200]
                    raise RequestError(f"precision.attention: expected one that {name} has here, found {asked}: {told}") from error


def _again(layer: nn.Module) -> None:
    """The layer keeps its inputs alone, and computes the rest again in the backward pass.

    Its `forward` is replaced, not its call: the hooks by which an engine fetches the layer's weights stay outside, and no name changes.
    """
    layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs) if torch.is_grad_enabled() else forward(*args, **kwargs)

    return recomputed
