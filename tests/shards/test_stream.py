"""A rank's records in the source's order: exact from any draw, whatever the workers; holes for what is damaged; a clean end always."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shards
from schemas import RecordError, RequestError, ShardError, StoreError
from shards.budget import Budget, BudgetError
from shards.cache import Cache
from shards.order import Order
from shards.place import at
from shards.stream import Stream
from shards.throughput import measure
from tests import ceph
from tests import proxy as proxies
from tests.shards.records import several


@pytest.fixture(scope="session")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished data set of 40 records in 6 shards. Not to be changed: copy it."""
    place = tmp_path_factory.mktemp("forty") / "place"
    made = shards.write(place, several(40), source="made", shard_bytes=20_000)
    assert len(made.shards) == 6
    return place


@pytest.fixture
def copied(forty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(forty, tmp_path / "copy"))


def order_of(data: shards.Shards, **options: Any) -> Order:
    return Order([len(shard) for shard in data.shards], **{"seed": 3, "window": 3, **options})


def keys(place: Path | str, batches: int, **options: Any) -> list[list[str]]:
    """Keys of the first batches."""
    with shards.open(place) as data:
        stream = Stream(data, options.pop("order", None) or order_of(data), **{"batch": 8, **options})
        return [[sample.key for sample in batch] for batch in itertools.islice(stream, batches)]


def flat(batches: list[list[str]]) -> list[str]:
    return [key for batch in batches for key in batch]


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(("stream", "shardweave"))}


def test_an_epoch_is_every_record_once(forty: Path) -> None:
    every = [sample.key for sample in shards.open(forty)]

    assert sorted(flat(keys(forty, 5))) == every
    assert sorted(flat(keys(forty, 10))) == sorted(every * 2)


def test_the_order_is_the_orders(forty: Path) -> None:
    with shards.open(forty) as data:
        shard, row = order_of(data).at(range(8))  # type: ignore[arg-type]
        expected = {data.shards[s][r].key for s, r in zip(shard.tolist(), row.tolist(), strict=True)}

    assert set(keys(forty, 1)[0]) == expected


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("resampled", [False, True])
def test_workers_change_nothing(forty: Path, workers: int, resampled: bool) -> None:
    with shards.open(forty) as data:
        order = order_of(data, resampled=resampled, quota=5)

    assert keys(forty, 12, order=order, workers=workers) == keys(forty, 12, order=order, workers=2)


