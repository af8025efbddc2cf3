"""Where a run is watched: tensorboard and wandb. They get the numbers of the log's lines, under the same names."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from schemas import RequestError
from trainer.recipe import Recipe

RUN_ID = "wandb-id"  # of the run folder: who goes on with a run goes on with its page


class Board(Protocol):
    """One of the two."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a step."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class Tensorboard:
    """Events in the run folder. What a run that goes on makes again is forgotten."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """A scalar each, in one event: `add_scalar` would make an event of each, at a tenth of a millisecond."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined] # protobuf makes it

        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        self.writer.file_writer.add_summary(Summary(value=values), step)

    def close(self) -> None:
        """Written out."""
        self.writer.close()


class Wandb:
    """A run at wandb, or its files in RUN/wandb where WANDB_MODE=offline. It is told recipe and numbers, and nothing of the machine."""

    def __init__(self, recipe: Recipe, path: Path) -> None:
        """Raises RequestError where wandb begins no run: nobody has logged in, or it is not to be reached."""
        import wandb
        from wandb.errors import Error

        quiet = wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            silent=True,
        )
        try:
            self.run = wandb.init(
                project=recipe.log.project,
                name=recipe.log.name or path.resolve().name,
                id=_run_id(path),
                resume="allow",
                dir=str(path),
                config=dataclasses.asdict(recipe),
                settings=quiet,
            )
        except Error as error:
            told = " ".join(str(error).split())[:200]
            raise RequestError(f"log.wandb: expected a run at wandb, found {told}; WANDB_MODE=offline needs no login") from error

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """One row."""
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Sent, or written out."""
        self.run.finish()


def check(recipe: Recipe) -> None:
    """Raises RequestError where the recipe wants wandb and it is not installed."""
    if recipe.log.wandb and importlib.util.find_spec("wandb") is None:
        raise RequestError("log.wandb: expected wandb, found it not installed: pip install 'shardweave[wandb]'")


def opened(recipe: Recipe, path: Path, step: int) -> list[Board]:
    """Those that the recipe wants; tensorboard where it is installed. `step`: where the run begins or goes on."""
    boards: list[Board] = []
    if recipe.log.tensorboard:
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            boards.append(Tensorboard(SummaryWriter(str(path), purge_step=step)))
    if recipe.log.wandb:
        boards.append(Wandb(recipe, path))
    return boards


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of the log under their keys; a table's under key/name."""
    return {name: float(value) for name, value in _flat(line) if isinstance(value, int | float) and math.isfinite(value)}


def _flat(line: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}/{name}", number) for name, number in value.items())
        else:
            yield key, value


def _run_id(path: Path) -> str:
    file = path / RUN_ID
    if not file.is_file():
        file.write_text(secrets.token_hex(8), encoding="utf-8")
    return file.read_text(encoding="utf-8")
