"""wids, with torchdata's StatefulDataLoader for the state that it has not. https://github.com/webdataset/webdataset/tree/main/wids"""

# pyright: reportMissingImports=false, reportArgumentType=false

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import wids
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.bench.peers.protocol import Ask, Batches, loaded, main


def make(source: Path, target: Path, shard_bytes: int) -> None:
    """Our tars, and the index that its own command makes."""
    target.mkdir(parents=True)
    tars = sorted(source.glob("*.tar"))
    for tar in tars:
        os.link(tar, target / tar.name)
    command = [Path(sys.executable).parent / "widsindex", "create", "--name", "bench", "--output", "wids.json", *(tar.name for tar in tars)]
    subprocess.run(command, cwd=target, check=True, stdout=subprocess.DEVNULL)


def open(ask: Ask) -> tuple[Iterable[Any], Callable[[], Any] | None]:
    """A map-style data set in order, or shuffled by its own sampler."""
    with contextlib.redirect_stdout(sys.stderr):
        data = wids.ShardListDataset(
            f"{ask.place}/wids.json", base=ask.place, localname=lambda name: name, transformations=partial(_sample, ask.work)
        )
    sampler = wids.ChunkedSampler(data, chunksize=1000, shuffle=True) if ask.shuffle else range(ask.rank, len(data), ask.ranks)
    if ask.plain:
        return Batches(lambda: map(data.__getitem__, sampler), ask.batch), None
    loader = loaded(data, ask, partial(StatefulDataLoader, sampler=sampler, snapshot_every_n_steps=10))
    if ask.state:
        loader.load_state_dict(ask.state)
    return loader, loader.state_dict


def _sample(work: Callable[..., Any], sample: dict[str, Any]) -> Any:
    return work(sample["__key__"], sample[".0.jpg"].read(), sample[".json"].read())


if __name__ == "__main__":
    main(make, open)
