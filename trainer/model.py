"""What the loop and the engines know of a model, whatever its family.

A family is one file, trainer/<family>.py, with `build(recipe, vocabulary, specials) -> Model`. The first words of its parameters' names
are its parts (vision, projector, perceiver, language): recipes freeze and group by them.

Axes: B rows, T tokens, S positions after the pictures are in, V vocabulary.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from schemas import RequestError
from trainer.data.batch import Batch
from trainer.parts import patterns, tower
from trainer.recipe import Freeze, Recipe
from trainer.text.positions import Positions
from trainer.text.rendered import IGNORE


class TokenLoss(NamedTuple):
    """Of each row, the sum of its token losses, and over how many tokens. Of a model of L terms both are (B, L)."""

    sums_B: torch.Tensor  # float32 (float64 of a model in float64), with a graph
    counts_B: torch.Tensor  # int64

    @property
    def sums_BL(self) -> torch.Tensor:
        """A column a term."""
        return self.sums_B.reshape(len(self.sums_B), -1)


class Model(nn.Module):
    """A vision-language model. Every parameter that is trained gets a gradient from every batch, also from one without pictures."""

    language: nn.Module
    terms: tuple[str, ...] = ("tokens",)  # what the loss is a sum of; the loop divides each by its own count in the step

    @property
    def patches(self) -> int:
        """Positions that a picture takes."""
        return 1

    def forward(self, batch: Batch) -> TokenLoss:
        """The loss of predicting every supervised token from what stands before it."""
        return token_loss(*self.logits(batch))

    def counts(self, batch: Batch) -> torch.Tensor:
        """How many of each term a row has, int64 (B, L): known before `forward`, which gives the same."""
        return batch.counts_B[:, None]

    @property
    def fit(self) -> Positions:
        """What cuts a record to the positions that the model has. `forward` loses no token of a record that was."""
        return Positions()

    def logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, S, V) and labels (B, S), not shifted."""
        raise NotImplementedError

    def generate(self, batch: Batch, **options: Any) -> torch.Tensor:
        """Ids (B, T) that go on from each row's prompt, padded with its end token; options are those of transformers' generate."""
        raise NotImplementedError

    def layers(self) -> list[nn.Module]:
        """What is large and called one after the other: the units that an engine shards and that activation checkpointing redoes."""
        raise NotImplementedError


def token_loss(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> TokenLoss:
    """Cross entropy of the labels, each predicted at the position before it."""
    targets_BS = labels_BS[:, 1:]
    logits_KV = logits_BSV[:, :-1].flatten(0, 1)
    logits_KV = logits_KV.to(torch.promote_types(logits_KV.dtype, torch.float32))
    losses_K = F.cross_entropy(logits_KV, targets_BS.flatten(), ignore_index=IGNORE, reduction="none")
    return TokenLoss(losses_K.view_as(targets_BS).sum(1), (targets_BS != IGNORE).sum(1))


def build(recipe: Recipe, vocabulary: int, specials: Mapping[str, int] | None = None) -> Model:
    """The model of a recipe, float32, seeded, its frozen parts without gradients.

    Ids of the tokenizer are below `vocabulary`; `specials` are its special tokens by name.

    Raises RequestError where a part is not stated, or the parts and the tokenizer do not fit each other.
    """
    there = device(recipe.device)  # before anything takes its time
    torch.manual_seed(recipe.seed)
    built = made(recipe, vocabulary, specials or {})
    shared = dist.is_initialized() and recipe.engine.kind in ("fsdp", "deepspeed")  # these put each part where it belongs
    return built if shared else built.to(there)


def made(recipe: Recipe, vocabulary: int, specials: Mapping[str, int]) -> Model:
    """The same wherever torch makes tensors just now: under torch.device("meta") it is names and shapes, in no memory."""
    built = cast(Model, importlib.import_module(f"trainer.{recipe.model.family}").build(recipe, vocabulary, specials))
    _freeze(built, recipe.freeze)
    if isinstance(vision := getattr(built, "vision", None), nn.Module):
        tower.freeze_unused(vision, recipe.vision)
    if not any(parameter.requires_grad for parameter in built.parameters()):
        raise RequestError("freeze: expected a part to train, found all of them frozen")
    return built


def _freeze(model: Model, choice: Freeze) -> None:
    """What is said by pattern; the parts are the family's to freeze."""
    named = dict(model.named_parameters())
    for key, asked, trained in (("match", choice.match, False), ("thaw", choice.thaw, True)):
        for pattern in asked:
            for name in patterns.matching(pattern, named, f"freeze.{key}"):
                named[name].requires_grad_(trained)


def device(name: str) -> torch.device:
    """Of this machine. Raises RequestError where it has none of that name."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        raise RequestError(
            f"device {name}: expected a device of this machine, found {str(error).splitlines()[0]}; --set device=cpu runs without"
        ) from error
