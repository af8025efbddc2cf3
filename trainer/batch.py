"""Rendered records to one batch. Axes: B rows, T tokens, N pictures of the whole batch, C channels, H and W pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer.pixels import Pixels
from trainer.rendered import IGNORE, Rendered


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

    def to(self, device: torch.device | str) -> Batch:
        """The batch on this device."""
        pixels_NCHW = None if self.pixels_NCHW is None else self.pixels_NCHW.to(device)
        ids_BT, labels_BT, mask_BT = (tensor.to(device) for tensor in (self.ids_BT, self.labels_BT, self.mask_BT))
        return Batch(ids_BT=ids_BT, labels_BT=labels_BT, mask_BT=mask_BT, pixels_NCHW=pixels_NCHW)


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
    return Batch(ids_BT=ids_BT, labels_BT=labels_BT, mask_BT=mask_BT, pixels_NCHW=pixels_NCHW)
