"""litdata, chunks of its own. https://github.com/Lightning-AI/litData"""

# pyright: reportCallIssue=false, reportMissingImports=false

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from litdata import StreamingDataLoader, StreamingDataset, optimize
from litdata.streaming import downloader

from tests.bench.peers.protocol import Ask, Batches, loaded, main, tar_records
from tests.bench.peers.store import options


def make(source: Path, target: Path, shard_bytes: int) -> None:
    """Chunks of this size."""
    with contextlib.redirect_stdout(sys.stderr):
        optimize(
            _items,
            sorted(map(str, source.glob("*.tar"))),
            str(target),
            chunk_bytes=shard_bytes,
            num_workers=1,
            keep_data_ordered=True,
            verbose=False,
        )


def _items(tar: str) -> Iterable[dict[str, Any]]:
    for record in tar_records(Path(tar)):
        yield record._asdict()


def open(ask: Ask) -> tuple[Iterable[Any], Callable[[], Any] | None]:
    """Local chunks are mapped where they lie; those of a store come into its cache."""
    storage = {}
    if ask.remote:
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # it has no option for a store without TLS
        storage = {
            "endpoint_url": options()["endpoint"],
            "aws_access_key_id": options()["key"],
            "aws_secret_access_key": options()["secret"],
        }
    cache = None if ask.cache == "None" else ask.cache
    data = StreamingDataset(
        ask.place,
        cache_dir=cache,
        shuffle=ask.shuffle,
        seed=0,
        transform=partial(_work, ask.work),
        storage_options=storage,
        drop_last=False,
    )
    if ask.plain:
        return Batches(lambda: data, ask.batch), None
    loader = loaded(data, ask, StreamingDataLoader)
    if ask.state:
        loader.load_state_dict(ask.state)
    return loader, loader.state_dict


def _work(work: Callable[..., Any], item: dict[str, Any]) -> Any:
    return work(item["key"], item["jpeg"], item["json"])


if __name__ == "__main__":
    main(make, open)
