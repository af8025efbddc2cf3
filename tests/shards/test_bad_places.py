"""Places that can not be read: each command says so in one line, and none hangs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import shards
from shards.__main__ import main
from shards.place import at
from tests.ceph import S3
from tests.shards.records import several

Said = Callable[..., tuple[int, list[str]]]
COMMANDS = {
    "check": (),
    "show": ("--at", "0"),
    "stats": (),
    "stream": ("--seconds", "0.1"),
    "index": (),
    "sidecars": ("--for", "wids"),
}
every_command = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Said:
    """said("check", place): the command's exit status, and its lines on stderr."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SHARDWEAVE_CACHE", str(tmp_path / "cache"))

    def run(command: str, place: str | Path) -> tuple[int, list[str]]:
        capsys.readouterr()
        status = main([command, str(place), *COMMANDS[command]])
        return status, capsys.readouterr().err.splitlines()

    return run


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty one."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3.bucket()


@every_command
def test_an_endpoint_that_can_not_be_reached(command: str, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "hidden", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    for name, value in {**given, "SHARDWEAVE_STORE_DEADLINE": "0.5"}.items():
        monkeypatch.setenv(name, value)

    status, lines = said(command, "s3://bucket/place")

    assert status == 2
    assert lines[-1].startswith("error: s3://bucket/place")
    assert "expected success within 0.5 s, found after " in lines[-1]
    assert "hidden" not in "".join(lines)


@every_command
def test_a_wrong_key(command: str, said: Said, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")

    status, lines = said(command, f"{bucket}/place")

    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith(f"error: {bucket}/place")
    assert "the store said: 403 Forbidden" in lines[0]


@every_command
def test_a_missing_bucket(command: str, said: Said, bucket: str) -> None:
    status, lines = said(command, f"{bucket}-not/place")

    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith(f"error: {bucket}-not/place")
    assert "404 Not Found: NoSuchBucket" in lines[0]


@every_command
def test_an_empty_prefix(command: str, said: Said, bucket: str) -> None:
    status, lines = said(command, f"{bucket}/nothing")

    expected = "tars to index, found none" if command == "index" else "a finished data set, found no manifest.json"
    assert (status, lines) == (2, [f"error: {bucket}/nothing: expected {expected}"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest without its shards."""
    place = tmp_path_factory.mktemp("alone") / "place"
    shards.write(place, several(9), source="made", shard_bytes=8192)
    for path in [*place.glob("*.tar"), *place.glob("*.parquet")]:
        path.unlink()
    return place


@every_command
@pytest.mark.parametrize("where", ["directory", "bucket"])
def test_a_manifest_without_its_shards(command: str, where: str, said: Said, alone: Path, request: pytest.FixtureRequest) -> None:
    place = str(alone)
    if where == "bucket":
        place = f"{request.getfixturevalue('bucket')}/alone"
        at(place).write("manifest.json", (alone / "manifest.json").read_bytes())

    status, lines = said(command, place)

    if command == "index":
        assert (status, len(lines)) == (2, 1)
    elif command == "check":
        assert (status, lines) == (1, [])  # the problems are its result
    else:
        assert status == 1
        assert lines[-1].startswith("error: ")
        assert "no such" in lines[-1].lower()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
