"""Does the model look? The loss of the same text with its picture, and with a blank one of the mean colour."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from schemas import RecordError
from trainer.assembly import Assembly
from trainer.data import sources
from trainer.data.batch import Example, collate
from trainer.data.examples import example
from trainer.model import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mean loss per supervised token over the same records, with either picture."""

    records: int  # those with a picture
    picture: float
    blank: float


def first_examples(assembly: Assembly, count: int) -> list[Example]:
    """The first `count` records of each source as the model sees them, their turns as stored; the ones that can not be shown left out."""
    made = assembly.examples
    shown = []
    for source, data in assembly.data.items():
        for sample in sources.first(data, count):
            try:
                shown.append(example(sample, made.renderers[source], made.preprocess, fit=made.fit))
            except RecordError as error:
                log.info("%s %s: left out: %s", source, sample.key, error)
    return shown


def compare(assembly: Assembly, examples: Iterable[Example], *, batch_size: int = 16) -> Comparison:
    """The comparison over these examples; the ones without a picture do not count. nan where none has one."""
    shown = [item for item in examples if item.pixels]
    empty = assembly.examples.preprocess.blank()
    blanked = [replace(item, pixels=[empty] * len(item.pixels)) for item in shown]
    picture, blank = (_mean_loss(assembly.model, items, batch_size, assembly.recipe.device) for items in (shown, blanked))
    return Comparison(records=len(shown), picture=picture, blank=blank)


@torch.no_grad()
def _mean_loss(model: Model, examples: list[Example], batch_size: int, device: str) -> float:
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for start in range(0, len(examples), batch_size):
        loss = model(collate(examples[start : start + batch_size]).to(device))
        total, tokens = total + float(loss.sums_B.sum()), tokens + int(loss.counts_B.sum())
    model.train(was_training)
    return total / tokens if tokens else float("nan")
