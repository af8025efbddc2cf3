"""The run folder: recipe.toml, log.jsonl with a line a step, tensorboard events if it is installed, and the trained weights."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from schemas import RequestError
from trainer.recipe import Recipe, as_toml

WEIGHTS = "trained.safetensors"


class RunFolder:
    """Where a run is written down. Use it as a context: leaving closes its files."""

    def __init__(self, recipe: Recipe) -> None:
        if recipe.out is None:
            raise RequestError("out: expected a run folder, found none; give --out FOLDER")
        self.path = Path(recipe.out)
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RequestError(f"out {self.path}: expected a new or empty folder, found another run or other files")
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "recipe.toml").write_text(as_toml(recipe), encoding="utf-8")
        self._lines = (self.path / "log.jsonl").open("w", encoding="utf-8")
        self._board = _board(self.path)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        if self._board is not None:
            self._board.close()

    def step(self, line: dict[str, Any]) -> None:
        """Write one step down. Numbers go to tensorboard under their keys; a table's under key/name."""
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        if self._board is None:
            return
        for key, value in line.items():
            for name, number in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(number, int | float) and math.isfinite(number):
                    self._board.add_scalar(f"{key}/{name}".strip("/"), number, line["step"])

    def save(self, model: nn.Module) -> None:
        """Write the trained parameters, under their names in the model. Frozen parts are where they came from."""
        trained = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        aside = self.path / f"{WEIGHTS}.part"
        safetensors.torch.save_file(trained, aside)
        aside.replace(self.path / WEIGHTS)


def _board(path: Path) -> Any:
    with contextlib.suppress(ImportError):
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(path))
    return None
