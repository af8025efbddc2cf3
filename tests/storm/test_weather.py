"""Other weather: full disks, folders that may not be written to, two at once, too little memory. One line, and the same command goes on."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.upstreams import made
from tests.shards.foreign_tars import img2dataset
from tests.shards.records import picture, several
from tests.storm.trials import files, some_rows
from tests.storm.watch import Child, Ran

import shards  # isort: skip

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def command(module: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The real command, in a process of its own."""
    given = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(given, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, **options)


def line(ran: Ran) -> str:
    """The one line with which it was refused, exit status 2."""
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (2, "", 1), ran.err
    return ran.err.strip()


def test_a_disk_that_is_full_while_tars_are_indexed_is_one_line_and_the_next_run_goes_on(child: Child, mounted: Path, ground: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", mounted], check=True)
    place = img2dataset(mounted / "tars", [20, 20])
    once = shutil.copytree(place, ground / "once")
    free = os.statvfs(mounted)
    (mounted / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize - 12_000))

    told = line(child.run("shards", "index", place, "--workers", 1))
    assert "No space left on device" in told
    assert str(place) in told
    assert not (place / "manifest.json").exists()

    (mounted / "filler").unlink()
    assert child.run("shards", "index", place, "--workers", 1).status == 0
    assert child.run("shards", "index", once, "--workers", 1).status == 0
    assert files(place) == files(once)


def test_a_disk_that_is_full_while_sidecars_are_written_is_one_line(child: Child, mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", mounted], check=True)
    shards.write(mounted / "place", several(20))
    free = os.statvfs(mounted)
    (mounted / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize))

    assert "No space left on device" in line(child.run("shards", "sidecars", mounted / "place", "--for", "energon,wids,dali"))


def test_a_folder_that_may_not_be_written_to_is_one_line_and_may_be_read(child: Child, mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", mounted], check=True)
    flags = some_rows(mounted / "in")
    shards.write(mounted / "place", several(5))
    img2dataset(mounted / "tars", [3])
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)

    commands: list[tuple[str, list[Any]]] = [
        ("pipelines", ["convert", *flags, "--out", mounted / "out"]),
        ("shards", ["index", mounted / "tars"]),
        ("shards", ["sidecars", mounted / "place", "--for", "wids"]),
        ("shards", ["view", mounted / "place", "--export", mounted / "report.html"]),
    ]
    for module, given in commands:
        told = line(child.run(module, *given))
        assert "Read-only file system" in told, told
        assert str(mounted) in told
    assert child.run("pipelines", "check", *flags).status in (0, 1)
    assert child.run("shards", "check", mounted / "place", "--deep").status == 0
    assert child.run("shards", "stats", mounted / "place").status == 0


def test_of_two_indexings_at_once_one_waits_or_is_told_and_they_leave_what_one_leaves(child: Child, ground: Path) -> None:
    place = img2dataset(ground / "place", [20] * 6)
    once = shutil.copytree(place, ground / "once")
    assert child.run("shards", "index", once, "--workers", 1).status == 0
    given = [sys.executable, "-m", "shards", "index", str(place), "--workers", "1"]
    for _ in range(2):
        both = [subprocess.Popen(given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) for _ in range(2)]
        for one in both:
            _, said = one.communicate(timeout=120)
            assert one.returncode == 0 or (one.returncode == 2 and "expected a free place, found another writer at work" in said), said
            assert len(said.splitlines()) <= 1, said
    assert child.run("shards", "index", place, "--workers", 1).status == 0
    assert files(place) == files(once)


LITTLE = 900 << 20  # bytes that a process may map: what is imported needs half of it


def little() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LITTLE, LITTLE))


@pytest.mark.parametrize("workers", [1, 2])
def test_too_little_memory_is_one_line_and_the_same_command_goes_on_with_more(workers: int, child: Child, ground: Path) -> None:
    from tests.storm.test_hostile import png

    _, flags = made("llava", ground / "in")
    (ground / "in/images/0.jpg").write_bytes(png(13_000, 13_000, 13_000))
    huge = picture(9000, 9000, 1)
    (ground / "in/images/1.jpg").write_bytes(huge)
    given = ("convert", "llava", *flags, "--verify", "decode", "--workers", workers)

    done = command("pipelines", *given, "--out", ground / "out", preexec_fn=little)

    assert done.returncode in (0, 2), done.stderr
    if done.returncode:
        *said, told = done.stderr.splitlines()
        assert "memory" in told
        assert "the same command goes on" in told
        assert all("cannot allocate memory" in one for one in said), done.stderr  # the C library's own last words in a worker
    assert child.run("pipelines", *given, "--out", ground / "out").status == 0
    assert child.run("pipelines", *given, "--out", ground / "undisturbed").status == 0
    assert files(ground / "out") == files(ground / "undisturbed")  # a picture is no reject because there was too little memory


@pytest.fixture
def narrow() -> Iterator[Path]:
    """A control group whose processes may take 16 MiB more."""
    first = Path("/sys/fs/cgroup/memory")  # version 1
    group, limit = (first, "memory.limit_in_bytes") if first.is_dir() else (first.parent, "memory.max")
    group /= f"shardweave-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(16 << 20))
    except OSError as error:
        pytest.skip(f"no right to make a control group: {error}")
    yield group
    group.rmdir()


def test_a_worker_that_the_kernel_kills_for_its_memory_is_one_line_and_the_same_command_goes_on(
    child: Child, narrow: Path, ground: Path
) -> None:
    from tests.storm.test_hostile import png

    (ground / "images").mkdir()
    (ground / "images/large.png").write_bytes(png(4000, 4000, 4000))
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "Nothing."}]
    rows = [{"id": str(number), "image": "large.png", "conversations": turns} for number in range(100)]
    (ground / "rows.json").write_text(json.dumps(rows))
    flags = ["--annotations", ground / "rows.json", "--images", ground / "images", "--verify", "decode", "--workers", "2"]
    given = [sys.executable, "-m", "pipelines", "convert", "llava", *map(str, flags), "--out", str(ground / "out")]

    running = subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        (narrow / "cgroup.procs").write_text(str(worker_of(running)))
        said = running.communicate(timeout=120)
    finally:
        running.kill()
    assert (running.returncode, said[0], len(said[1].splitlines())) == (2, "", 1), said
    assert "a worker died (killed, or out of memory); what is done is kept, the same command goes on" in said[1]

    assert child.run("pipelines", *given[3:]).status == 0
    assert json.loads((ground / "out/manifest.json").read_bytes())["totals"]["written"] == 100


def worker_of(running: subprocess.Popen[str]) -> int:
    """The first of its processes that converts."""
    deadline = time.monotonic() + 60
    while running.poll() is None and time.monotonic() < deadline:
        for pid in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        time.sleep(0.01)
    raise AssertionError("no worker was seen")
