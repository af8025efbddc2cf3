"""Executors: work in order and shared out, by this process and by several; what happens when one of them dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import shards
from schemas import RequestError, ShardError
from shards import executor as executors
from shards.check import check
from shards.executor import DIED, KEPT, Counts, Executor, executor
from shards.stats import stats
from tests.shards.labour import fail, kill, kill_shared, refuse, square, work
from tests.shards.records import several

WORKERS = 2


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    """Two of them, which tests share: starting them is most of the time."""
    with executor("local", WORKERS) as on:
        yield on


def test_results_come_in_order_from_several_processes(processes: Executor) -> None:
    found = list(processes.map(square, range(50)))
    assert [result for result, _ in found] == [n * n for n in range(50)]
    assert os.getpid() not in {process for _, process in found}


def test_one_worker_and_one_item_are_this_process(processes: Executor) -> None:
    with executor("local", 1) as alone:
        assert list(alone.map(square, range(3))) == [(n * n, os.getpid()) for n in range(3)]
        assert list(alone.map(square, [])) == []
    assert list(processes.map(square, [7])) == [(49, os.getpid())]


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_items_are_taken_as_they_are_needed(processes: Executor, workers: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(1000):
            taken.append(n)
            yield n

    with executor("local", 1) as alone:
        results = (processes if workers > 1 else alone).map(square, items())
        for n in range(5):
            assert next(results)[0] == n * n
            assert len(taken) <= n + 1 + executors.AHEAD * WORKERS


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_what_a_function_raises_is_raised_where_its_result_would_be(processes: Executor, workers: int) -> None:
    with executor("local", 1) as alone:
        results = (processes if workers > 1 else alone).map(refuse, range(9))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ShardError, match=r"000003-000\.tar 000003-00000000: size: expected 7, found 8"):
            next(results)
    assert list(processes.map(refuse, [1, 2])) == [1, 2]


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_every_item_is_taken_once_and_counted(processes: Executor, tmp_path: Path, workers: int) -> None:
    seen: list[Counts] = []
    with executor("local", 1) as alone:
        on = processes if workers > 1 else alone
        for items in (40, 3, 0):
            on.share(partial(work, tmp_path), items, seen.append)
            assert seen[-1] == Counts(10 * items, items, 1000 * items, items)
            found = [path.name.split(".") for path in tmp_path.iterdir()]
            assert sorted(int(position) for position, _ in found) == list(range(items))
            assert {int(process) == os.getpid() for _, process in found} <= {workers == 1}
            for path in tmp_path.iterdir():
                path.unlink()


def test_a_worker_that_dies_is_one_line_and_the_others_go() -> None:
    with executor("local", WORKERS) as on:
        with pytest.raises(RequestError, match="a worker died"):
            list(on.map(kill, range(9)))
        with pytest.raises(RequestError) as told:
            on.share(kill_shared, 9, lambda counts: None)
        assert str(told.value) == DIED + KEPT
        assert list(on.map(refuse, range(3))) == [0, 1, 2]  # by new ones


def test_when_one_fails_nobody_works_on(tmp_path: Path) -> None:
    with executor("local", WORKERS) as on:
        with pytest.raises(OSError, match="No space left on device: 'somewhere'"):
            on.share(partial(fail, tmp_path), 9, lambda counts: None)
        assert not any(Path(f"/proc/{path.name}").exists() for path in tmp_path.iterdir())


ORPHANS = """
import sys
from functools import partial
from pathlib import Path
from shards.executor import executor
from tests.shards.labour import stay
with executor("local", 3) as on:
    on.share(partial(stay, Path(sys.argv[1])), 3, print)
"""


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_workers_die_with_their_killed_parent(tmp_path: Path, root: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS, tmp_path], cwd=root) as parent:
        try:
            until(lambda: len(list(tmp_path.iterdir())) == 3)
        finally:
            parent.kill()
    until(lambda: not any(Path(f"/proc/{path.name}").exists() for path in tmp_path.iterdir()))


def test_another_name_is_told() -> None:
    with pytest.raises(RequestError, match="--executor: expected one of local, ray, found 'slurm'"), executor("slurm"):
        pass


def test_ray_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "shards.on_ray", raising=False)
    monkeypatch.delattr(shards, "on_ray", raising=False)
    with (
        pytest.raises(RequestError, match=r"--executor ray: expected the package ray, found none \(pip install 'shardweave\[ray\]'\)"),
        executor("ray"),
    ):
        pass


def test_ray_is_imported_only_when_it_is_asked_for(root: Path) -> None:
    script = "import sys, pipelines.__main__, pipelines.ingest, shards.__main__; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=root, timeout=60).returncode == 0


def test_check_and_stats_by_several_processes_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "set"
    shards.write(place, several(40), shard_bytes=4096)
    tars = sorted(place.glob("*.tar"))
    tars[1].write_bytes(tars[1].read_bytes()[:-700])
    told: list[int] = []
    one = check(place, deep=True, progress=told.append), stats(place)
    monkeypatch.setattr(executors, "WORTH", 1)
    assert (check(place, deep=True, workers=WORKERS, progress=told.append), stats(place, workers=WORKERS)) == one
    assert len(told) == 2 * len(tars) > 4
    assert {problem.shard for problem in one[0].problems} == {tars[1].name}
