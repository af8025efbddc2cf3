"""megatron-energon over our tars, prepared by its own command. https://nvidia.github.io/Megatron-Energon/"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_savable_loader,
    get_train_dataset,
    get_val_dataset,
    stateless,
)

from tests.bench.peers.protocol import Ask, main
from tests.bench.peers.store import options


def make(source: Path, target: Path, shard_bytes: int) -> None:
    """Our tars and what `energon prepare` makes of them."""
    target.mkdir(parents=True)
    for tar in source.glob("*.tar"):
        os.link(tar, target / tar.name)
    command = [Path(sys.executable).parent / "energon", "prepare", str(target), "--non-interactive", "--split-ratio", "1,0,0"]
    command += ["--sample-type", "CrudeWebdataset", "--num-workers", "2", "--no-progress"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@edataclass
class Worked(Sample):
    """What the work gave."""

    done: Any


class Encoder(DefaultTaskEncoder):  # pyright: ignore
    """Work in the cooker; nothing is decoded for us."""

    decoder = None

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self.ask = ask
        self.cookers = [Cooker(self.cook)]

    @stateless
    def cook(self, sample: dict[str, Any]) -> Worked:
        return Worked(
            **basic_sample_keys(sample), done=self.ask.work(sample["__key__"].rpartition("/")[2], sample["0.jpg"], sample["json"])
        )

    @stateless
    def batch(self, samples: list[Worked]) -> Any:
        from torch.utils.data import default_collate

        items = [sample.done for sample in samples]
        return default_collate(items) if self.ask.tensors else items


def open(ask: Ask) -> tuple[Iterable[Any], Callable[[], Any] | None]:
    """In order: its validation data set over the training part; shuffled: its training data set."""
    place = _remote(ask.place) if ask.remote else ask.place
    worker = WorkerConfig(rank=ask.rank, world_size=ask.ranks, num_workers=ask.workers)
    given = {"worker_config": worker, "batch_size": ask.batch, "task_encoder": Encoder(ask), "split_part": "train"}
    if ask.shuffle:
        data = get_train_dataset(place, shuffle_buffer_size=1000, max_samples_per_sequence=1000, repeat=False, **given)  # pyright: ignore
    else:
        data = get_val_dataset(place, **given)  # pyright: ignore
    loader = get_savable_loader(data)
    if ask.state:
        loader.restore_state_rank(ask.state)
    return loader, loader.save_state_rank


def _remote(place: str) -> str:
    """The same in the words of the multi-storage client, which reads S3 for it."""
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    provider = {"type": "s3", "options": {"base_path": bucket, "endpoint_url": options()["endpoint"], "region_name": "us-east-1"}}
    keys = {"type": "S3Credentials", "options": {"access_key": options()["key"], "secret_key": options()["secret"]}}
    path = Path(os.environ["TMPDIR"]) / f"msc-{os.getpid()}.json"
    path.write_text(json.dumps({"profiles": {"bench": {"storage_provider": provider, "credentials_provider": keys}}}))
    os.environ["MSC_CONFIG"] = str(path)
    return f"msc://bench/{prefix}"


if __name__ == "__main__":
    main(make, open)
