"""Rendered records to one batch. Axes: B rows, T tokens, N pictures of the whole batch, C channels, H and W pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from trainer.data.pixels import Pixels
from trainer.recipe import Recipe
from trainer.text.rendered import IGNORE, Rendered


@dataclass(frozen=True, kw_only=True)
class Example:
    """One record as the model sees it."""

    rendered: Rendered
    pixels: list[Pixels]  # float32 (3, H, W), one for each IMAGE in the ids, in order


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Right-padded rows. Padding is 0 in ids, IGNORE in labels and False in the mask."""

    ids_BT: torch.Tensor  # int64, IMAGE where a picture goes
    labels_BT: torch.Tensor  # int64, not shifted
    mask_BT: torch.Tensor  # bool: positions that reach the model
    pixels_NCHW: torch.Tensor | None  # float32, in row order, then reading order; None: no picture in any row
    pictures: tuple[int, ...]  # of each row

    @cached_property
    def counts_B(self) -> torch.Tensor:
        """int64: the supervised tokens of each row; the first position that reaches the model has nothing before it."""
        supervised_BT = (self.labels_BT != IGNORE) & self.mask_BT
        return (supervised_BT & (self.mask_BT.cumsum(1) > 1)).sum(1)

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU copies faster from."""
        pixels_NCHW = None if self.pixels_NCHW is None else self.pixels_NCHW.pin_memory()
        tensors = {name: getattr(self, name).pin_memory() for name in ("ids_BT", "labels_BT", "mask_BT")}
        return replace(self, pixels_NCHW=pixels_NCHW, **tensors)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on this device: itself where it is there."""
        if self.ids_BT.device == torch.device(device):
            return self
        pixels_NCHW = None if self.pixels_NCHW is None else self.pixels_NCHW.to(device)
        ids_BT, labels_BT, mask_BT = (tensor.to(device) for tensor in (self.ids_BT, self.labels_BT, self.mask_BT))
        return Batch(ids_BT=ids_BT, labels_BT=labels_BT, mask_BT=mask_BT, pixels_NCHW=pixels_NCHW, pictures=self.pictures)


def collate(examples: Sequence[Example]) -> Batch:
    """One batch of at least one example."""
    rows, longest = len(examples), max(len(example.rendered.ids) for example in examples)
    ids_BT = torch.zeros(rows, longest, dtype=torch.int64)
    labels_BT = torch.full((rows, longest), IGNORE, dtype=torch.int64)
    mask_BT = torch.zeros(rows, longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        length = len(example.rendered.ids)
        ids_BT[row, :length] = torch.tensor(example.rendered.ids)
        labels_BT[row, :length] = torch.tensor(example.rendered.labels)
        mask_BT[row, :length] = True
        mask_BT[row, list(example.rendered.hidden)] = False
    pixels = [picture for example in examples for picture in example.pixels]
    pixels_NCHW = torch.from_numpy(np.stack(pixels)) if pixels else None
    counts = tuple(len(example.pixels) for example in examples)
    made = Batch(ids_BT=ids_BT, labels_BT=labels_BT, mask_BT=mask_BT, pixels_NCHW=pixels_NCHW, pictures=counts)
    _ = made.counts_B  # while others train
    return made


class MicroBatch(NamedTuple):
    """What a rank holds at once."""

    batch: Batch
    sources: tuple[str, ...]  # of each row


def micro_batches(made: Mapping[str, Sequence[Example]], recipe: Recipe) -> list[MicroBatch]:
    """A rank's part of a step. `every`: each batch of one source; else of all sources together, rows of about one length in a batch."""
    if recipe.mixture.draw == "every":
        sizes = {source.name: source.micro_batch_size for source in recipe.sources}
        rows = [([(name, example) for example in examples], sizes[name]) for name, examples in made.items()]
    else:
        every = [(name, example) for name, examples in made.items() for example in examples]
        every.sort(key=lambda row: (bool(row[1].pixels), len(row[1].rendered.ids)))
        rows = [(every, recipe.mixture.micro_batch_size)]
    return [_micro(part[at : at + (size or len(part))]) for part, size in rows if part for at in range(0, len(part), size or len(part))]


def blank() -> MicroBatch:
    """One row with nothing to train on, for a rank that has fewer micro-batches than the others."""
    rendered = Rendered(ids=[0, 0], labels=[IGNORE, IGNORE], spans=[(0, 0)] * 2)
    return MicroBatch(collate([Example(rendered=rendered, pixels=[])]), ("",))


def _micro(rows: Sequence[tuple[str, Example]]) -> MicroBatch:
    return MicroBatch(collate([example for _, example in rows]), tuple(name for name, _ in rows))
