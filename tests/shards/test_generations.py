"""Who may write to a place on object storage: real second processes against a real S3 service."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas import RequestError
from shards import lease, run
from shards.place import Place, at
from tests.ceph import S3
from tests.shards.test_run import CONTENT

HOLD = """
import json, sys, time
from pathlib import Path
from schemas import RequestError
from shards import run
run.HEARTBEAT = 0.05
place, content, go = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
try:
    with run.claimed(place, content):
        print("held", flush=True)
        sys.stdin.readline()
except RequestError as error:
    print(f"told {error}", flush=True)
"""


@pytest.fixture(autouse=True)
def environment(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**s3.environment, "SHARDWEAVE_STORE_DEADLINE": "30"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def place(s3: S3) -> Place:
    """An empty place."""
    return at(s3.bucket() + "/set")


def holder(place: Place, go: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", HOLD, place.url, json.dumps(CONTENT), str(go)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def owner(place: Place, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes to the place."""
    (tmp_path / "go").touch()
    with holder(place, tmp_path / "go") as process:
        assert (line(process), line(process)) == ("ready", "held")
        yield process
        process.kill()


def generations(place: Place) -> list[Any]:
    """Every lease so far, the last one last."""
    return [json.loads(place.read(name)) for name, _ in place.names("_lease/")]


def left(place: Place, **changes: Any) -> None:
    """What a run elsewhere leaves that did not come to its end."""
    with run.claimed(place, CONTENT):
        pass
    found = {"host": "elsewhere", "pid": 1, "space": "another", "started": "1", "heartbeat": time.time(), **changes}
    place.write("_lease/000001.json", json.dumps(found).encode())


def test_a_second_writer_is_told_who_the_first_one_is(place: Place, owner: subprocess.Popen[str]) -> None:
    with pytest.raises(RequestError, match=f"{place.url}: .*another writer at work .process {owner.pid} "), run.claimed(place, CONTENT):
        pass
    assert [found["pid"] for found in generations(place)] == [owner.pid]


def test_an_owner_that_was_killed_is_taken_over_at_once(place: Place, owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.wait()
    with run.claimed(place, CONTENT):
        assert len(generations(place)) == 2
    assert generations(place)[1] is None


def test_the_owner_is_seen_again_and_again(place: Place, owner: subprocess.Popen[str]) -> None:
    first = generations(place)[0]["heartbeat"]
    deadline = time.monotonic() + 20
    while generations(place)[0]["heartbeat"] == first:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_owner_that_was_taken_over_stops_beating_and_leaves_the_next_one_alone(place: Place, owner: subprocess.Popen[str]) -> None:
    place.write("_lease/000002.json", json.dumps({**generations(place)[0], "host": "elsewhere", "space": "another"}).encode())
    time.sleep(0.5)
    before = generations(place)
    time.sleep(0.3)
    assert generations(place) == before
    owner.communicate("\n", timeout=60)
    assert generations(place) == [None, before[1]]


def test_of_several_takers_at_once_one_wins(place: Place, tmp_path: Path) -> None:
    left(place, heartbeat=time.time() - 100)
    with holder(place, tmp_path / "go") as one, holder(place, tmp_path / "go") as two, holder(place, tmp_path / "go") as three:
        takers = (one, two, three)
        for taker in takers:
            line(taker)
        (tmp_path / "go").touch()
        said = [line(taker).partition(" ")[0] for taker in takers]
        for taker in takers:
            taker.communicate("\n", timeout=60)
    assert sorted(said) == ["held", "told", "told"]
    assert len(generations(place)) == 2


def test_of_several_that_begin_at_once_one_begins(place: Place, tmp_path: Path) -> None:
    with holder(place, tmp_path / "go") as one, holder(place, tmp_path / "go") as two:
        for taker in (one, two):
            line(taker)
        (tmp_path / "go").touch()
        said = [line(taker).partition(" ")[0] for taker in (one, two)]
        for taker in (one, two):
            taker.communicate("\n", timeout=60)
    assert sorted(said) == ["held", "told"]


def test_a_second_writer_in_the_same_process_is_told(place: Place) -> None:
    with run.claimed(place, CONTENT), pytest.raises(RequestError, match="another writer"), run.claimed(place, CONTENT):
        pass
    with run.claimed(place, CONTENT):
        pass


def test_an_owner_elsewhere_is_believed_for_a_minute(place: Place) -> None:
    left(place, heartbeat=time.time() - lease.STALE + 20)
    with pytest.raises(RequestError, match="on elsewhere, last seen 40 s ago"), run.claimed(place, CONTENT):
        pass
    place.write("_lease/000001.json", place.read("_lease/000001.json").replace(b'"heartbeat": ', b'"heartbeat": -'))
    with run.claimed(place, CONTENT):
        assert generations(place)[-1]["host"] != "elsewhere"


def test_a_run_with_something_else_stops_and_says_what(place: Place) -> None:
    with run.claimed(place, CONTENT):
        pass
    change = {"options": {"shard_bytes": 2048, "names": ["a", "b"]}}
    told = f"{place.url}: begun with another options: expected shard_bytes 1024 to go on, found 2048"
    with pytest.raises(RequestError, match=told), run.claimed(place, {**CONTENT, **change}):
        pass
    assert len(generations(place)) == 1


def test_a_place_that_holds_something_else_is_refused(place: Place) -> None:
    place.write("thesis.txt", b"mine")
    with pytest.raises(RequestError, match=r"found other files .thesis.txt"), run.claimed(place, CONTENT):
        pass
    assert [name for name, _ in place.names()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["run.json", "_lease/000001.json"])
def test_a_damaged_object_is_named(place: Place, name: str) -> None:
    with run.claimed(place, CONTENT):
        pass
    place.write(name, b"{")
    with pytest.raises(RequestError, match=f"{place.url}/{name}"), run.claimed(place, CONTENT):
        pass
