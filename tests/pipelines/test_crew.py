"""Processes that hang or die, and what becomes of their tasks. Real processes, without img2dataset."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pipelines.download.crew import Crew, Lost
from schemas import RequestError


class Does(NamedTuple):
    """A task, and what happens to whoever does it: done, dies, hangs, refuses; once-...: the first time only."""

    what: str
    number: int
    seconds: float = 0.1


class Process:
    """What is made in a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int) -> Callable[[Does], int]:
        return self.do

    def do(self, task: Does) -> int:
        before = self.folder / f"{task.number}"
        again = before.exists()
        before.touch()
        what = "done" if again and task.what.startswith("once-") else task.what.removeprefix("once-")
        if what == "dies":
            print("its last words", flush=True)
            os._exit(7)
        if what == "hangs":
            time.sleep(60)
        if what == "refuses":
            raise RequestError("no room")
        return task.number * 10


def worked(folder: Path, *tasks: Does, processes: int = 2) -> tuple[dict[int, int | Lost], list[int]]:
    """What became of each task, and which processes were forgotten."""
    forgotten: list[int] = []
    with Crew(Process(folder), processes, folder, forgotten.append) as crew:
        return {task.number: found for task, found in crew.run(iter(tasks))}, forgotten


def test_every_task_is_done_once(tmp_path: Path) -> None:
    found, forgotten = worked(tmp_path, *(Does("done", number) for number in range(20)))

    assert found == {number: number * 10 for number in range(20)}
    assert forgotten == []


def test_the_task_of_a_process_that_died_is_done_by_another(tmp_path: Path) -> None:
    found, forgotten = worked(tmp_path, Does("once-dies", 1), Does("done", 2), processes=1)

    assert found == {1: 10, 2: 20}
    assert forgotten == [0]


def test_a_task_that_kills_twice_is_given_up_by_name_and_the_others_are_done(tmp_path: Path) -> None:
    found, _ = worked(tmp_path, Does("dies", 1), *(Does("done", number) for number in range(2, 6)))

    assert found.pop(1) == Lost("its process died (exit 7): its last words")
    assert found == {number: number * 10 for number in range(2, 6)}


def test_a_process_that_hangs_is_killed(tmp_path: Path) -> None:
    began = time.monotonic()

    found, forgotten = worked(tmp_path, Does("once-hangs", 1), Does("done", 2))

    assert found == {1: 10, 2: 20}
    assert len(forgotten) == 1
    assert time.monotonic() - began < 40


def test_what_a_task_raises_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no room"):
        worked(tmp_path, Does("refuses", 1), Does("done", 2))
