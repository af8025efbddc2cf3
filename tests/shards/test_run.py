"""Who may write to a place: real second processes, and leases of owners that are elsewhere."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas import RequestError
from shards import run

CONTENT: dict[str, Any] = {
    "source": "made",
    "options": {"shard_bytes": 1024, "names": ("a", "b")},
    "inputs": [{"name": "rows.json", "sha256": "1"}],
    "versions": {"pyarrow": "20", "pillow": "11"},
}

HOLD = """
import json, sys, time
from pathlib import Path
from schemas import RequestError
from shards import run
run.HEARTBEAT = 0.05
place, content, go = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
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


def holder(place: Path, go: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", HOLD, str(place), json.dumps(CONTENT), str(go)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A place that another process writes to."""
    (tmp_path / "go").touch()
    with holder(tmp_path / "place", tmp_path / "go") as process:
        assert (line(process), line(process)) == ("ready", "held")
        yield tmp_path / "place", process
        process.kill()


def lease(place: Path) -> Any:
    return json.loads((place / "run.json").read_bytes())["lease"]


def left(place: Path, content: dict[str, Any] = CONTENT, **changes: Any) -> None:
    """What a run that stopped leaves, its lease as given."""
    with run.claimed(place, content):
        pass
    found = json.loads((place / "run.json").read_bytes())
    found["lease"] = {"host": "elsewhere", "pid": 1, "space": "another", "started": "1", "heartbeat": time.time(), **changes}
    (place / "run.json").write_text(json.dumps(found))


def test_a_second_writer_is_told_who_the_first_one_is(held: tuple[Path, subprocess.Popen[str]]) -> None:
    place, process = held

    with pytest.raises(RequestError, match=f"another writer at work .process {process.pid} "), run.claimed(place, CONTENT):
        pass
    assert lease(place)["pid"] == process.pid


def test_an_owner_that_was_killed_is_taken_over_at_once(held: tuple[Path, subprocess.Popen[str]]) -> None:
    place, process = held
    process.kill()
    process.wait()

    with run.claimed(place, CONTENT):
        assert lease(place)["pid"] != process.pid


def test_the_owner_is_seen_again_and_again(held: tuple[Path, subprocess.Popen[str]]) -> None:
    place, _ = held
    first = lease(place)["heartbeat"]

    deadline = time.monotonic() + 10
    while lease(place)["heartbeat"] == first:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_owner_that_was_taken_over_does_not_write_its_lease_again(held: tuple[Path, subprocess.Popen[str]]) -> None:
    place, process = held
    found = json.loads((place / "run.json").read_bytes())
    found["lease"]["host"] = "elsewhere"
    (place / "run.json").write_text(json.dumps(found))
    time.sleep(0.3)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    process.wait()

    # A heartbeat that was already on its way may have been written over ours: then the lease is free, never another's.
    assert lease(place) is None or lease(place)["host"] == "elsewhere"


def test_of_several_takers_at_once_one_wins(tmp_path: Path) -> None:
    place, go = tmp_path / "place", tmp_path / "go"
    left(place, heartbeat=time.time() - 100)
    with holder(place, go) as one, holder(place, go) as two, holder(place, go) as three:
        takers = (one, two, three)
        for taker in takers:
            line(taker)
        go.touch()
        said = [line(taker).partition(" ")[0] for taker in takers]
        for taker in takers:
            taker.communicate("\n")

    assert sorted(said) == ["held", "told", "told"]


def test_a_second_writer_in_the_same_process_is_told(tmp_path: Path) -> None:
    with run.claimed(tmp_path, CONTENT), pytest.raises(RequestError, match="another writer"), run.claimed(tmp_path, CONTENT):
        pass
    with run.claimed(tmp_path, CONTENT):
        pass


def test_an_owner_elsewhere_is_believed_for_a_minute(tmp_path: Path) -> None:
    left(tmp_path, heartbeat=time.time() - run.STALE + 20)
    with pytest.raises(RequestError, match="on elsewhere, last seen 40 s ago"), run.claimed(tmp_path, CONTENT):
        pass

    left_at = tmp_path / "stale"
    left(left_at, heartbeat=time.time() - run.STALE - 1)
    with run.claimed(left_at, CONTENT):
        assert lease(left_at)["host"] != "elsewhere"


def test_a_process_number_of_another_container_says_nothing(tmp_path: Path) -> None:
    left(tmp_path, host=socket.gethostname(), pid=2**22 - 1)

    with pytest.raises(RequestError, match="another writer"), run.claimed(tmp_path, CONTENT):
        pass


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"options": {"shard_bytes": 2048, "names": ["a", "b"]}}, "another options: expected shard_bytes 1024 to go on, found 2048"),
        ({"inputs": [{"name": "rows.json", "sha256": "2"}]}, "another inputs: .*rows.json"),
        ({"versions": {"pyarrow": "21", "pillow": "11"}}, "another versions: expected pyarrow '20' to go on, found '21'"),
        ({"source": "other"}, "another source"),
    ],
)
def test_a_run_with_something_else_stops_and_says_what(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with run.claimed(tmp_path, CONTENT):
        pass
    before = (tmp_path / "run.json").read_bytes()

    with pytest.raises(RequestError, match=told), run.claimed(tmp_path, {**CONTENT, **change}):
        pass
    assert (tmp_path / "run.json").read_bytes() == before


def test_what_stays_is_the_same_bytes_whoever_ran(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with run.claimed(tmp_path / name, CONTENT):
            assert lease(tmp_path / name) is not None

    assert lease(tmp_path / "a") is None
    assert (tmp_path / "a/run.json").read_bytes() == (tmp_path / "b/run.json").read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["_units", "run.json"]


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path) -> None:
    with run.claimed(tmp_path, CONTENT):
        pass
    for name in (".000000-000.tar.17.part", "_units/.000000.json.17.part"):
        (tmp_path / name).write_bytes(b"half")

    with run.claimed(tmp_path, CONTENT):
        pass

    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["_units", "run.json"]


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{", b'{"fingerprint": 1, "lease": null}', b'{"fingerprint": "", "lease": 7}', b"\xff"]
)
def test_a_run_json_that_is_none_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "run.json").write_bytes(data)

    with pytest.raises(RequestError, match=r"run\.json"), run.claimed(tmp_path, CONTENT):
        pass


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for place in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(RequestError, match=f"{place}: expected a place to write to"), run.claimed(place, CONTENT):
            pass