@pytest.mark.parametrize("ranks", [2, 3, 11])
def test_ranks_share_each_batch(forty: Path, ranks: int) -> None:
    whole = keys(forty, 12)

    of_ranks = [keys(forty, 12, rank=rank, ranks=ranks) for rank in range(ranks)]

    for number, batch in enumerate(whole):
        parts = [batches[number] for batches in of_ranks]
        assert sorted(flat(parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("stopped", [1, 4, 5, 7])
def test_it_goes_on_from_any_draw_with_other_workers(forty: Path, stopped: int) -> None:
    whole = keys(forty, 12)

    with shards.open(forty) as data:
        before = Stream(data, order_of(data), batch=8, workers=3)
        assert len(list(itertools.islice(before, stopped))) == stopped

    assert before.draw == 8 * stopped  # not what was read ahead
    assert keys(forty, 12 - stopped, first=before.draw, workers=1) == whole[stopped:]


def test_iterating_again_goes_on(forty: Path) -> None:
    with shards.open(forty) as data:
        stream = Stream(data, order_of(data), batch=8)
        parts = [[[sample.key for sample in batch] for batch in itertools.islice(stream, 3)] for _ in range(2)]

    assert parts[0] + parts[1] == keys(forty, 6)


def test_work_is_done_in_the_workers(forty: Path) -> None:
    with shards.open(forty) as data:
        stream = Stream(data, order_of(data), batch=8, work=lambda sample: threading.current_thread().name)
        names = {name for batch in itertools.islice(stream, 5) for name in batch}

    assert names <= {"stream-0", "stream-1"}


def test_a_batch_may_be_larger_than_the_set(forty: Path) -> None:
    (batch,) = keys(forty, 1, batch=100)

    assert len(batch) == 100
    assert len(set(batch)) == 40


def test_shards_behind_are_closed(forty: Path) -> None:
    with shards.open(forty) as data:
        order = order_of(data, window=1)
        for batch in itertools.islice(Stream(data, order, batch=2, workers=0), 200):
            assert batch
            assert sum(shard.is_open for shard in data.shards) <= 4  # this batch's windows, one ahead, and one more at an edge
    assert not any(shard.is_open for shard in data.shards)


def test_who_stops_early_leaves_no_thread(forty: Path) -> None:
    with shards.open(forty) as data:
        for _ in Stream(data, order_of(data), batch=8, workers=3):
            break

    assert not threads()


# damage


def damaged(place: Path, row: int) -> str:
    """A bit of a record's picture flipped; its key."""
    shard = shards.open(place).shards[2]
    offset = shard.members(row)[0][1] + 20
    data = bytearray((place / shard.name).read_bytes())
    data[offset] ^= 1
    (place / shard.name).write_bytes(data)
    return shard.index.keys[row]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_record_leaves_a_hole_and_shifts_nothing(forty: Path, copied: Path, workers: int) -> None:
    key = damaged(copied, 3)
    budget = Budget(where="copied")

    found = keys(copied, 10, workers=workers, budget=budget)

    assert found == [[other for other in batch if other != key] for batch in keys(forty, 10)]
    assert (budget.read, budget.skipped) == (80, 2)


def test_a_damaged_record_is_named_with_shard_and_key(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = damaged(copied, 3)

    keys(copied, 5)

    (line,) = (entry.getMessage() for entry in caplog.records if "skipped" in entry.getMessage())
    assert f"000000-002.tar {key}: record altered" in line


@pytest.mark.parametrize("what", ["missing", "cut", "index"])
def test_a_damaged_shard_is_named_once_and_leaves_holes(forty: Path, copied: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    hurt(copied, what)
    gone = set(shards.open(forty).shards[2].index.keys)
    budget = Budget(rate=0.2, run=2, where="copy", shards=shards.open(forty).sizes)

    found = keys(copied, 10, budget=budget)

    assert found == [[key for key in batch if key not in gone] for batch in keys(forty, 10)]
    assert budget.lost == {"000000-002.tar"}
    assert budget.skipped == 2 * len(gone)  # in two epochs
    (line,) = (entry.getMessage() for entry in caplog.records if "lost" in entry.getMessage())
    assert line.startswith(f"copy: lost {len(gone)} records: 000000-002.")


@pytest.mark.parametrize("what", ["missing", "cut", "index"])
def test_a_damaged_shard_that_is_much_of_the_place_ends_the_reading(copied: Path, what: str) -> None:
    hurt(copied, what)

    with pytest.raises(
        BudgetError, match=r"copy: lost shards: expected at most 1.000% of 40 records, found \d in 1, the last: 000000-002\."
    ):
        keys(copied, 10)
    assert not threads()


def hurt(place: Path, what: str) -> None:
    """The third shard, as a whole."""
    tar, index = place / "000000-002.tar", place / "000000-002.parquet"
    if what == "missing":
        tar.unlink()
    elif what == "cut":
        os.truncate(tar, 10_240)
    else:
        index.write_bytes(index.read_bytes()[:-1])


def test_a_shard_that_is_cut_while_it_is_read_is_lost_and_kills_nobody(forty: Path, copied: Path) -> None:
    gone = set(shards.open(forty).shards[2].index.keys)
    with shards.open(copied) as data:
        stream = Stream(data, order_of(data), batch=8, workers=0, budget=Budget(rate=0.2, shards=data.sizes))
        batches = ([sample.key for sample in batch] for batch in stream)
        before = list(itertools.islice(batches, 5))
        os.truncate(copied / "000000-002.tar", 0)
        after = list(itertools.islice(batches, 5))

    assert before == keys(forty, 5)
    assert after == [[key for key in batch if key not in gone] for batch in keys(forty, 10)[5:]]


def test_a_place_without_its_shards_ends_at_once(copied: Path) -> None:
    for tar in copied.glob("*.tar"):
        tar.unlink()

    with pytest.raises(BudgetError, match=r"lost shards: expected at most 1.000% of 40 records, found"):
        keys(copied, 100)


def test_what_work_refuses_is_a_hole_too(forty: Path) -> None:
    def picky(sample: shards.Sample) -> str:
        if sample.key.endswith("7"):
            raise RecordError("no_sevens", "expected another key")
        return sample.key

    budget = Budget(rate=0.5, where="forty")
    with shards.open(forty) as data:
        found = list(itertools.islice(Stream(data, order_of(data), batch=8, budget=budget, work=picky), 5))

    assert sorted(key for batch in found for key in batch) == [f"000000-{n:08d}" for n in range(40) if n % 10 != 7]
    assert budget.skipped == 4


def test_what_work_gets_wrong_is_raised(forty: Path) -> None:
    with pytest.raises(ZeroDivisionError), shards.open(forty) as data:
        next(iter(Stream(data, order_of(data), batch=8, work=lambda sample: 1 // 0)))
    assert not threads()


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"workers": -1}, {"first": -8}])
def test_what_can_not_be_streamed_is_refused(forty: Path, wrong: dict[str, int]) -> None:
    data = shards.open(forty)

    with pytest.raises(RequestError, match=f"{next(iter(wrong))}: expected at least"):
        Stream(data, order_of(data), **{"batch": 8, **wrong})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="order: expected one of 6 shards, found one of 2"):
        Stream(data, Order([20, 20], 0), batch=8)


# object storage


@pytest.fixture
def stored(s3: ceph.S3, forty: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The forty records in a bucket."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    url = f"{s3.bucket()}/forty"
    place = at(url)
    for path in forty.iterdir():
        if path.is_file():
            place.upload(path.name, path)
    return url


@pytest.mark.parametrize("cached", [False, True])
def test_object_storage_gives_the_same_stream(stored: str, forty: Path, tmp_path: Path, cached: bool) -> None:
    cache = Cache(tmp_path / "cache", 10**8) if cached else None
    with shards.open(stored, cache=cache) as data:
        found = [[sample.key for sample in batch] for batch in itertools.islice(Stream(data, order_of(data), batch=8), 10)]
        assert data.fetched.bytes_read > 0
        assert data.fetched.cache_misses == (6 if cached else 0)

    assert found == keys(forty, 10)
    assert not threads()


def test_a_dead_store_is_an_error_and_not_a_hole(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with shards.open(stored) as data:
        monkeypatch.setenv("SHARDWEAVE_STORE_DEADLINE", "1")
        data.place.read = _refused  # type: ignore[method-assign]  # the index of every shard
        with pytest.raises(StoreError, match="no answer"):
            next(iter(Stream(data, order_of(data), batch=8)))


def _refused(name: str) -> bytes:
    raise StoreError(f"s3: reading {name}: expected success, found no answer")


# the command


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shards", "stream", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


@contextlib.contextmanager
def started(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The command, at work for ten minutes unless something happens to it."""
    command = [sys.executable, "-m", "shards", "stream", *arguments, "--seconds", "600", "--step", "0.01"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_command_says_how_fast(forty: Path) -> None:
    done = run(str(forty), "--batch-size", "100", "--workers", "1", "--seconds", "0.2", "--decode", "8", "--json")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["samples"] == found["batches"] * 100 == found["next_draw"]
    assert found["samples_per_second"] > 0
    assert 0 <= found["wait_share"] <= 1
    assert (found["bad_records"], found["bytes_read"], found["cache_hits"], found["cache_misses"]) == (0, 0, 0, 0)


def test_the_command_for_people(forty: Path) -> None:
    done = run(str(forty), "--seconds", "0.1", "--workers", "0", "--resampled", "--window", "2")

    assert done.returncode == 0, done.stderr
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [
        "samples/s",
        "MB/s",
        "wait",
        "first batch",
        "read",
        "fetched",
        "bad records",
    ]


def test_an_empty_place_is_one_line(tmp_path: Path) -> None:
    shards.write(tmp_path / "empty", [])

    done = run(str(tmp_path / "empty"))

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path}/empty: expected records to stream, found none\n"


@pytest.mark.parametrize("wrong", [("--batch-size", "0"), ("--workers", "-1"), ("--seconds", "nan"), ("--decode", "0"), ("--window", "0")])
def test_a_wrong_option_is_one_line(forty: Path, wrong: tuple[str, str]) -> None:
    done = run(str(forty), *wrong)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "expected at least" in done.stderr


def test_damage_over_the_budget_is_status_1(copied: Path) -> None:
    for tar in copied.glob("*.tar"):
        tar.unlink()

    done = run(str(copied))

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {copied}: lost shards: expected at most 1.000% of 40 records, found ")


def test_the_command_goes_on_without_a_shard_that_is_little_of_the_place_and_ends_with_1(tmp_path: Path) -> None:
    whole = shards.write(tmp_path / "whole", several(100))
    made = shards.write(tmp_path / "place", several(101), shard_bytes=whole.shards[0].bytes)
    assert [shard.records for shard in made.shards] == [100, 1]
    (tmp_path / "place" / "000000-001.tar").unlink()

    done = run(str(tmp_path / "place"), "--seconds", "0.2", "--json")

    assert done.returncode == 1
    assert f"{tmp_path}/place: lost 1 records: 000000-001.tar: shard missing: expected " in done.stderr
    found = json.loads(done.stdout)
    assert 0 < found["bad_records"] <= found["samples"] // 50


def test_a_store_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}

    done = run("s3://bucket/place", "--cache", str(tmp_path), SHARDWEAVE_STORE_DEADLINE="2", **keys)

    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: s3://bucket/place")


def test_a_store_that_dies_ends_the_command(stored: str, proxy: proxies.Proxy, tmp_path: Path) -> None:
    small = ("--cache", str(tmp_path), "--cache-bytes", "40KiB", "--window", "1")  # two shards: the others are fetched again and again
    with started(stored, *small, **proxy.environment, SHARDWEAVE_STORE_DEADLINE="2") as process:
        proxies.wait_until(lambda: len(proxy.requests) > 20)
        proxy.fail("status")
        _, said = process.communicate(timeout=60)

    assert process.returncode == 2, said
    assert said.splitlines()[-1].startswith(f"error: {stored}"), said


@pytest.mark.parametrize("workers", ["0", "3"])
def test_an_interrupt_ends_it_cleanly(forty: Path, workers: str) -> None:
    with started(str(forty), "--workers", workers) as process:
        proxies.wait_until(lambda: ".tar" in Path(f"/proc/{process.pid}/maps").read_text())  # it reads
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)

    assert process.returncode == 130, said
    assert len(said.splitlines()) == 1


def test_a_slow_consumer_waits_for_nothing(forty: Path) -> None:
    with shards.open(forty) as data:
        found = measure(data, batch_size=8, seconds=0.5, step=0.05)

    assert found.batches > 1
    assert 0 <= found.wait_share < 1


def test_the_errors_are_shards_own() -> None:
    assert issubclass(BudgetError, ShardError)
