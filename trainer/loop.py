"""The training loop: one process, float32.

A step takes a batch of every source. Its loss is, for each source, the sum of the token losses over its supervised tokens divided by
how many they are, times the source's loss_multiplier; sources added. Where nothing is supervised the update is skipped and counted.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from schemas import ShardweaveError
from trainer import optimizer as optimizers
from trainer import schedule
from trainer.assembly import Assembly
from trainer.batch import Example, collate
from trainer.feed import Feed
from trainer.log import RunFolder
from trainer.model import LlavaModel
from trainer.recipe import Recipe

Examples = Mapping[str, list[Example]]  # by source


class DivergedError(ShardweaveError):
    """The loss or its gradient is no longer a finite number."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What a step's backward calls have seen."""

    total: float  # of all sources, multiplied
    by_source: dict[str, float]  # mean per supervised token, not multiplied; a source without any is left out
    tokens: int  # supervised
    images: int


def train(assembly: Assembly, folder: RunFolder) -> dict[str, Any]:
    """Train as the recipe says, write the run folder, and give the numbers worth telling.

    Raises DivergedError, and ShardError where more records are bad than the recipe allows.
    """
    recipe, model = assembly.recipe, assembly.model
    feed = Feed(recipe=recipe, data=assembly.data, render=assembly.render, preprocess=assembly.preprocess)
    adam = optimizers.build(model, recipe.optimizer)
    skipped, last, began = 0, math.nan, time.monotonic()
    model.train()
    with ThreadPoolExecutor(max_workers=1) as reader, _bar(recipe.steps) as bar:
        coming: Future[Examples] = reader.submit(_read, feed, recipe, 0)
        for step in range(recipe.steps):
            asked = time.monotonic()
            examples, waited = coming.result(), time.monotonic() - asked
            if step + 1 < recipe.steps:
                coming = reader.submit(_read, feed, recipe, step + 1)  # while this step computes
            losses = backward(model, recipe, examples)
            rate = recipe.optimizer.lr * schedule.factor(step, recipe.steps, recipe.schedule)
            norm = _update(model, adam, recipe, rate) if losses.tokens else None
            skipped += norm is None
            last = losses.total if losses.tokens else last
            folder.step(_line(step, losses, rate, norm, waited))
            bar.set_postfix(loss=f"{last:.4f}", lr=f"{rate:.2e}", refresh=False)
            bar.update()
    folder.save(model)
    seconds = round(time.monotonic() - began, 3)
    counts = {"steps": recipe.steps, "skipped_updates": skipped, "bad_records": feed.bad}
    return {"out": str(folder.path), **counts, "loss": last if math.isfinite(last) else None, "seconds": seconds}


def backward(model: LlavaModel, recipe: Recipe, examples: Examples) -> Losses:
    """Add the gradient of the step's loss to the parameters, one source at a time. Raises DivergedError."""
    model.zero_grad(set_to_none=True)
    total, tokens, images = 0.0, 0, 0
    by_source: dict[str, float] = {}
    for source in recipe.sources:
        if not examples[source.name]:
            continue
        batch = collate(examples[source.name]).to(recipe.device)
        images += 0 if batch.pixels_NCHW is None else len(batch.pixels_NCHW)
        token_loss = model(batch)
        if not token_loss.tokens:
            continue
        mean = token_loss.total / token_loss.tokens
        weighted = mean * source.loss_multiplier
        if weighted.requires_grad:  # no: only the projector is trained, and no picture is in the batch
            weighted.backward()
        by_source[source.name] = mean.item()
        total, tokens = total + weighted.item(), tokens + token_loss.tokens
    if not math.isfinite(total):
        raise DivergedError(f"loss: expected a finite number, found {by_source}")
    return Losses(total=total, by_source=by_source, tokens=tokens, images=images)


def _bar(steps: int) -> tqdm:
    return tqdm(total=steps, unit="step", mininterval=0.1 if sys.stderr.isatty() else 10)  # a log file needs no animation


def _read(feed: Feed, recipe: Recipe, step: int) -> Examples:
    return {source.name: feed.examples(source, step) for source in recipe.sources}


def _update(model: LlavaModel, adam: torch.optim.Optimizer, recipe: Recipe, rate: float) -> float:
    """One optimizer step; the gradient's norm before it was clipped. Raises DivergedError before a weight is touched."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norm = float(torch.nn.utils.clip_grad_norm_(trained, recipe.optimizer.max_grad_norm or math.inf))
    if not math.isfinite(norm):
        raise DivergedError(f"gradient: expected a finite norm, found {norm}")
    optimizers.set_lr(adam, rate)
    adam.step()
    return norm


def _line(step: int, losses: Losses, rate: float, norm: float | None, waited: float) -> dict[str, Any]:
    return {
        "step": step,
        "loss": losses.total if losses.tokens else None,
        "loss_by_source": losses.by_source,
        "lr": rate,
        "grad_norm": norm,
        "tokens_supervised": losses.tokens,
        "images": losses.images,
        "seconds_waiting": round(waited, 6),
        "updated": norm is not None,
    }
