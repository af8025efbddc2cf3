"""What is left to chance in a draw: a pure function of seed, source, draw and purpose, so that a resumed run is the run."""

from __future__ import annotations

from collections.abc import Sequence

from schemas import Record, Turn
from shards import splitmix


def number(seed: int, source: str, draw: int, purpose: str) -> float:
    """From 0 to below 1, each as likely."""
    return (splitmix.key(seed, source, draw, purpose) >> 11) * 2.0**-53


def turns(seed: int, source: str, draw: int, record: Record) -> Sequence[Turn]:
    """The record's turns or one of its choices, each as likely."""
    if not record.choices:
        return record.turns
    choice = int(number(seed, source, draw, "choice") * (len(record.choices) + 1))
    return record.choices[choice - 1].turns if choice else record.turns
