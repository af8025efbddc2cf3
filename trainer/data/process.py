"""A loader in a process of its own: Python runs one thread at a time, and the one that trains should not wait its turn.

    the trainer            its reader
      Request         ->     opens the data, reads ahead with threads (trainer/data/loader.py)
      a step          <-     in one of two slots, uncopied (trainer/data/slots.py)
      the slot        ->     when the next step is asked for

Steps, their order, and what is raised are those of a loader in this process, and so is what is logged. The reader ends with the trainer,
whatever ends that; SIGTERM and Ctrl-C are for the trainer alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from schemas import ShardweaveError
from shards.processes import die_with
from trainer.data import examples, reading, sources
from trainer.data.batch import MicroBatch
from trainer.data.examples import Fit
from trainer.data.loader import Loader, StalledError, Step, waited
from trainer.data.mixture import Position
from trainer.data.pixels import Preprocess
from trainer.data.slots import Slot
from trainer.recipe import Recipe
from trainer.text import tokenizer

SLOTS = 2  # one that is trained on, one to come
START = 120.0  # seconds more than a step may take: to begin, and to tell that it took too long
GRACE = 5.0  # seconds to end by itself


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a rank reads."""

    recipe: Recipe
    preprocess: Preprocess
    fit: Fit | None  # travels: trainer.text.positions.Positions does
    position: Position
    rank: int
    ranks: int


class LoaderProcess:
    """As Loader. A step's tensors are there until the next step is asked for."""

    def __init__(self, request: Request) -> None:
        self._timeout = request.recipe.loader.timeout
        self._slots, self._held = [Slot.new() for _ in range(SLOTS)], -1
        self._ended: BaseException | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _begun([theirs.fileno(), *(slot.file for slot in self._slots)])
        self._connection, self._coming = Connection(ours.detach()), select.poll()
        self._coming.register(self._connection, select.POLLIN)
        self._tell(request)

    def __enter__(self) -> LoaderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Step[list[MicroBatch]]]:
        return self

    def __next__(self) -> Step[list[MicroBatch]]:
        """The next step. Raises what its reading has raised; StalledError where the reader died or says nothing."""
        if self._ended is not None:
            raise self._ended
        began = time.monotonic()
        if self._held >= 0:
            self._tell(self._held)
        try:
            step = self._received()
        except BaseException as error:
            self._ended = error  # whoever asks again is told again
            raise
        return waited(step, time.monotonic() - began)

    def close(self) -> None:
        """End the reader. What it reads just now is waited for a few seconds."""
        self._ended = self._ended or StopIteration()
        self._connection.close()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        while self._slots:
            self._slots.pop().close()

    def _tell(self, what: Any) -> None:
        with contextlib.suppress(OSError):  # it has died: told when it is asked for a step
            self._connection.send_bytes(pickle.dumps(what))

    def _received(self) -> Step[list[MicroBatch]]:
        until = time.monotonic() + self._timeout + START
        while True:
            kind, what, *more = self._answer(until)
            if kind == "log":
                logging.getLogger(what.name).handle(what)
            elif kind == "step":
                self._held = what
                return self._slots[what].read(*more)
            else:
                raise what

    def _answer(self, until: float) -> Any:
        try:
            if self._coming.poll(1000 * max(0.0, until - time.monotonic())):
                return pickle.loads(self._connection.recv_bytes())  # noqa: S301 - our own process wrote it
        except (EOFError, OSError):
            found = f"that the process which reads has died (status {self._process.wait(GRACE)}): killed, or out of memory"
            raise StalledError(f"loader: expected a step, found {found}") from None
        raise StalledError(f"loader: expected a step within {self._timeout:g} s, found that the process which reads says nothing")


def _begun(files: list[int]) -> subprocess.Popen[bytes]:
    """It imports what this process imports, wherever that is; whose main module it does not run again."""
    code = f"from trainer.data import process; process.serve({os.getpid()}, {files})"
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        pass_fds=files,
        stdin=subprocess.DEVNULL,
        stdout=sys.__stderr__,  # stdout carries the run's result alone
        env=os.environ | {"PYTHONPATH": path},
    )


def serve(parent: int, files: list[int]) -> None:
    """The reader's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with(parent)
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the trainer wants no more
        trainer = _Trainer(Connection(files[0]), [Slot(file) for file in files[1:]])
        try:
            _read(trainer)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except BaseException as error:  # noqa: BLE001 - raised again there
            trainer.tell("error", _travelling(error))


def _read(trainer: _Trainer) -> None:
    request = trainer.received()
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger().addHandler(trainer)
    with _opened(request) as loader:
        for step in loader:
            trainer.hand(step)
    trainer.tell("end", StopIteration())


def _opened(request: Request) -> Loader[list[MicroBatch]]:
    recipe = request.recipe
    data = sources.open_sources(recipe, request.rank, request.ranks)
    make = examples.of_recipe(recipe, tokenizer.load(recipe.tokenizer), request.preprocess, request.fit)
    fed = reading.feed(recipe, data, sources.mixture(recipe, data), make)
    return reading.loader(fed, recipe, request.position, request.rank, request.ranks)


def _travelling(error: BaseException) -> BaseException:
    """The error as it can be raised in another process. Of those that nobody expects, with where it was raised."""
    if not isinstance(error, ShardweaveError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.dumps(error)
    except Exception:  # noqa: BLE001 - whatever is in it
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


class _Trainer(logging.Handler):
    """The trainer, as its reader sees it."""

    def __init__(self, connection: Connection, slots: list[Slot]) -> None:
        super().__init__()
        self._connection, self._slots, self._free = connection, slots, list(range(len(slots)))
        self._sending = threading.Lock()

    def received(self) -> Any:
        """What it says next. Raises EOFError where it is gone."""
        return pickle.loads(self._connection.recv_bytes())  # noqa: S301 - our own process wrote it

    def tell(self, kind: str, *what: Any) -> None:
        """From any thread."""
        with self._sending:
            self._connection.send_bytes(pickle.dumps((kind, *what)))

    def hand(self, step: Step[Any]) -> None:
        """Into the next slot that it has given back."""
        while not self._free or self._connection.poll():
            self._free.append(self.received())
        slot = self._free.pop(0)
        self.tell("step", slot, *self._slots[slot].write(step))

    def emit(self, record: logging.LogRecord) -> None:
        """What is logged here is logged there."""
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        with contextlib.suppress(OSError):
            self.tell("log", record)
