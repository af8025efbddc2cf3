"""HF datasets, streaming over our tars. https://huggingface.co/docs/datasets/stream

Its folder has our README.md, without which it refuses or drops what varies. JSON comes as parsed objects: it looks at every byte of it.
Object storage: presigned URLs; by s3:// it opens no tar (5.2.0 hands s3fs a block_size that it does not take).
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Image, load_dataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.bench.peers.protocol import Ask, column, loaded, main
from tests.bench.peers.store import presigned


def make(source: Path, target: Path, shard_bytes: int) -> None:
    """Our tars and our card."""
    target.mkdir(parents=True)
    for path in (*source.glob("*.tar"), source / "README.md"):
        os.link(path, target / path.name)


def open(ask: Ask) -> tuple[Iterable[Any], Callable[[], Any] | None]:
    """A streaming data set, its pictures left as bytes."""
    if ask.remote:
        data = load_dataset("webdataset", data_files={"train": presigned(ask.place, ".tar")}, split="train", streaming=True)
    else:
        data = load_dataset(ask.place, split="train", streaming=True)
    data = split_dataset_by_node(data, ask.rank, ask.ranks) if ask.ranks > 1 else data
    data = data.cast_column("0.jpg", Image(decode=False))
    data = data.shuffle(seed=0, buffer_size=1000) if ask.shuffle else data
    data = data.map(
        lambda row: {"x": ask.work(row["__key__"], row["0.jpg"]["bytes"], None if row["json"] is None else b"")},
        remove_columns=data.column_names,
    )
    if ask.plain:
        return Rows(data, ask.batch), None
    collate = partial(_collated, default_collate if ask.tensors else column)
    if not ask.stateful:
        return loaded(data, ask, collate=collate), None
    loader = loaded(data, ask, StatefulDataLoader, collate)
    if ask.state:
        loader.load_state_dict(ask.state)
    return loader, loader.state_dict


def _collated(collate: Callable[[list[Any]], Any], rows: list[Any]) -> Any:
    return collate([row["x"] for row in rows])


class Rows:
    """What `map` made, in this process."""

    def __init__(self, data: Any, batch: int) -> None:
        self.data, self.batch = data, batch

    def __iter__(self) -> Any:
        return (batch["x"] for batch in self.data.iter(self.batch))


if __name__ == "__main__":
    main(make, open)
