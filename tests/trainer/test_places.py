"""Training from other places than a folder of ours: a bucket, tars made elsewhere that were indexed. It is the same run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from schemas import StoreError
from shards import foreign
from shards.place import at
from tests.ceph import S3
from tests.shards.foreign_tars import img2dataset
from tests.trainer.forked import Ranks
from trainer.__main__ import main
from trainer.dataset import RecordDataset
from trainer.recipe import Recipe, as_toml

Tiny = Callable[..., Recipe]
STEPS = 6


@pytest.fixture(scope="module")
def laion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of img2dataset's tars, indexed."""
    place = img2dataset(tmp_path_factory.mktemp("laion") / "place", [5, 4, 5])
    foreign.index(place)
    return place


@pytest.fixture
def recipe(tiny: Tiny, tmp_path: Path, laion: Path) -> str:
    """Six steps over them, of four records each."""
    path = tmp_path / "laion.toml"
    settings = (f"steps={STEPS}", "checkpoint.every=2", "log.tensorboard=false", "schedule.kind=constant")
    settings += ("sources.laion.batch_size=4", "sources.laion.window=2")
    path.write_text(as_toml(tiny(*settings, sources=[f"laion={laion}"])))
    return str(path)


@pytest.fixture
def stored(s3: S3, laion: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The same in a bucket."""
    for name, value in {**s3.environment, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    url = f"{s3.bucket()}/laion"
    for path in laion.rglob("*"):
        if path.is_file():
            at(url).upload(path.relative_to(laion).as_posix(), path)
    return url


@pytest.fixture
def ranks(stored: str, root: Path) -> Iterator[Ranks]:
    """Started where the bucket's environment is known, and where nobody has used it."""
    with Ranks(root) as started:
        yield started


def column(out: Path, name: str) -> list[Any]:
    return [json.loads(line)[name] for line in (out / "log.jsonl").read_text().splitlines()]


def test_indexed_tars_are_trained_on_and_gone_on_with_exactly(recipe: str, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"

    assert main(["train", recipe, "--out", str(whole)]) == 0
    assert main(["train", recipe, "--out", str(parted), "--set", "steps=2"]) == 0
    assert main(["train", recipe, "--out", str(parted), "--set", f"steps={STEPS}", "--resume"]) == 0

    assert column(whole, "tokens_supervised")[0] > 0
    assert column(parted, "records") == column(whole, "records")
    assert column(parted, "loss") == column(whole, "loss")


def test_from_a_bucket_it_is_the_run_of_the_folder(recipe: str, stored: str, ranks: Ranks, tmp_path: Path) -> None:
    whole, remote, cache = tmp_path / "whole", tmp_path / "remote", tmp_path / "cache"
    there = ("--source", f"laion={stored}", "--set", f"loader.cache={cache}")

    assert main(["train", recipe, "--out", str(whole)]) == 0
    killed = ranks.run("train", recipe, "--out", str(remote), *there, ranks=2, killed=(1, 3, "before"))
    again = ranks.run("train", recipe, "--out", str(remote), *there, ranks=3)

    assert [rank.status for rank in killed] == [1, -9]
    assert [rank.status for rank in again] == [0, 0, 0], again[0].stderr
    assert "goes on behind step 2" in again[0].stderr
    assert column(remote, "records") == column(whole, "records")
    assert column(remote, "loss") == pytest.approx(column(whole, "loss"), rel=2e-5)
    assert column(remote, "bytes_read_by_source")[0]["laion"] > 0
    assert len(list(cache.glob("*.tar"))) == 3
    assert column(remote, "cache_misses_by_source")[-1]["laion"] == 0  # since the second start: the machine has them already


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_dataloader_workers_read_a_bucket_where_they_are_not_forked(method: str, stored: str, laion: Path) -> None:
    dataset = RecordDataset(stored, batch_size=4, epochs=1)
    loader = DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=list, multiprocessing_context=method, timeout=200)

    if method == "fork":
        with pytest.raises(StoreError, match=r"found one forked from a process that has used object storage.*forkserver"):
            next(iter(loader))
    else:
        found = [item["key"] for items in loader for item in items]
        assert found == [item["key"] for item in RecordDataset(str(laion), batch_size=4, epochs=1)]
