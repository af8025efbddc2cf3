"""Conversions in real processes: the same bytes however many workers and interruptions, and one clear line where one can not go on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import shards
from tests.pipelines.conversion import ENVIRONMENT, KILLER, adds_up, arguments, files, laid, pictured, row, until

ROWS = 320  # 64 units of 5


@pytest.fixture(scope="module")
def upstream(ground: Path) -> Path:
    """LLaVA rows, a few of each kind of bad among them."""
    rows, images = pictured(ground / "upstream", ROWS)
    (images / "5.jpg").write_bytes(b"")
    (images / "50.jpg").write_text("<html>")
    rows[100]["image"], rows[200], rows[300]["conversations"] = "gone.jpg", {"id": 200}, []
    rows[310]["image"], rows[310]["conversations"][0]["value"] = ["1.jpg", "gone.jpg"], "<image> or <image>"
    return laid(ground / "upstream", rows)


REJECTED = {"image_empty": 1, "image_format": 1, "image_missing": 1, "no_turns": 2}


def convert(upstream: Path, out: Path, *more: object, **options: Any) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-m", "pipelines", *arguments(upstream, out, *more)]
    return subprocess.run(given, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, **options)


def started(upstream: Path, out: Path, *more: object) -> subprocess.Popen[str]:
    given = [sys.executable, "-m", "pipelines", *arguments(upstream, out, *more)]
    # Niced, so that whoever watches it gets to strike before it is done.
    return subprocess.Popen(
        ["nice", "-n", "19", *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=ENVIRONMENT
    )


Strike = Callable[[subprocess.Popen[str]], None]


def struck(upstream: Path, out: Path, workers: int, strike: Strike, after: int = 2) -> tuple[int, str, str]:
    """Status, stdout and stderr of a run that this happened to after so many commits. Tried again where it was through before."""
    for _ in range(20):
        with started(upstream, out, "--workers", workers) as run:
            until(lambda: commits(out) >= after or run.poll() is not None)
            with contextlib.suppress(ProcessLookupError):
                strike(run)
            told, error = run.communicate(timeout=60)
        if run.returncode:
            return run.returncode, told, error
        shutil.rmtree(out)
    raise AssertionError("every run was through before it was struck")


def commits(place: Path) -> int:
    return len(list((place / "_units").glob("0*.json")))


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def undisturbed(upstream: Path, ground: Path) -> Path:
    """The finished data set, by one worker that nobody disturbed. Not to be changed."""
    done = convert(upstream, ground / "undisturbed", "--workers", 1)
    assert done.returncode == 0, done.stderr
    return ground / "undisturbed"


def test_every_row_is_a_record_or_a_reject(undisturbed: Path) -> None:
    adds_up(undisturbed)
    found = json.loads((undisturbed / "manifest.json").read_bytes())

    assert found["totals"] == {"read": 320, "written": 315, "rejected": 5, "images": 315}
    assert found["rejected"] == REJECTED
    assert found["images_dropped"] == {"image_missing": 1}
    rejects = pq.read_table(undisturbed / "rejects.parquet").to_pylist()
    assert [(reject["file"], reject["row"]) for reject in rejects] == [("rows.json", n) for n in (5, 50, 100, 200, 300)]
    # 320 rows are 64 units of 5: row 50 is the first of unit 10
    assert [reject["key"] for reject in rejects][:2] == ["000001-00000000", "000010-00000000"]
    texts = [sample.record.turns[1].text() for sample in shards.open(undisturbed)]
    assert texts == [f"Picture {n}." for n in range(ROWS) if n not in (5, 50, 100, 200, 300)]


@pytest.mark.parametrize("workers", [2, 3])
def test_the_bytes_do_not_depend_on_the_number_of_workers(upstream: Path, undisturbed: Path, ground: Path, workers: int) -> None:
    out = ground / f"workers{workers}"
    done = convert(upstream, out, "--workers", workers)

    assert done.returncode == 0, done.stderr
    assert files(out) == files(undisturbed)


def test_a_finished_run_again_changes_nothing(upstream: Path, undisturbed: Path) -> None:
    before = files(undisturbed)

    done = convert(upstream, undisturbed, "--workers", 2)

    assert done.returncode == 0
    assert "read 320 = written 315 + rejected 5" in done.stdout
    assert files(undisturbed) == before


def test_a_run_killed_at_20_moments_and_continued_gives_the_bytes_of_an_undisturbed_one(
    upstream: Path, undisturbed: Path, ground: Path
) -> None:
    out = ground / "killed"
    given = [sys.executable, "-c", KILLER, str(out), "20", *arguments(upstream, out, "--workers", 1)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)

    assert done.returncode == 0, done.stderr
    expected = files(undisturbed)
    finished = [out, *ground.glob("killed.*")]
    assert len(finished) >= 2
    for place in finished:
        assert files(place) == expected, place.name
        shutil.rmtree(place)


@pytest.mark.parametrize("whom", ["the group", "the parent alone"])
def test_workers_die_with_their_killed_parent_and_the_next_run_goes_on(upstream: Path, undisturbed: Path, ground: Path, whom: str) -> None:
    out = ground / "killed"
    kill = os.killpg if whom == "the group" else os.kill
    struck(upstream, out, 2, lambda run: kill(run.pid, signal.SIGKILL), after=random.Random(whom).randint(1, 20))
    assert not (out / "manifest.json").exists()

    done = convert(upstream, out, "--workers", 2)

    assert done.returncode == 0, done.stderr
    assert files(out) == files(undisturbed)
    shutil.rmtree(out)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_is_one_line_and_the_next_run_goes_on(upstream: Path, undisturbed: Path, ground: Path, workers: int) -> None:
    out = ground / "interrupted"
    status, told, error = struck(upstream, out, workers, lambda run: os.killpg(run.pid, signal.SIGINT))
    assert (status, told) == (130, "")
    assert error.splitlines() == ["error: interrupted: what is done is kept, the same command goes on"]
    assert json.loads((out / "run.json").read_bytes())["lease"] is None
    assert commits(out) >= 2

    assert convert(upstream, out, "--workers", workers).returncode == 0
    assert files(out) == files(undisturbed)
    shutil.rmtree(out)


def _kill_a_worker(run: subprocess.Popen[str]) -> None:
    with contextlib.suppress(FileNotFoundError):
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        if workers:
            os.kill(int(workers[-1]), signal.SIGKILL)


def test_a_worker_that_was_killed_is_one_line_and_the_next_run_goes_on(upstream: Path, undisturbed: Path, ground: Path) -> None:
    out = ground / "worker"
    status, told, error = struck(upstream, out, 2, _kill_a_worker)
    assert (status, told) == (2, "")
    assert error.splitlines() == ["error: a worker died (killed, or out of memory); what is done is kept, the same command goes on"]

    assert convert(upstream, out, "--workers", 1).returncode == 0
    assert files(out) == files(undisturbed)
    shutil.rmtree(out)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(upstream: Path, undisturbed: Path, ground: Path, workers: int) -> None:
    disk = ground / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("no right to mount a small disk")
    try:
        done = convert(upstream, disk / "out", "--workers", workers)
        assert (done.returncode, done.stdout) == (2, "")
        assert "No space left on device" in one_line(done)
        assert str(disk / "out") in one_line(done)
        assert commits(disk / "out") >= 1
        assert not list((disk / "out").rglob("*.part")) or workers > 1

        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        done = convert(upstream, disk / "out", "--workers", workers)
        assert done.returncode == 0, done.stderr
        assert files(disk / "out") == files(undisturbed)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
        disk.rmdir()


def test_a_file_that_may_not_grow_is_one_line(upstream: Path, ground: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    done = convert(upstream, ground / "small", "--workers", 1, preexec_fn=small)

    assert (done.returncode, done.stdout) == (2, "")
    assert "File too large" in one_line(done)
    assert not [name for name in files(ground / "small") if name.endswith((".tar", ".part"))]
    shutil.rmtree(ground / "small")


def test_a_second_conversion_into_the_same_place_is_told(upstream: Path, ground: Path) -> None:
    out = ground / "busy"
    with started(upstream, out, "--workers", 1) as run:
        until((out / "run.json").exists)
        os.kill(run.pid, signal.SIGSTOP)  # it may hold the lock on the place, too
        try:
            done = convert(upstream, out)
        finally:
            os.kill(run.pid, signal.SIGCONT)
        run.communicate()

    assert done.returncode == 2
    assert f"another writer at work (process {run.pid} " in one_line(done)
    assert run.returncode == 0
    adds_up(out)
    shutil.rmtree(out)


def test_a_writer_that_was_stopped_while_it_took_the_place_keeps_nobody_waiting(upstream: Path, ground: Path) -> None:
    out = ground / "stopped"
    (out / "_units").mkdir(parents=True)
    holding = "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], 0), 2); print(flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", holding, out], stdout=subprocess.PIPE)
    with holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            done = convert(upstream, out)
        finally:
            holder.kill()

    assert done.returncode == 2
    assert one_line(done).endswith("found another writer at work (it is just taking the place)")
    shutil.rmtree(out)


def test_an_output_that_holds_another_run_is_left_alone(upstream: Path, undisturbed: Path, ground: Path) -> None:
    before = files(undisturbed)
    done = convert(upstream, undisturbed, "--limit", 7)
    assert (done.returncode, done.stdout) == (2, "")
    assert "another options: expected limit None to go on, found 7" in one_line(done)

    changed = ground / "changed"
    changed.mkdir()
    (changed / "images").symlink_to(upstream / "images")
    (changed / "rows.json").write_text((upstream / "rows.json").read_text() + "\n")
    done = convert(changed, undisturbed)
    assert (done.returncode, done.stdout) == (2, "")
    assert "another inputs" in one_line(done)
    assert files(undisturbed) == before


@pytest.mark.parametrize("damage", ["tar", "index", "commit"])
def test_what_a_commit_names_and_is_gone_is_made_again(upstream: Path, undisturbed: Path, ground: Path, damage: str) -> None:
    out = ground / "damaged"
    shutil.copytree(undisturbed, out)
    (out / "manifest.json").unlink()
    name = {"tar": "000003-000.tar", "index": "000003-000.parquet", "commit": "_units/000003.json"}[damage]
    (out / name).unlink()

    assert convert(upstream, out, "--workers", 1).returncode == 0
    assert files(out) == files(undisturbed)
    shutil.rmtree(out)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"unit": "3"}'])
def test_a_damaged_commit_is_named(upstream: Path, undisturbed: Path, ground: Path, data: bytes) -> None:
    out = ground / "damaged"
    shutil.copytree(undisturbed, out)
    (out / "manifest.json").unlink()
    (out / "_units/000003.json").write_bytes(data)

    done = convert(upstream, out, "--workers", 1)

    assert (done.returncode, done.stdout) == (1, "")
    assert "_units/000003.json" in one_line(done)
    shutil.rmtree(out)


def test_more_rejects_than_allowed_is_exit_1_and_everything_is_written(upstream: Path, ground: Path) -> None:
    rows = [row(n, f"{n}.jpg" if n % 2 else "gone.jpg") for n in range(10, 20)]
    few = ground / "few"
    few.mkdir()
    (few / "images").symlink_to(upstream / "images")
    (few / "rows.json").write_text(json.dumps(rows))

    done = convert(few, ground / "half", "--json")
    assert done.returncode == 1
    assert one_line(done).startswith("error: 50.0% of the input was rejected, over --max-reject-rate 0.05")
    assert json.loads(done.stdout)["totals"] == {"read": 10, "written": 5, "rejected": 5, "images": 5}
    adds_up(ground / "half")

    assert convert(few, ground / "half", "--max-reject-rate", "0.5").returncode == 0


def test_a_limit_takes_the_first_rows(upstream: Path, ground: Path) -> None:
    done = convert(upstream, ground / "limited", "--limit", 7, "--json", "--max-reject-rate", 1)

    assert json.loads(done.stdout)["totals"] == {"read": 7, "written": 6, "rejected": 1, "images": 6}
    adds_up(ground / "limited")


def test_the_end_says_what_adds_up_and_the_next_command(upstream: Path, undisturbed: Path) -> None:
    lines = convert(upstream, undisturbed).stdout.splitlines()

    assert lines[0] == "read 320 = written 315 + rejected 5"
    assert "  rejected: no_turns 2" in lines
    assert "  images dropped: image_missing 1" in lines
    assert lines[-1] == f"next: python -m shards check {undisturbed} --deep"
