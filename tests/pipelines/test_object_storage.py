"""Conversions to and from a real S3 service, in real processes: the bytes that a directory gets, whatever is killed or fails on the way."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import shards
from pipelines.__main__ import main as pipelines_main
from shards.__main__ import main as shards_main
from shards.place import at
from tests.ceph import S3
from tests.pipelines.conversion import ENVIRONMENT, row
from tests.proxy import Proxy
from tests.shards.records import picture

ROWS = 128  # 64 units of 2


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA rows, some bad ones among them, one picture in a folder, and one under another suffix than its row says."""
    folder = tmp_path_factory.mktemp("upstream")
    (folder / "images/sub").mkdir(parents=True)
    for n in range(ROWS):
        (folder / f"images/{n}.jpg").write_bytes(picture(24, 16, n))
    (folder / "images/7.jpg").rename(folder / "images/sub/7.png")
    rows: list[Any] = [row(n, f"{n}.jpg") for n in range(ROWS)]
    rows[7]["image"] = "sub/7.jpg"
    (folder / "images/5.jpg").write_bytes(b"")
    rows[100]["image"], rows[101] = "gone.jpg", {"id": 101}
    rows[102]["image"] = "x" * 3000 + ".jpg"
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def local(upstream: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the conversion writes to a directory."""
    out = tmp_path_factory.mktemp("local") / "out"
    done = convert(upstream, out, "--workers", 1)
    assert done.returncode == 0, done.stderr
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def environment(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This process reaches the service, and what it starts; scratch folders lie apart."""
    for name, value in {**s3.environment, "SHARDWEAVE_STORE_DEADLINE": "30", "TMPDIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", None)


def arguments(upstream: Path, out: object, *more: object, images: object = None) -> list[str]:
    given = ["convert", "llava", "--annotations", upstream / "rows.json", "--images", images or upstream / "images", "--out", out]
    return [sys.executable, "-m", "pipelines", *(str(one) for one in (*given, "--shard-bytes", "8KiB", *more))]


def environ(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": ENVIRONMENT.get("PYTHONDONTWRITEBYTECODE", ""), **more}


def convert(upstream: Path, out: object, *more: object, images: object = None, **env: str) -> subprocess.CompletedProcess[str]:
    given = arguments(upstream, out, *more, images=images)
    return subprocess.run(given, capture_output=True, text=True, timeout=200, env=environ(**env))


class Said(NamedTuple):
    """How a command ended that ran in this process: starting another one costs a second."""

    returncode: int
    stdout: str
    stderr: str


def here(main: Callable[[list[str]], int], *arguments: object, **env: str) -> Said:
    """The command's end."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        for name, value in env.items():
            patch.setenv(name, value)
        status = main([str(one) for one in arguments])
    return Said(status, out.getvalue(), error.getvalue())


def looked(verb: str, place: object, *more: object, **env: str) -> Said:
    return here(shards_main, verb, place, *more, **env)


def refused(upstream: Path, out: object, *more: object, images: object = None, **env: str) -> Said:
    """A conversion that does not begin."""
    return here(pipelines_main, *arguments(upstream, out, *more, images=images)[3:], **env)


def objects(place: str) -> dict[str, bytes]:
    """What is stored, but for the leases."""
    stored = at(place)
    return {name: stored.read(name) for name, _ in stored.names() if not name.startswith("_lease/")}


def one_line(done: subprocess.CompletedProcess[str] | Said) -> str:
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_bucket_gets_the_bytes_that_a_directory_gets(
    upstream: Path, local: dict[str, bytes], s3: S3, tmp_path: Path, workers: int
) -> None:
    out = s3.bucket() + "/sets/llava"
    done = convert(upstream, out, "--workers", workers)
    assert done.returncode == 0, done.stderr
    assert objects(out) == local
    assert not list(tmp_path.iterdir())  # nothing stays here
    again = convert(upstream, out, "--workers", workers)
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_pictures_of_a_bucket_give_what_pictures_of_a_folder_give(upstream: Path, local: dict[str, bytes], s3: S3, tmp_path: Path) -> None:
    images = s3.bucket() + "/deep/images"
    place = at(images)
    for path in (upstream / "images").rglob("*.*"):
        place.write(str(path.relative_to(upstream / "images")), path.read_bytes())
    assert s3.request("PUT", f"/{images.removeprefix('s3://')}/sub/")[0] == 200  # how consoles make a folder
    done = convert(upstream, tmp_path / "out", "--workers", 2, images=images)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()} == local
    counted = here(pipelines_main, "check", "llava", "--annotations", upstream / "rows.json", "--images", images, "--json")
    assert json.loads(counted.stdout)["images"] == {"distinct": ROWS - 1, "present": ROWS - 4, "missing": 2, "other_suffix": 1}


def struck(upstream: Path, out: str) -> bool:
    """Kill a conversion at three moments; whether each was still running."""
    draws, place = random.Random(0), at(out)
    for _ in range(3):
        wanted = sum(1 for _ in place.names("_units/")) + draws.randrange(4)
        words = arguments(upstream, out, "--workers", 2)
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ(), start_new_session=True) as run:
            until(lambda wanted=wanted, run=run: sum(1 for _ in place.names("_units/")) >= wanted or run.poll() is not None)
            time.sleep(draws.random() * 0.1)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
        if run.returncode != -signal.SIGKILL:
            return False
    return True


def test_a_conversion_killed_again_and_again_ends_in_the_same_bytes(
    upstream: Path, local: dict[str, bytes], s3: S3, tmp_path: Path
) -> None:
    out = next(out for out in (f"{s3.bucket()}/set" for _ in range(20)) if struck(upstream, out))  # some are through before they are struck
    place = at(out)
    half = set(objects(out))
    assert "manifest.json" not in half
    done = convert(upstream, out, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert objects(out) == local
    assert not list(tmp_path.glob("shardweave-scratch-*"))  # not what the killed ones left, either
    assert len(list(place.names("_lease/"))) == 4


def test_a_second_conversion_is_told(upstream: Path, local: dict[str, bytes], s3: S3) -> None:
    out = s3.bucket() + "/set"
    started = subprocess.Popen(
        arguments(upstream, out, "--workers", 1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ(), start_new_session=True
    )
    with started:
        try:
            until(lambda: sum(1 for _ in at(out).names("_units/")) > 0)
            os.kill(started.pid, signal.SIGSTOP)
            told = refused(upstream, out)
            assert told.returncode == 2
            assert f"{out}: expected a free place, found another writer at work (process {started.pid} " in one_line(told)
        finally:
            os.kill(started.pid, signal.SIGCONT)
        started.communicate(timeout=100)
    assert started.returncode == 0
    assert objects(out) == local


@pytest.fixture(scope="module")
def stored(upstream: Path, s3: S3) -> str:
    """A finished data set. Not to be changed."""
    out = s3.bucket() + "/llava"
    done = convert(upstream, out, "--workers", 1, "--endpoint", s3.endpoint, **{**s3.environment, "AWS_ENDPOINT_URL": ""})
    assert done.returncode == 0, done.stderr
    return out


def test_check_show_and_stats_see_what_a_directory_holds(stored: str, local: dict[str, bytes], s3: S3, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    for name, data in local.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for verb, *more in (("check",), ("check", "--deep"), ("show", "--at", 3), ("stats",)):
        there = looked(verb, stored, *more, "--json", "--endpoint", s3.endpoint, AWS_ENDPOINT_URL="")
        near = looked(verb, folder, *more, "--json")
        found, expected = json.loads(there.stdout), json.loads(near.stdout)
        if verb == "stats":  # when its units were written is no copy's
            del found["conversion"], expected["conversion"]
        assert (there.returncode, found) == (0, expected), there.stderr


def test_damage_is_found_where_it_is(stored: str, s3: S3) -> None:
    damaged = s3.bucket() + "/set"
    place = at(damaged)
    for name, data in objects(stored).items():
        place.write(name, data)
    names = [name for name, _ in place.names() if name.endswith(".tar")]
    place.remove(names[0])
    place.write(names[1], place.read(names[1])[:-700])
    data = bytearray(place.read(names[2]))
    data[600] ^= 1
    place.write(names[2], bytes(data))
    place.remove(names[3].replace(".tar", ".parquet"))
    place.write("000999-000.tar", b"")
    for more in ((), ("--deep",)):
        done = looked("check", damaged, "--json", *more)
        found = {(problem["shard"], problem["what"]) for problem in json.loads(done.stdout)["problems"]}
        assert done.returncode == 1
        assert found >= {(names[0], "missing"), (names[1], "size"), (names[2], "sha256"), ("000999-000.tar", "stranger")}
        assert (names[3].replace(".tar", ".parquet"), "index unreadable") in found


def test_no_credential_is_written_or_said(upstream: Path, s3: S3) -> None:
    out = s3.bucket() + "/set"
    done = convert(upstream, out, "--workers", 1, "--limit", 4)
    assert done.returncode == 0
    wrong = refused(upstream, out, AWS_SECRET_ACCESS_KEY="another-secret")
    texts = [*objects(out).values(), *(at(out).read(name) for name, _ in at(out).names("_lease/"))]
    texts += [text.encode() for text in (done.stdout, done.stderr, wrong.stdout, wrong.stderr)]
    assert wrong.returncode == 2
    for text in texts:
        assert not any(secret.encode() in text for secret in (s3.key, s3.secret, "another-secret"))


@pytest.mark.parametrize(
    ("place", "change", "told"),
    [
        ("s3://no-such-bucket/x", {}, "s3://no-such-bucket/x.*: the store said: 404 Not Found: NoSuchBucket"),
        ("BUCKET/x", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "BUCKET/x.*: the store said: 403 Forbidden: SignatureDoesNotMatch"),
        ("BUCKET/x", {"AWS_ACCESS_KEY_ID": "wrong"}, "BUCKET/x.*: the store said: 403 Forbidden: InvalidAccessKeyId"),
        ("BUCKET/x", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "BUCKET/x.*: expected success within 1 s, .*Connection refused"),
        ("BUCKET/x", {"AWS_PROFILE": "none", "AWS_ACCESS_KEY_ID": ""}, "AWS_PROFILE none: expected its aws_access_key_id"),
        ("BUCKET/x", {"SHARDWEAVE_STORE_DEADLINE": "soon"}, "SHARDWEAVE_STORE_DEADLINE: expected seconds above 0, found 'soon'"),
    ],
)
def test_what_is_wrong_is_one_line(upstream: Path, s3: S3, place: str, change: dict[str, str], told: str) -> None:
    bucket = s3.bucket()
    place, told = place.replace("BUCKET", bucket), told.replace("BUCKET", bucket)
    env = {"SHARDWEAVE_STORE_DEADLINE": "1", **change}
    for done in (refused(upstream, place, **env), looked("check", place, **env)):
        assert done.returncode == 2
        line = done.stderr.splitlines()[-1]
        assert line.startswith("error: "), done.stderr
        assert "Traceback" not in done.stderr
        assert re.search(told, line), line


def test_an_empty_prefix_is_no_data_set_and_holds_no_pictures(upstream: Path, s3: S3) -> None:
    empty = s3.bucket() + "/nothing"
    for verb in ("check", "show", "stats"):
        done = looked(verb, empty)
        assert done.returncode == 2
        assert one_line(done) == f"error: {empty}: expected a finished data set, found no manifest.json"
    done = refused(upstream, s3.bucket(), images=empty)
    assert (done.returncode, one_line(done)) == (2, f"error: {empty}: expected a prefix that holds pictures, found nothing")


def test_a_manifest_without_its_shards_is_said_shard_by_shard(stored: str, s3: S3) -> None:
    lonely = s3.bucket() + "/set"
    at(lonely).write("manifest.json", at(stored).read("manifest.json"))
    done = looked("check", lonely, "--json")
    problems = json.loads(done.stdout)["problems"]
    assert done.returncode == 1
    missing = [problem["shard"] for problem in problems if problem["what"] == "missing"]
    assert missing == [shard["name"] for shard in json.loads(at(stored).read("manifest.json"))["shards"]]
    shown = looked("show", lonely, "--at", 0)
    assert shown.returncode == 1
    assert "000000-000" in one_line(shown)


def test_a_conversion_through_a_failing_store_gives_the_same_bytes(upstream: Path, local: dict[str, bytes], s3: S3, proxy: Proxy) -> None:
    faults = [
        proxy.fail("status", every=7),
        proxy.fail("reset", method="GET", every=9),
        proxy.fail("lost", method="PUT", every=11),
        proxy.fail("short", method="GET", path="images/", every=10, after=50),
    ]
    bucket = s3.bucket()
    for path in (upstream / "images").rglob("*.*"):
        at(bucket + "/images").write(str(path.relative_to(upstream / "images")), path.read_bytes())
    done = convert(upstream, bucket + "/out", "--workers", 2, images=bucket + "/images", **proxy.environment)
    assert done.returncode == 0, done.stderr
    assert all(fault.hits > 3 for fault in faults)
    assert objects(bucket + "/out") == local


def test_a_store_that_stops_answering_is_named_and_the_run_goes_on_later(
    upstream: Path, local: dict[str, bytes], s3: S3, proxy: Proxy
) -> None:
    out = s3.bucket() + "/out"
    proxy.fail("status", method="PUT", path="_units/00003", status=500)
    stopped = convert(upstream, out, "--workers", 1, **{**proxy.environment, "SHARDWEAVE_STORE_DEADLINE": "2"})
    assert stopped.returncode == 2
    assert f"{out}/_units/00003" in stopped.stderr.splitlines()[-1]
    assert ": write: expected success within 2 s" in stopped.stderr.splitlines()[-1]
    done = convert(upstream, out, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert objects(out) == local


def test_records_from_an_iterator_go_to_a_bucket(s3: S3, tmp_path: Path) -> None:
    from tests.shards.records import several

    out = s3.bucket() + "/mine"
    shards.write(tmp_path / "here", several(20), shard_bytes=4096)
    shards.write(out, several(20), shard_bytes=4096)
    assert objects(out) == {str(p.relative_to(tmp_path / "here")): p.read_bytes() for p in (tmp_path / "here").rglob("*") if p.is_file()}
    assert [sample.key for sample in shards.open(out)] == [sample.key for sample in shards.open(tmp_path / "here")]
