"""No reader at all: the work over bytes that are in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.bench.peers.protocol import Ask, batched, main, records

HELD = 500


def make(source: Path, target: Path, shard_bytes: int) -> None:
    """It reads ours."""


def open(ask: Ask) -> tuple[Iterable[Any], Callable[[], Any] | None]:
    """The first records, over and over."""
    held = list(itertools.islice(records(Path(ask.place)), HELD))
    batches = batched((ask.work(*record) for record in itertools.cycle(held)), ask.batch)
    return (stacked(batch) if ask.tensors else batch for batch in batches), None


def stacked(batch: list[Any]) -> Any:
    """Keys, and uint8 (batch, size, size, 3)."""
    import numpy as np

    return [key for key, _ in batch], np.stack([pixels for _, pixels in batch])


if __name__ == "__main__":
    main(make, open)
