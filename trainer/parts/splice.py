"""Pictures into the row of tokens. Axes: B rows, T tokens, S spliced positions, N pictures, P patches, D width."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from trainer.text.rendered import IGNORE, IMAGE


class Spliced(NamedTuple):
    """Right-padded: 0 in embeds, IGNORE in labels, 0 in the mask."""

    embeds_BSD: torch.Tensor
    labels_BS: torch.Tensor
    mask_BS: torch.Tensor  # int64


def splice(
    ids_BT: torch.Tensor, labels_BT: torch.Tensor, mask_BT: torch.Tensor, embed: torch.nn.Module, features_NPD: torch.Tensor, longest: int
) -> Spliced:
    """Every IMAGE becomes the P positions of the next picture, untrained; a row longer than `longest` is cut.

    The pictures are taken in row order, then reading order: N is the number of IMAGEs that the mask lets through, or more.
    """
    kept = ids_BT[mask_BT]
    lengths = mask_BT.sum(1).tolist()
    words_KD = embed(kept.clamp(min=0))
    rows, labels, picture, start = [], [], 0, 0
    for length, labels_T in zip(lengths, labels_BT[mask_BT].split(lengths), strict=True):
        row, label, at = [], [], start
        for place in (kept[start : start + length] == IMAGE).nonzero()[:, 0].tolist():
            features_PD = features_NPD[picture]
            row += [words_KD[at : start + place], features_PD]
            label += [labels_T[at - start : place], labels_T.new_full((len(features_PD),), IGNORE)]
            at, picture = start + place + 1, picture + 1
        none_PD = features_NPD.flatten(0, 1)[:0]  # nothing, but a row without pictures too has a graph to them
        rows.append(torch.cat([*row, words_KD[at : start + length], none_PD])[:longest])
        labels.append(torch.cat([*label, labels_T[at - start :]])[:longest])
        start += length
    mask = [torch.ones(len(row), dtype=torch.int64, device=row.device) for row in rows]
    return Spliced(
        pad_sequence(rows, batch_first=True),
        pad_sequence(labels, batch_first=True, padding_value=IGNORE),
        pad_sequence(mask, batch_first=True),
    )
