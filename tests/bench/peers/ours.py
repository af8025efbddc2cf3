"""shardweave: whole shards in written order, every record's CRC-32 checked; shuffled, the stream that a rank of a training run reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import shards
from shards.cache import Cache
from shards.order import Order
from shards.stream import Stream
from tests.bench.peers.protocol import Ask, Batches, Work, main, touch


def make(source: Path, target: Path, shard_bytes: int) -> None:
    """The others are made from it."""


def open(ask: Ask) -> tuple[Iterable[Any], Callable[[], Any] | None]:
    """In written order, or the shuffled one."""
    data = shards.open(ask.place, cache=None if ask.cache == "None" else Cache(Path(ask.cache)))
    if ask.plain and not ask.shuffle:
        work = _key if ask.work is touch else _worked(ask.work)  # the reader has looked at every byte
        return Batches(lambda: map(work, data), ask.batch), None
    if ask.processes:
        return in_processes(ask), None
    order = Order([len(shard) for shard in data.shards], 0)
    given = {"rank": ask.rank, "ranks": ask.ranks, "first": ask.state or 0, "workers": ask.workers, "work": _worked(ask.work)}
    stream = Stream(data, order, batch=ask.batch * ask.ranks, finish=_stacked if ask.tensors else list, **given)
    return Epoch(stream), lambda: stream.draw


def in_processes(ask: Ask) -> Iterable[Any]:
    """An epoch by torch's DataLoader."""
    from torch.utils.data import DataLoader

    from trainer.dataset import RecordDataset

    data = RecordDataset(ask.place, batch_size=ask.batch, epochs=1, make=lambda source, draw, sample: _worked(ask.work)(sample))
    return DataLoader(data, batch_size=ask.batch, num_workers=ask.workers, collate_fn=lambda items: [item["value"] for item in items])


class Epoch:
    """The stream until the end of the epoch; the batch in which the next begins is cut by who counts records."""

    def __init__(self, stream: Stream[Any]) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Any]:
        records = len(self.stream.data)
        end = (self.stream.draw // records + 1) * records
        for batch in self.stream:
            yield batch
            if self.stream.draw >= end:
                return


def _stacked(batch: list[Any]) -> Any:
    import numpy as np

    return [key for key, _ in batch], np.stack([pixels for _, pixels in batch])


def _worked(work: Work) -> Callable[[Any], Any]:
    return lambda sample: work(sample.key, sample.image(0), b"")  # its JSON was looked at with the rest


def _key(sample: shards.Sample) -> str:
    return sample.key


if __name__ == "__main__":
    main(make, open)
