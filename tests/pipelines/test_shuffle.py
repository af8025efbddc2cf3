"""Shuffle: the same records and keys in another order, which the seed alone decides; nothing is lost, and nothing stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
from pipelines import shuffle
from pipelines.__main__ import main
from pipelines.shuffle import Order
from shards.check import check
from shards.place import at
from tests.ceph import S3
from tests.pipelines.conversion import ENVIRONMENT, KILLER, adds_up, arguments, files, key, laid, manifest, pictured
from tests.pipelines.upstreams import made

ROWS = 150  # 50 units of 3
SEED = 7


@pytest.fixture(scope="module")
def upstream(ground: Path) -> Path:
    """LLaVA rows, some bad, one with a bad picture of two, two alike."""
    rows, _ = pictured(ground / "upstream", ROWS)
    rows[20] = {"id": 20}
    rows[50]["image"] = "gone.jpg"
    rows[51]["image"] = "also-gone.jpg"
    rows[70] = {**rows[30], "id": 70}
    rows[90]["image"], rows[90]["conversations"][0]["value"] = ["90.jpg", "gone.jpg"], "<image> or <image>"
    return laid(ground / "upstream", rows)


@pytest.fixture(scope="module")
def plain(upstream: Path, ground: Path) -> Path:
    """The conversion without a shuffle."""
    assert main(arguments(upstream, ground / "plain", "--workers", 1)) == 0
    return ground / "plain"


@pytest.fixture(scope="module")
def shuffled(upstream: Path, ground: Path) -> Path:
    assert main(arguments(upstream, ground / "shuffled", "--workers", 1, "--shuffle", SEED)) == 0
    return ground / "shuffled"


ORDER = Order(SEED, [3] * 50)


def ids(place: Path) -> list[int]:
    return [json.loads(sample.record.meta)["id"] for sample in shards.open(place)]


def ledger(place: Path) -> list[dict[str, Any]]:
    return pq.read_table(place / "rejects.parquet").to_pylist()


def test_every_record_is_there_once_in_another_order(plain: Path, shuffled: Path) -> None:
    adds_up(shuffled)

    assert sorted(ids(shuffled)) == ids(plain)
    assert ids(shuffled) != ids(plain)
    moved = np.abs(np.argsort(ids(shuffled)) - np.arange(len(ids(plain))))
    assert 30 < moved.mean() < 70  # a third of 147, if they are anywhere


def test_each_record_is_where_the_seed_says_and_what_it_was(plain: Path, shuffled: Path) -> None:
    before = shards.open(plain)
    for sample in shards.open(shuffled):
        item = ORDER.item(sample.key)
        old, new = before.get(key(item)), sample.record
        assert ORDER.keys([item]) == [sample.key]
        assert [bytes(sample.image(n)) for n in range(len(new.images))] == [bytes(old.image(n)) for n in range(len(new.images))]
        assert [image.member for image in new.images] == [f"{sample.key}.{n}.jpg" for n in range(len(new.images))]
        new.key = old.record.key
        for image in new.images:
            image.member = image.member.replace(sample.key, new.key)
        assert new == old.record


def test_sums_and_reasons_are_those_of_the_conversion(plain: Path, shuffled: Path) -> None:
    before, after = manifest(plain), manifest(shuffled)

    for name in ("totals", "rejected", "images_dropped", "regions_dropped", "inputs", "suffixes"):
        assert after[name] == before[name], name
    assert after["totals"] == {"read": 150, "written": 147, "rejected": 3, "images": 147}
    assert after["options"] == {**before["options"], "shuffle": SEED}
    assert after["fingerprint"] != before["fingerprint"]


def test_rejects_are_listed_in_the_inputs_order_under_the_keys_that_they_would_have_had(plain: Path, shuffled: Path) -> None:
    assert ledger(shuffled) == [{**found, "key": ORDER.keys([found["row"]])[0]} for found in ledger(plain)]
    keys = {sample.key for sample in shards.open(shuffled)}
    assert not keys & {found["key"] for found in ledger(shuffled)}
    assert keys | {found["key"] for found in ledger(shuffled)} == {key(row) for row in range(ROWS)}


def test_nothing_is_left_of_the_staged_data_set(plain: Path, shuffled: Path) -> None:
    assert not (shuffled / "_shuffle").exists()
    assert {name for name in files(shuffled) if "tar" not in name and "parquet" not in name} == {
        name for name in files(plain) if "tar" not in name and "parquet" not in name
    }


def test_a_finished_run_again_changes_nothing_and_clears_what_a_kill_has_left(upstream: Path, shuffled: Path) -> None:
    before = files(shuffled)
    (shuffled / "_shuffle").mkdir()
    (shuffled / "_shuffle/000000-000.tar").write_bytes(b"what a run was removing when it was killed")

    assert main(arguments(upstream, shuffled, "--workers", 1, "--shuffle", SEED)) == 0
    assert files(shuffled) == before


def test_two_workers_give_the_same_bytes(upstream: Path, shuffled: Path, ground: Path) -> None:
    out = ground / "two"
    given = [sys.executable, "-m", "pipelines", *arguments(upstream, out, "--workers", 2, "--shuffle", SEED)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)

    assert done.returncode == 0, done.stderr
    assert files(out) == files(shuffled)


def test_a_run_killed_at_15_moments_and_continued_gives_the_same_bytes(upstream: Path, shuffled: Path, ground: Path) -> None:
    out = ground / "killed"
    given = [sys.executable, "-c", KILLER, str(out), "15", *arguments(upstream, out, "--workers", 1, "--shuffle", SEED)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)

    assert done.returncode == 0, done.stderr
    for place in (out, *ground.glob("killed.*")):
        if (place / "_shuffle").exists():  # killed after its manifest was written
            assert main(arguments(upstream, place, "--workers", 1, "--shuffle", SEED)) == 0
        assert files(place) == files(shuffled), place.name


def test_another_seed_is_another_order_and_another_run(
    upstream: Path, shuffled: Path, ground: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(upstream, ground / "other", "--workers", 1, "--shuffle", 0)) == 0
    assert ids(ground / "other") != ids(shuffled)
    assert sorted(ids(ground / "other")) == sorted(ids(shuffled))

    capsys.readouterr()
    assert main(arguments(upstream, shuffled, "--shuffle", 8)) == 2
    assert "expected shuffle 7 to go on, found 8" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", "", str(2**64)])
def test_a_seed_that_is_none_is_one_line(upstream: Path, ground: Path, capsys: pytest.CaptureFixture[str], seed: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(upstream, ground / "wrong", "--shuffle=" + seed))

    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "--shuffle" in lines[0]


def test_duplicates_are_told_by_the_key_that_the_first_one_has_now(upstream: Path, ground: Path) -> None:
    out = ground / "both"
    assert main(arguments(upstream, out, "--workers", 1, "--shuffle", SEED, "--duplicates", "images")) == 0

    adds_up(out)
    (found,) = [found for found in ledger(out) if found["reason"] == "duplicate_record"]
    assert (found["row"], found["key"]) == (70, ORDER.keys([70])[0])
    first = ORDER.keys([30])[0]
    assert found["detail"] == f"expected another content than record {first}, found the same"
    assert json.loads(shards.open(out).get(first).record.meta)["id"] == 30
    assert not {"_shuffle", "_duplicates"} & set(os.listdir(out))


@pytest.mark.parametrize("source", ["coco", "grand", "laion", "mmc4", "visual_genome"])
def test_every_source_is_shuffled(source: str, tmp_path: Path) -> None:
    _, flags = made(source, tmp_path / "upstream")
    for out, more in (("plain", []), ("shuffled", ["--shuffle", "3", "--duplicates", "records"])):
        given = ["convert", source, *flags, "--out", tmp_path / out, "--workers", 1, *more]
        assert main([str(one) for one in given]) == 0

    assert check(tmp_path / "shuffled", deep=True).problems == []
    origins = [
        sorted(image.origin or "" for sample in shards.open(tmp_path / out) for image in sample.record.images)
        for out in ("plain", "shuffled")
    ]
    assert origins[0] == origins[1]
    assert len(origins[0]) == 3


def test_what_is_damaged_between_the_passes_is_named(
    upstream: Path, ground: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = shuffle.prepared

    def damaged(*given: Any) -> Any:
        found = prepared(*given)
        path = ground / "damaged/_shuffle/000004-000.tar"
        data = bytearray(path.read_bytes())
        data[600] ^= 1
        path.write_bytes(data)
        return found

    monkeypatch.setattr(shuffle, "prepared", damaged)

    assert main(arguments(upstream, ground / "damaged", "--workers", 1, "--shuffle", SEED)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: _shuffle/000004-000.tar: record at 0 altered: expected crc32")


def test_a_few_bytes_are_read_at_a_time_and_the_same_is_written(
    upstream: Path, shuffled: Path, ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "PIECE", 1)
    monkeypatch.setattr(shuffle, "AHEAD", 2)

    assert main(arguments(upstream, ground / "few", "--workers", 1, "--shuffle", SEED)) == 0
    assert files(ground / "few") == files(shuffled)


def test_on_object_storage_it_is_the_same_data_set(upstream: Path, shuffled: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    out = f"{s3.bucket()}/set"

    assert main(arguments(upstream, out, "--workers", 1, "--shuffle", SEED, "--duplicates", "records", "--limit", 60)) == 0

    found = shards.open(out)
    assert sorted(json.loads(sample.record.meta)["id"] for sample in found) == [n for n in range(60) if n not in (20, 50, 51)]
    assert not [name for name, _ in at(out).names() if name.startswith(("_shuffle/", "_duplicates/"))]


def test_an_order_by_hand() -> None:
    order = Order(7, [2, 0, 3, 1])

    assert order.keys(range(6)) == [f"{unit:06d}-{row:08d}" for unit, row in ((2, 2), (0, 0), (2, 0), (3, 0), (2, 1), (0, 1))]
    assert [order.items(unit).tolist() for unit in range(4)] == [[1, 5], [], [2, 4, 0], [3]]
    assert Order(0, [10]).items(0).tolist() == [4, 8, 0, 6, 1, 3, 9, 7, 5, 2]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 2**63))
def test_an_order_serves_every_place_once_and_can_be_asked_from_either_side(sizes: list[int], seed: int) -> None:
    order, everyone = Order(seed, sizes), np.arange(sum(sizes))

    keys = order.keys(everyone)

    assert sorted(keys) == [f"{unit:06d}-{row:08d}" for unit, size in enumerate(sizes) for row in range(size)]
    assert [order.item(key) for key in keys] == everyone.tolist()
    assert np.concatenate([order.items(unit) for unit in range(len(sizes))]).tolist() == [order.item(key) for key in sorted(keys)]
