"""A process that has imported torch once, and forks the ranks of many runs: an import takes longer than such a run.

Ranks are processes with torchrun's environment and real collectives; nobody ends the others when one ends. A request is a line of JSON on
stdin: {"ranks", "words", "killed": [rank, step, where] | null, "srun"}; the answer, on stdout: [[status, stdout, stderr], ...].
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

DEADLINE = 140.0  # seconds a run


class Ended(NamedTuple):
    """How a rank ended; a negative status is a signal."""

    status: int
    stdout: str
    stderr: str


class Ranks:
    """Runs commands of the trainer on several ranks. Use it as a context."""

    def __init__(self, root: Path, *modules: str) -> None:
        """`modules`: what else takes long to import."""
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules], cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, *words: str, ranks: int = 1, killed: tuple[int, int, str] | None = None, srun: bool = False) -> list[Ended]:
        """`trainer WORDS` on so many ranks. `killed`: SIGKILL to this rank "before" this step or "saving" behind it; "asked": SIGTERM.

        `srun`: they find SLURM's environment in place of torchrun's.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"ranks": ranks, "words": words, "killed": killed, "srun": srun}), file=self._process.stdin, flush=True)
        return [Ended(*ended) for ended in json.loads(self._process.stdout.readline())]


def _serve() -> None:
    from trainer import __main__, assembly, blank, loop  # noqa: F401 - what takes so long

    for name in sys.argv[1:]:
        importlib.import_module(name)

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(_ranks(**json.loads(line))) + "\n")
        answers.flush()


def _ranks(ranks: int, words: list[str], killed: list[Any] | None, srun: bool) -> list[tuple[int, str, str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        said = [(_srun if srun else _torchrun)(rank, ranks, port) if ranks > 1 else {} for rank in range(ranks)]
        children = [_fork(rank, said[rank], words, killed, Path(folder)) for rank in range(ranks)]
        statuses = _wait(children)
        out, err = ([(Path(folder) / f"{rank}.{name}").read_text() for rank in range(ranks)] for name in ("out", "err"))
    return list(zip(statuses, out, err, strict=True))


def _torchrun(rank: int, ranks: int, port: int) -> dict[str, str]:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), **place}


def _srun(rank: int, ranks: int, port: int) -> dict[str, str]:
    step = {"SLURM_JOB_ID": "4011", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_NUM_TASKS": str(ranks)}
    return {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": str(ranks), "MASTER_PORT": str(port), **step}


def _fork(rank: int, said: dict[str, str], words: list[str], killed: list[Any] | None, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        for name, descriptor in (("out", 1), ("err", 2)):
            os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
        os.environ |= said
        status = _run(rank, words, killed)
    except BaseException:  # noqa: BLE001 - told, and the status says so
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(rank: int, words: list[str], killed: list[Any] | None) -> int:
    from shards import durable
    from trainer import __main__, loop
    from trainer.run import checkpoint

    if killed and killed[0] == rank:
        step = killed[1]
        if killed[2] == "saving":
            _signalled(durable, "sync_folder", signal.SIGKILL, lambda path: checkpoint.name(step + 1) in str(path))
        else:
            number = signal.SIGTERM if killed[2] == "asked" else signal.SIGKILL
            _signalled(loop, "_make", number, lambda coming: coming.number == step)
    return __main__.main(words)


def _signalled(module: Any, name: str, number: signal.Signals, when: Callable[[Any], bool]) -> None:
    real = getattr(module, name)

    def signalled(first: Any, *rest: Any) -> Any:
        if when(first):
            os.kill(os.getpid(), number)
        return real(first, *rest)

    setattr(module, name, signalled)


def _wait(children: list[int]) -> list[int]:
    """Their statuses; a rank that is not through in time is killed, and says so by its signal."""
    until, statuses = time.monotonic() + DEADLINE, dict.fromkeys(children, -1000)
    while (running := [child for child, status in statuses.items() if status == -1000]) and time.monotonic() < until:
        for child in running:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                statuses[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for child in running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return list(statuses.values())


if __name__ == "__main__":
    _serve()
