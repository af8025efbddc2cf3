"""Watching: a child that runs cases, from outside: whether it answers in time, whether it dies, what it said last."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = float(os.environ.get("STORM_DEADLINE", "60"))  # seconds of processor time of a case; four times as many may pass
LIMIT = 8 << 30  # bytes that a case may map
CASES = 300  # of one process: what a case leaks must not sum up to another's failure


class Ran(NamedTuple):
    """What a command did, and the bytes of memory that it took at its peak, above what the process had before."""

    status: int
    out: str
    err: str
    peak: int


class Child:
    """Answers cases; a new process takes over where one has died, hung, or done its share. Use as a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._done = 0

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def case(self, trial: str, seed: int) -> dict[str, Any]:
        """What became of it: the fields of `trials.Judged`, and `peak`, in bytes."""
        found = self._asked("case", trial, seed)
        if isinstance(found, str):
            return {"row": f"{trial}: the process", "verdict": "died", "wrong": [found], "detail": "", "peak": 0}
        return found

    def run(self, module: str, *arguments: object) -> Ran:
        """What a command of `pipelines` or `shards` did. Raises AssertionError where it broke the rules for commands."""
        found = self._asked("run", module, [str(argument) for argument in arguments])
        assert isinstance(found, dict), found
        ran = Ran(**found)
        assert "Traceback" not in ran.err, ran.err
        assert ran.status in (0, 1, 2), ran.err
        assert ran.status != 2 or (len(ran.err.splitlines()) == 1 and len(ran.err) < 5000), ran.err[:10_000]
        return ran

    def _asked(self, *request: object) -> dict[str, Any] | str:
        """The answer; a text where there was none in time, or never."""
        process = self._running()
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        answer = self._answer(process)
        self._done += 1
        if answer:
            return json.loads(answer)
        wrong = "crash"
        if answer is None:
            process.send_signal(signal.SIGABRT)  # it says where it is
            wrong = f"hang: no answer within {DEADLINE:g} s of processor time"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        said = ""
        with contextlib.suppress(OSError):
            said = (self._folder / "stderr").read_text(errors="replace")[-4000:]
        self._end()
        return f"{wrong}: status {process.poll()}: {said}"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._done >= CASES:
            self._end()
            memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # what is looked for is not how fast a disk is
            self._folder, self._done = Path(tempfile.mkdtemp(prefix="storm-", dir=memory)), 0
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "2",
                "TMPDIR": str(self._folder),
                "SHARDWEAVE_CACHE": str(self._folder / "cache"),
            }
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            given = [sys.executable, "-m", "tests.storm.child", str(self._folder), str(LIMIT)]
            self._process = subprocess.Popen(given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment)
        return self._process

    def _answer(self, process: subprocess.Popen[bytes]) -> bytes | None:
        """A line; empty where the process has died, None where it takes too long."""
        assert process.stdout is not None
        found = b""
        began, used = time.monotonic(), _used(process.pid)
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if waiting.select(1):
                    piece = os.read(process.stdout.fileno(), 1 << 20)
                    if not piece:
                        return b""
                    found += piece
                elif _used(process.pid) - used > DEADLINE or time.monotonic() - began > 4 * DEADLINE:
                    return None
        return found

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            with self._process:
                pass
            self._process = None
            shutil.rmtree(self._folder, ignore_errors=True)


def _used(pid: int) -> float:
    """Seconds of processor time of a process: a busy machine makes nothing hang."""
    try:
        user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    except OSError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
