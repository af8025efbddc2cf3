"""mosaicml-streaming, shards of its own. https://docs.mosaicml.com/projects/streaming"""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from tests.bench.peers.protocol import Ask, Batches, loaded, main, records
from tests.bench.peers.store import options


def make(source: Path, target: Path, shard_bytes: int) -> None:
    """Shards of this size, with hashes."""
    columns = {"key": "str", "jpeg": "bytes", "json": "bytes"}
    with MDSWriter(out=str(target), columns=columns, hashes=["xxh64"], size_limit=shard_bytes) as writer:
        for record in records(source):
            writer.write(record._asdict())


def open(ask: Ask) -> tuple[Iterable[Any], Callable[[], Any] | None]:
    """Hashes are checked where shards are fetched, which is where it checks them."""
    clean_stale_shared_memory()
    where: dict[str, Any] = {"local": ask.place}
    if ask.remote:
        os.environ |= {
            "S3_ENDPOINT_URL": options()["endpoint"],
            "AWS_ACCESS_KEY_ID": options()["key"],
            "AWS_SECRET_ACCESS_KEY": options()["secret"],
        }
    if ask.cache != "None":
        where = {"remote": ask.place, "local": ask.cache, "validate_hash": "xxh64"}
    data = Worked(ask.work, shuffle=ask.shuffle, batch_size=ask.batch, num_canonical_nodes=1, **where)
    if ask.plain:
        return Batches(lambda: data, ask.batch), None
    loader = loaded(data, ask, StreamingDataLoader)
    if ask.state:
        loader.load_state_dict(ask.state)
    return loader, loader.state_dict


class Worked(StreamingDataset):
    """With the work in __getitem__, as documented."""

    def __init__(self, work: Callable[..., Any], **given: Any) -> None:
        super().__init__(**given)
        self.work = work

    def __getitem__(self, at: int) -> Any:
        item = super().__getitem__(at)
        return self.work(item["key"], item["jpeg"], item["json"])


if __name__ == "__main__":
    main(make, open)
