"""webdataset, 0.2 and 1.0. https://webdataset.github.io/webdataset/

Its own writer makes an extra header a member; from tars without (ours) it reads twice as fast. Object storage: presigned URLs, which it
reads through curl. No state: going on means reading what was served again.
"""

# pyright: reportArgumentType=false

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import webdataset as wds

from tests.bench.peers.protocol import Ask, Batches, loaded, main, records
from tests.bench.peers.store import presigned


def make(source: Path, target: Path, shard_bytes: int) -> None:
    """Tars as its own writer makes them."""
    target.mkdir(parents=True)
    with wds.ShardWriter(str(target / "%06d.tar"), maxsize=shard_bytes, verbose=0) as writer:
        for record in records(source):
            writer.write({"__key__": record.key, "jpg": record.jpeg, "json": record.json})


def open(ask: Ask) -> tuple[Iterable[Any], Callable[[], Any] | None]:
    """A pipeline over all tars."""
    tars = presigned(ask.place, ".tar") if ask.remote else sorted(map(str, Path(ask.place).glob("*.tar")))
    if "BENCH_TARS" in os.environ:  # as a brace pattern would name them
        tars = [f"{ask.place}/{name}" for name in os.environ["BENCH_TARS"].split(",")]
    cache = {}
    if ask.cache != "None":
        Path(ask.cache).mkdir(parents=True, exist_ok=True)
        cache = {"cache_dir": ask.cache}
    data = wds.WebDataset(tars, shardshuffle=len(tars) if ask.shuffle else False, nodesplitter=wds.split_by_node, **cache)
    data = data.shuffle(1000) if ask.shuffle else data
    data = data.map(lambda sample: ask.work(sample["__key__"], sample["jpg"] if "jpg" in sample else sample["0.jpg"], sample.get("json")))
    if ask.workers or ask.tensors:
        batches = loaded(data, ask, wds.WebLoader)
        return (itertools.islice(batches, ask.skip // ask.batch, None) if ask.skip else batches), None
    return Batches(lambda: itertools.islice(data, ask.skip, None), ask.batch), None


if __name__ == "__main__":
    main(make, open)
