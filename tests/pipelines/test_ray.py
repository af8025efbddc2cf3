"""Conversions, checks and counts on a Ray cluster of three nodes: the bytes that local processes give, whoever is killed in the middle."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed")
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}

import ray
from ray.cluster_utils import Cluster

from pipelines.ingest import Plan, ingest
from pipelines.llava import Llava
from schemas import RequestError, ShardError
from shards import foreign, on_ray, run
from shards.check import check
from shards.executor import AHEAD, Counts, executor
from shards.manifest import Manifest
from shards.place import at
from shards.stats import stats
from tests.ceph import S3
from tests.pipelines.conversion import ENVIRONMENT, files, row, until
from tests.pipelines.slow import Slow
from tests.pipelines.test_object_storage import objects
from tests.shards import foreign_tars
from tests.shards.labour import kill, kill_shared, refuse, work
from tests.shards.records import picture

ROWS = 640  # 64 units of 10
NODE = {"num_cpus": 1, "memory": 2 << 30, "object_store_memory": 80 << 20, "include_dashboard": False}
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 10}


@pytest.fixture(scope="module")
def ground() -> Iterator[Path]:
    """A short path: sockets have names of at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(ground: Path) -> Iterator[Cluster]:
    """Three nodes of one core each, on this machine; this process is connected to the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(ground))
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a driver would take a token out of the home folder, which this cluster does not
        made = Cluster(initialize_head=True, head_node_args={**NODE, "_system_config": QUICK})
        try:
            for _ in range(2):
                made.add_node(**NODE)
            ray.init(made.address, log_to_driver=False, logging_level=logging.ERROR)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA rows, a few bad ones among them."""
    folder = tmp_path_factory.mktemp("upstream")
    (folder / "images").mkdir()
    for n in range(ROWS):
        (folder / f"images/{n}.jpg").write_bytes(picture(24, 16, n))
    (folder / "images/50.jpg").write_text("<html>")
    rows: list[Any] = [row(n, f"{n}.jpg") for n in range(ROWS)]
    rows[100]["image"], rows[200] = "gone.jpg", {"id": 200}
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def llava(upstream: Path, images: object = None) -> Llava:
    return Llava(annotations=(upstream / "rows.json",), images=(Path(str(images or upstream / "images")),))


def plan(name: str, workers: int | None = None) -> Plan:
    return Plan(executor=name, workers=workers, shard_bytes=8 << 10)


def by_ray(upstream: Path, out: object, workers: int | None = None, images: object = None) -> Manifest:
    """A conversion by this process's cluster."""
    return ingest(llava(upstream, images), str(out), plan("ray", workers))


