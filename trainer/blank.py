"""Does the model look? The loss of the same text with its picture, and with a blank one of the mean colour."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

import shards
from trainer.assembly import Assembly
from trainer.batch import Example, collate
from trainer.feed import example
from trainer.model import LlavaModel


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mean loss per supervised token over the same records, with either picture."""

    records: int  # those with a picture
    picture: float
    blank: float


def first_samples(assembly: Assembly, count: int) -> list[shards.Sample]:
    """The first `count` samples of each source."""
    return [sample for data in assembly.data.values() for sample in itertools.islice(data, count)]


def compare(assembly: Assembly, samples: Iterable[shards.Sample], *, batch_size: int = 16) -> Comparison:
    """The comparison over these samples; the ones without a picture do not count. nan where none has one."""
    examples = [example(sample, assembly.render, assembly.preprocess) for sample in samples]
    shown = [item for item in examples if item.pixels]
    empty = assembly.preprocess.blank()
    blanked = [replace(item, pixels=[empty] * len(item.pixels)) for item in shown]
    picture, blank = (_mean_loss(assembly.model, items, batch_size, assembly.recipe.device) for items in (shown, blanked))
    return Comparison(records=len(shown), picture=picture, blank=blank)


@torch.no_grad()
def _mean_loss(model: LlavaModel, examples: list[Example], batch_size: int, device: str) -> float:
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for start in range(0, len(examples), batch_size):
        loss = model(collate(examples[start : start + batch_size]).to(device))
        total, tokens = total + float(loss.total), tokens + loss.tokens
    model.train(was_training)
    return total / tokens if tokens else float("nan")
