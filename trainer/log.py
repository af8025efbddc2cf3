"""The run folder: recipe.toml, log.jsonl with a line a step, checkpoints, trained weights, loss.png, and what trainer/run/boards.py writes.

A run that goes on from a checkpoint forgets the lines of the steps behind it: they are made again.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from schemas import RequestError
from trainer.engines import tensor_files
from trainer.engines.tensor_files import Entry
from trainer.recipe import Recipe, as_toml
from trainer.run import boards, checkpoint, plot

WEIGHTS, RECIPE, LINES, PLOT = "trained.safetensors", "recipe.toml", "log.jsonl", "loss.png"


class RunFolder:
    """Where a run is written down, by rank 0 alone. Use it as a context: leaving closes its files and draws its losses."""

    def __init__(self, recipe: Recipe, *, resume: bool = False, rank: int = 0) -> None:
        """`checkpoint`: what the run goes on from, None where it begins; known to rank 0. Writes nothing yet.

        Raises RequestError where the folder holds a run that is done, that has another recipe, or other files.
        """
        self.recipe, self.path, self.writes = recipe, Path(recipe.out or ""), rank == 0
        self.checkpoint = checkpoint.newest(recipe, resume=resume) if self.writes else None
        self._open = contextlib.ExitStack()
        boards.check(recipe)
        if self.writes and self.checkpoint is None and not self._free():
            raise RequestError(f"out {self.path}: expected a new or empty folder, found another run or other files")

    def __enter__(self) -> RunFolder:
        """Raises RequestError where the run is going on, or wandb begins none."""
        if self.writes:
            with contextlib.ExitStack() as opening:
                self._begin(opening)
                self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def step(self, line: dict[str, Any]) -> None:
        """Write one step down, and show the numbers of some on the boards: a point there takes half a millisecond."""
        if not self.writes:
            return
        self._lines.write(msgspec.json.encode(line).decode() + "\n")
        self._lines.flush()
        step = line["step"]
        if step % self.recipe.log.every == 0 or step + 1 == self.recipe.steps or "held_out" in line:
            for board in self._boards:
                board.write(step, boards.numbers(line))

    def save(self, weights: Sequence[Entry]) -> None:
        """Write the trained parameters, under their names in the model. Frozen parts are where they came from. Called by all ranks."""
        if not self.writes:
            tensor_files.join(weights)
            return
        aside = self.path / f"{WEIGHTS}.part"
        tensor_files.write(aside, weights, {entry.name for entry in weights})
        aside.replace(self.path / WEIGHTS)

    def _begin(self, opening: contextlib.ExitStack) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lines = opening.enter_context(_locked(self.path / LINES))
        (self.path / RECIPE).write_text(as_toml(self.recipe), encoding="utf-8")
        step = 0 if self.checkpoint is None else checkpoint.read(self.checkpoint).step
        _cut(self._lines, step)
        opening.callback(plot.draw, self.path / LINES, self.path / PLOT)
        self._boards = boards.opened(self.recipe, self.path, step)
        for board in self._boards:
            opening.callback(board.close)

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