@pytest.fixture(scope="module")
def local(upstream: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one local worker writes."""
    out = tmp_path_factory.mktemp("local") / "out"
    ingest(llava(upstream), out, plan("local", 1))
    return files(out)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("workers", [None, 1, 5])
def test_the_bytes_are_those_of_local_workers(upstream: Path, local: dict[str, bytes], tmp_path: Path, workers: int | None) -> None:
    found = by_ray(upstream, tmp_path / "out", workers)
    assert found.totals == {"read": 640, "written": 637, "rejected": 3, "images": 637}
    assert files(tmp_path / "out") == local


def test_a_relative_place_is_the_driver_s(
    cluster: Cluster, upstream: Path, local: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    by_ray(upstream, "out")
    assert files(tmp_path / "out") == local


def commits(out: Path) -> int:
    return len(list((out / "_units").glob("0*.json")))


def test_a_node_that_is_killed_in_the_middle_loses_nothing(
    cluster: Cluster, upstream: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    out, lost = tmp_path / "out", cluster.add_node(**NODE)
    seen: list[int] = []

    def strike() -> None:
        until(lambda: commits(out) >= 8)
        cluster.remove_node(lost, allow_graceful=False)
        seen.append(commits(out))

    striker = threading.Thread(target=strike)
    striker.start()
    ingest(slow(upstream), out, plan("ray", 4))
    striker.join()
    assert seen[0] < 60
    assert files(out) == local


def slow(upstream: Path) -> Slow:
    return Slow(annotations=(upstream / "rows.json",), images=(upstream / "images",))


DRIVER = """
import argparse, sys
from pathlib import Path
from pipelines.ingest import Plan, ingest
from shards import command
from tests.pipelines.slow import Slow
upstream, out = map(Path, sys.argv[1:])
source = Slow(annotations=(upstream / "rows.json",), images=(upstream / "images",))
plan = Plan(executor="ray", shard_bytes=8 << 10)
sys.exit(command.run(lambda _: ingest(source, out, plan) is None, argparse.Namespace()))
"""


def struck(cluster: Cluster, upstream: Path, out: Path, root: Path, number: int) -> tuple[int, str]:
    """Status and stderr of a driver that gets this signal when some units are committed."""
    given = [sys.executable, "-c", DRIVER, str(upstream), str(out)]
    environment = {**ENVIRONMENT, "RAY_ADDRESS": str(cluster.address), "RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(given, env=environment, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as driver:
        try:
            until(lambda: commits(out) >= 4 or driver.poll() is not None)
            driver.send_signal(number)
            _, error = driver.communicate(timeout=60)
        finally:
            driver.kill()
    assert commits(out) < 64
    return driver.returncode, error


def at_work() -> list[str]:
    """Processes that work off a share."""
    lines = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    return [line.decode() for line in lines if line.startswith(b"ray::_share")]


def test_ctrl_c_is_one_line_and_the_next_run_goes_on(
    cluster: Cluster, upstream: Path, local: dict[str, bytes], tmp_path: Path, root: Path
) -> None:
    out = tmp_path / "out"
    status, error = struck(cluster, upstream, out, root, signal.SIGINT)
    assert (status, error.splitlines()) == (130, ["error: interrupted: what is done is kept, the same command goes on"])
    assert json.loads((out / "run.json").read_bytes())["lease"] is None
    until(lambda: not at_work())
    by_ray(upstream, out)
    assert files(out) == local


def test_a_driver_that_is_killed_leaves_no_worker_and_the_next_run_goes_on_at_once(
    cluster: Cluster, upstream: Path, local: dict[str, bytes], tmp_path: Path, root: Path
) -> None:
    out = tmp_path / "out"
    assert struck(cluster, upstream, out, root, signal.SIGKILL) == (-signal.SIGKILL, "")
    ingest(llava(upstream), out, plan("local", 1))
    assert files(out) == local
    until(lambda: not at_work())
    assert files(out) == local


@pytest.mark.usefixtures("cluster")
def test_pictures_and_output_in_a_bucket(
    upstream: Path, local: dict[str, bytes], s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    images, out = s3.bucket() + "/images", s3.bucket() + "/out"
    for path in (upstream / "images").iterdir():
        at(images).write(path.name, path.read_bytes())
    by_ray(upstream, out, images=images)
    assert objects(out) == local
    near = tmp_path / "near"
    for name, data in local.items():
        (near / name).parent.mkdir(parents=True, exist_ok=True)
        (near / name).write_bytes(data)
    assert check(out, deep=True, executor="ray") == check(near, deep=True)
    assert not list(Path(tempfile.gettempdir()).glob("shardweave-scratch-*"))


@pytest.fixture
def finished(upstream: Path, local: dict[str, bytes], tmp_path: Path) -> Path:
    """The data set, with some damage."""
    for name, data in local.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data if name != "000003-000.tar" else data[:-700])
    return tmp_path / "set"


@pytest.mark.usefixtures("cluster")
def test_check_and_stats_say_what_local_ones_say(finished: Path) -> None:
    for deep in (False, True):
        found = check(finished, deep=deep, executor="ray", workers=None)
        assert found == check(finished, deep=deep)
        assert {problem.shard for problem in found.problems} == {"000003-000.tar"}
    assert stats(finished, executor="ray", workers=None) == stats(finished)


@pytest.mark.usefixtures("cluster")
def test_an_index_is_the_one_that_local_workers_make(tmp_path: Path) -> None:
    once = foreign_tars.img2dataset(tmp_path / "once", [3, 2, 4])
    shutil.copytree(once, tmp_path / "other")
    foreign.index(once)
    foreign.index(tmp_path / "other", executor="ray", workers=3)
    assert files(tmp_path / "other") == files(once)


@pytest.mark.usefixtures("cluster")
def test_an_item_that_kills_its_workers_ends_the_run_in_one_line() -> None:
    with executor("ray", 2) as on:
        with pytest.raises(RequestError, match=r"a worker died .* 4 times over item 3; what is done is kept"):
            on.share(kill_shared, 9, lambda counts: None)
        with pytest.raises(RequestError, match="a worker died"):
            list(on.map(kill, range(2, 5)))
        assert list(on.map(refuse, range(3))) == [0, 1, 2]
        with pytest.raises(ShardError, match=r"000003-000\.tar 000003-00000000: size: expected 7, found 8"):
            list(on.map(refuse, range(9)))


@pytest.mark.usefixtures("cluster")
def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []
    with executor("ray", 2) as on:
        results = on.map(refuse, (taken.append(n) or n % 3 for n in range(100)))
        assert [next(results) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    assert len(taken) <= 6 + AHEAD * 2


@pytest.mark.usefixtures("cluster")
def test_what_is_shared_out_is_counted_while_it_is_done(tmp_path: Path) -> None:
    seen: list[Counts] = []
    with executor("ray", 2) as on:
        on.share(partial(work, tmp_path), 100, seen.append)
    assert seen[-1] == Counts(1000, 100, 100_000, 100)
    assert len({path.name.split(".")[1] for path in tmp_path.iterdir()}) == 2


@pytest.mark.usefixtures("cluster")
def test_a_node_with_other_versions_is_told(upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "versions", lambda: {"shardweave": "0.1.0", "pyarrow": "1.0", "pillow": "13"})
    with pytest.raises(RequestError, match=r"Ray node \S+: expected pyarrow 1.0, as the driver has, found [\d.]+: bytes would differ"):
        by_ray(upstream, tmp_path / "out")


@pytest.mark.usefixtures("cluster")
def test_a_cluster_without_room_is_told(upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "ROOM", 1.0)
    monkeypatch.setattr(on_ray, "MEMORY", 1 << 50)
    monkeypatch.setattr(on_ray, "_share", on_ray._share.options(memory=1 << 50))
    with pytest.raises(RequestError, match="ray: expected within 1 s a node of 1 CPU and 1073741824 MiB, found 1 and 2,048 MiB;"):
        by_ray(upstream, tmp_path / "out")


def test_a_node_that_sees_another_place_is_told(finished: Path, tmp_path: Path) -> None:
    for place in (finished, tmp_path / "nothing"):
        with pytest.raises(
            RequestError, match=r"expected the run that this worker is of, found .*: the place has to be the same on every node"
        ):
            run.seen(place, "another")


def command(module: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-m", module, *map(str, arguments)]
    env = {name: value for name, value in ENVIRONMENT.items() if name != "RAY_ADDRESS"} | environment
    return subprocess.run(given, capture_output=True, text=True, timeout=100, env=env)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    return lines[0]


def test_a_cluster_that_is_not_there_is_told(finished: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = f"127.0.0.1:{silent.getsockname()[1]}"
        for address, found in {"127.0.0.1:1": "Connection refused", "nonsense": "no HOST:PORT", mute: "timed out"}.items():
            told = one_line(command("shards", "check", finished, "--executor", "ray", RAY_ADDRESS=address))
            assert told.startswith(f"error: RAY_ADDRESS {address}: expected a Ray cluster that answers within 10 s, found: {found}"), told


def test_a_cluster_of_another_version_is_told(cluster: Cluster, finished: Path) -> None:
    script = "import sys, ray, shards.__main__ as made; ray.__version__ = '1.0'; sys.exit(made.main(sys.argv[1:]))"
    given = [sys.executable, "-c", script, "check", str(finished), "--executor", "ray"]
    done = subprocess.run(given, capture_output=True, text=True, timeout=100, env={**ENVIRONMENT, "RAY_ADDRESS": str(cluster.address)})
    assert one_line(done).startswith(f"error: RAY_ADDRESS {cluster.address}: expected a cluster of Ray 1.0 and Python 3.")


def test_without_a_cluster_one_is_started_and_stopped(upstream: Path, local: dict[str, bytes], ground: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", ground / "own"
    given = ("--annotations", upstream / "rows.json", "--images", upstream / "images", "--out", out, "--shard-bytes", "8KiB")
    done = command("pipelines", "convert", "llava", *given, "--executor", "ray", "--workers", 2, RAY_TMPDIR=str(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert files(out) == local
    lines = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    assert not [line for line in lines if str(home).encode() in line]
