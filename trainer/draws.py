"""Which record a draw serves: a pure function of seed, source and draw number, so there is nothing to save but the number.

For now one permutation a source and epoch; the order over windows of shards, the kinds of mixture and the split over ranks come in
here, behind the same functions.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence

import numpy as np

from schemas import Record, Turn


def record_at(seed: int, source: str, draw: int, records: int) -> int:
    """The index below `records` that this draw serves. Every `records` draws serve each index once."""
    epoch, place = divmod(draw, records)
    return int(_order(seed, source, epoch, records)[place])


def turns_at(seed: int, source: str, draw: int, record: Record) -> Sequence[Turn]:
    """The record's turns or one of its choices, each as likely."""
    if not record.choices:
        return record.turns
    choice = int(_numbers(seed, source, draw, "choice", 1)[0] % (len(record.choices) + 1))
    return record.choices[choice - 1].turns if choice else record.turns


@functools.lru_cache(maxsize=64)  # neighbouring draws share an epoch
def _order(seed: int, source: str, epoch: int, records: int) -> np.ndarray:
    return np.argsort(_numbers(seed, source, epoch, "order", records), kind="stable")


def _numbers(seed: int, source: str, number: int, purpose: str, count: int) -> np.ndarray:
    """uint64 (count,). Raw bits, because numpy promises those forever and what its generators make of them it does not."""
    words = [seed, zlib.crc32(source.encode()), number, zlib.crc32(purpose.encode())]
    return np.random.Philox(np.random.SeedSequence(words)).random_raw(count)
