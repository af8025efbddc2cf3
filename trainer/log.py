"""The run folder: recipe.toml, log.jsonl with a line a step, tensorboard events if it is installed, checkpoints, the trained weights.

A run that goes on from a checkpoint forgets the lines of the steps behind it: they are made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch

from schemas import RequestError
from trainer import checkpoint
from trainer.recipe import Recipe, as_toml

WEIGHTS, RECIPE, LINES = "trained.safetensors", "recipe.toml", "log.jsonl"


class RunFolder:
    """Where a run is written down, by rank 0 alone. Use it as a context: leaving closes its files."""

    def __init__(self, recipe: Recipe, *, resume: bool = False, rank: int = 0) -> None:
        """`checkpoint`: what the run goes on from, None where it begins; known to rank 0. Writes nothing yet.

        Raises RequestError where the folder holds a run that is done, that has another recipe, or other files.
        """
        self.recipe, self.path, self.writes = recipe, Path(recipe.out or ""), rank == 0
        self.checkpoint = checkpoint.newest(recipe, resume=resume) if self.writes else None
        self._open = contextlib.ExitStack()
        if self.writes and self.checkpoint is None and not self._free():
            raise RequestError(f"out {self.path}: expected a new or empty folder, found another run or other files")

    def __enter__(self) -> RunFolder:
        """Raises RequestError where the run is going on."""
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lines = self._open.enter_context(_locked(self.path / LINES))
            (self.path / RECIPE).write_text(as_toml(self.recipe), encoding="utf-8")
            step = 0 if self.checkpoint is None else checkpoint.read(self.checkpoint).step
            _cut(self._lines, step)
            self._board = _board(self.path, step) if self.recipe.log.tensorboard else None
            if self._board is not None:
                self._open.callback(self._board.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def step(self, line: dict[str, Any]) -> None:
        """Write one step down. Numbers go to tensorboard under their keys; a table's under key/name."""
        if not self.writes:
            return
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        if self._board is None:
            return
        for key, value in line.items():
            for name, number in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(number, int | float) and math.isfinite(number):
                    self._board.add_scalar(f"{key}/{name}".strip("/"), number, line["step"])

    def save(self, weights: dict[str, torch.Tensor]) -> None:
        """Write the trained parameters, under their names in the model. Frozen parts are where they came from."""
        if self.writes:
            aside = self.path / f"{WEIGHTS}.part"
            safetensors.torch.save_file(weights, aside)
            aside.replace(self.path / WEIGHTS)

    def _free(self) -> bool:
        """New, empty, or of a run that was stopped before its first checkpoint."""
        if not self.path.exists():
            return True
        begun = (self.path / LINES).is_file() and not (self.path / WEIGHTS).exists()
        return self.path.is_dir() and (begun or not any(self.path.iterdir()))


def _locked(path: Path) -> IO[str]:
    """The log, which nobody else writes while it is open."""
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise RequestError(f"out {path.parent}: expected a run that was stopped, found one that is going on") from error
    return file


def _cut(file: IO[str], step: int) -> None:
    """Leave the lines before this step. What a killed run wrote of its last line goes too."""
    file.seek(0)
    kept = 0
    for number, line in enumerate(iter(file.readline, "")):
        if number == step or not line.endswith("\n"):
            break
        kept = file.tell()
    file.truncate(kept)


def _board(path: Path, step: int) -> Any:
    with contextlib.suppress(ImportError):
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(path), purge_step=step)
    return None
