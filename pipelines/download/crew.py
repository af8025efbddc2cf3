"""Crew: processes that may hang or die, and tasks that then are done again, once.

multiprocessing's own pool waits for ever for the task of a worker that was killed, and ProcessPoolExecutor gives up all of them. Here each
process has a pipe, which tells that it has died, and each task a deadline, behind which its process is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from schemas import ShardweaveError
from shards.processes import die_with

TRIES = 2  # of a task whose process hangs or dies
STARTING = 120.0  # seconds until a process has imported what it needs
GRACE = 5.0  # seconds that a task may take beyond its deadline, and half as long as that again


class Task(Protocol):
    """What a process is given."""

    @property
    def seconds(self) -> float:
        """How long it may take."""
        ...


T = TypeVar("T", bound=Task)
R = TypeVar("R")
Make = Callable[[int], Callable[[T], R]]  # of a process by its number: what it does with a task


class Lost(NamedTuple):
    """A task that was given up."""

    why: str


class Crew(Generic[T, R]):
    """Processes that work off tasks. make, which must pickle, is called in each; logs: where what they print goes.

    forget: told the number of a process that was killed or has died.
    """

    def __init__(self, make: Make[T, R], processes: int, logs: Path, forget: Callable[[int], None]) -> None:
        self._make, self._logs, self._forget = make, logs, forget
        self._members: list[_Member | None] = [None] * processes

    def __enter__(self) -> Crew[T, R]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for member in self._members:
            if member is not None:
                member.kill()

    def run(self, tasks: Iterable[T]) -> Iterator[tuple[T, R | Lost]]:
        """Each task with its result, in order of completion. Tasks are taken as processes are free. Raises what a task raises."""
        todo, again, tries = iter(tasks), deque[T](), Counter[Any]()
        while True:
            for number in range(len(self._members)):
                member = self._members[number]
                if member is None or member.task is None:
                    task = again.popleft() if again else next(todo, None)
                    if task is None:
                        break
                    self._member(number).give(task)
            busy = [member for member in self._members if member is not None and member.task is not None]
            if not busy:
                return
            for member, kind, value in _heard(busy):
                task = member.task
                if kind == "failed":
                    raise value
                if kind == "done":
                    member.task = None
                    yield task, value
                    continue
                self._bury(member)
                tries[task] += 1
                if tries[task] < TRIES:
                    again.append(task)
                else:
                    yield task, Lost(value)

    def _member(self, number: int) -> _Member:
        member = self._members[number]
        if member is None:
            member = self._members[number] = _Member(number, self._make, self._logs / f"{number}.log")
        return member

    def _bury(self, member: _Member) -> None:
        member.kill()
        self._members[member.number] = None
        self._forget(member.number)


class _Member:
    """A process, the task that it has, and until when it has it."""

    def __init__(self, number: int, make: Make[Any, Any], log: Path) -> None:
        self.task: Any = None
        context = multiprocessing.get_context("spawn")
        self.number, self.log, self.until = number, log, 0.0
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, make, number, os.getpid(), log), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, task: Any) -> None:
        """Its next task. The deadline counts from when it begins with it."""
        self.task, self.until = task, time.monotonic() + STARTING
        with contextlib.suppress(OSError):  # it has died, which its pipe tells when it is listened to
            self.pipe.send(task)

    def hear(self) -> tuple[str, Any]:
        """What it says: begun, done, failed; died."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(GRACE)
            return "lost", f"its process died (exit {self.process.exitcode}){self._last_words()}"
        if kind == "begun":
            self.until = time.monotonic() + 1.5 * self.task.seconds + GRACE
        return kind, value

    def _last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()] if self.log.exists() else []
        return f": {lines[-1].strip()[:200]}" if lines else ""

    def kill(self) -> None:
        """End it, also where it is stopped."""
        self.process.kill()
        self.process.join(GRACE)
        self.pipe.close()


def _heard(busy: list[_Member]) -> Iterator[tuple[_Member, str, Any]]:
    """What members say, and those that have hung: done, failed or lost."""
    ready = wait([member.pipe for member in busy], max(0.0, min(member.until for member in busy) - time.monotonic()))
    for member in busy:
        if member.pipe in ready:
            kind, value = member.hear()
            if kind != "begun":
                yield member, kind, value
        elif time.monotonic() >= member.until:
            yield member, "lost", "its process hung and was killed"


def _work(pipe: Connection, make: Make[Any, Any], number: int, parent: int, log: Path) -> None:
    """A process's life: it leaves Ctrl-C to the parent, and dies with it. An error that is none of ours ends it, and stands in the log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    work: Callable[[Any], Any] | None = None
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            sys.exit()
        try:
            work = work or make(number)
            pipe.send(("begun", None))
            pipe.send(("done", work(task)))
        except (ShardweaveError, OSError) as error:
            pipe.send(("failed", error))
