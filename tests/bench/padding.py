"""Padding: what part of the positions that a model computes is trained on, in our `mixed` order and in LLaVA's, on the same rows.

The rows are drawn like LLaVA-1.5's mix of 665,000: 6 % are conversations without a picture, several times as long as the others; a picture
takes 576 positions. A rank's batch is as wide as its longest row. Ours sorts the draws of 32 steps by code points, which the index knows;
LLaVA sorts those of one step by words and then gives every rank long and short ones. Its sampler is written here as it is described in
https://arxiv.org/abs/2310.03744 and by its reference outputs (tests/conformance/test_golden_llava.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shards.order import Order
from tests.bench.figure import Figure
from trainer.data.mixture import Mixture, MixtureSource

ROWS, RANKS, BATCH, SHARD = 65_536, 8, 16, 1024
PATCHES, LONGEST = 576, 2048


@dataclass(frozen=True)
class Rows:
    """Rows of a conversation data set, int64 (n,) each but for `pictured`, bool (n,)."""

    pictured: np.ndarray
    words: np.ndarray  # what LLaVA knows of a row
    characters: np.ndarray  # what our index knows
    positions: np.ndarray  # what the model computes
    trained: np.ndarray  # of these


def measure(quick: bool = False) -> Iterator[Figure]:
    """Percent of the positions, and the positions that all ranks wait for."""
    rows = drawn(4096 if quick else ROWS)
    orders = {"ours": ours(rows), "LLaVA's sampler": theirs(rows), "random order": shuffled(rows)}
    trained = {name: 100 * rows.trained.sum() / _computed(rows, order).sum() for name, order in orders.items()}
    slowest = {name: float(_computed(rows, order).reshape(-1, RANKS).max(1).mean()) for name, order in orders.items()}
    what = f"{len(rows.words):,} rows, {RANKS} ranks x {BATCH}"
    for title, unit, found, below in (
        (f"supervised of all positions, {what}", "%", trained, False),
        (f"positions of the slowest rank in a step, {what}", "", slowest, True),
    ):
        peer, random = found["LLaVA's sampler"], found["random order"]
        yield Figure(title, unit, (found["ours"],), (peer,), "LLaVA's sampler", 1.0, below, {"random order": (random,)})


def drawn(count: int, seed: int = 0) -> Rows:
    """Seeded: words by a log-normal law, five to six characters and 1.2 to 1.5 tokens each, a fifth to three quarters of them answers."""
    chance = np.random.default_rng(seed)
    pictured = chance.random(count) > 0.06
    words = np.where(pictured, chance.lognormal(np.log(110), 0.7, count), chance.lognormal(np.log(420), 0.8, count)).astype(np.int64) + 8
    tokens = (words * chance.uniform(1.2, 1.5, count)).astype(np.int64) + 40
    positions = np.minimum(tokens, LONGEST - 1) + PATCHES * pictured
    trained = (np.minimum(tokens, LONGEST - 1) * chance.uniform(0.2, 0.75, count)).astype(np.int64)
    return Rows(pictured, words, (words * chance.uniform(5, 6, count)).astype(np.int64), positions, trained)


def ours(rows: Rows) -> np.ndarray:
    """An epoch of draw = "mixed": int64 (batches, BATCH), a step's ranks one after the other."""
    order = Order([SHARD] * (len(rows.words) // SHARD), 0)

    def lengths(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = _numbers(*order.at(draws))
        return rows.pictured[numbers], rows.characters[numbers]

    mixture = Mixture([MixtureSource(name="rows", order=order, batch_size=RANKS * BATCH, lengths=lengths)], "mixed", 0)
    position, batches = mixture.start(), []
    for _ in range(len(rows.words) // (RANKS * BATCH)):
        planned = mixture.step(position)
        shares = [mixture.share(planned, rank, RANKS)["rows"] for rank in range(RANKS)]
        batches += [_numbers(share.shard, share.row) for share in shares]
        position = planned.next
    return np.stack(batches)


def theirs(rows: Rows) -> np.ndarray:
    """The same of LLaVA's group_by_modality_length."""
    torch.manual_seed(0)
    return np.array(modality_grouped(np.where(rows.pictured, rows.words, -rows.words).tolist(), BATCH, RANKS)).reshape(-1, BATCH)


def shuffled(rows: Rows) -> np.ndarray:
    """The same without grouping."""
    return np.random.default_rng(1).permutation(len(rows.words)).reshape(-1, BATCH)


def modality_grouped(lengths: Sequence[int], batch: int, ranks: int, generator: torch.Generator | None = None) -> list[int]:
    """Row numbers in LLaVA's order: lengths above 0 have a picture. Every full step has rows of one kind; the last of both comes last.

    Rows are permuted by torch's global generator, steps by the one that is given. Raises ValueError for a length of 0.
    """
    if not all(lengths):
        raise ValueError("lengths: expected numbers other than 0, found one")
    if not lengths:
        return []
    sides = [[at for at, length in enumerate(lengths) if (length > 0) == pictured] for pictured in (True, False)]
    if not all(sides):
        return length_grouped(lengths, batch, ranks, generator)
    size = batch * ranks
    steps, over = [], []
    for side in sides:
        order = [side[at] for at in length_grouped([abs(lengths[at]) for at in side], batch, ranks)]
        *full, last = [order[at : at + size] for at in range(0, len(order), size)]
        steps, over = steps + full, over + last
    mixed = [steps[at] for at in torch.randperm(len(steps), generator=generator).tolist()]
    return [at for step in mixed for at in step] + sorted(over)


def length_grouped(lengths: Sequence[int], batch: int, ranks: int, generator: torch.Generator | None = None) -> list[int]:
    """Row numbers: permuted, cut into steps, each step sorted from the longest and dealt out to the ranks."""
    order, size = torch.randperm(len(lengths), generator=generator).tolist(), batch * ranks
    steps = [sorted(order[at : at + size], key=lambda row: lengths[row], reverse=True) for at in range(0, len(order), size)]
    return [at for step in steps for chunk in even_chunks(step, lengths, ranks) for at in chunk]


def even_chunks(rows: Sequence[int], lengths: Sequence[int], chunks: int) -> list[list[int]]:
    """As many rows in each, each row to the chunk that is shortest so far; every n-th row where they do not come out even."""
    if len(rows) % chunks:
        return [list(rows[first::chunks]) for first in range(chunks)]
    dealt: list[list[int]] = [[] for _ in range(chunks)]
    totals = [0.0] * chunks
    for row in rows:
        shortest = totals.index(min(totals))
        dealt[shortest].append(row)
        totals[shortest] = float("inf") if len(dealt[shortest]) == len(rows) // chunks else totals[shortest] + lengths[row]
    return dealt


def _numbers(shard: np.ndarray, row: np.ndarray) -> np.ndarray:
    return shard * SHARD + row


def _computed(rows: Rows, batches: np.ndarray) -> np.ndarray:
    """Positions of each batch, its padding among them."""
    return rows.positions[batches].max(1) * BATCH
