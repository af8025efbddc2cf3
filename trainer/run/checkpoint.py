"""What a run goes on from: the trained weights, the optimizer's state, and where the mixture is. The schedule is a function of the step.

    RUN/checkpoints/step-00000500/      whole as soon as it has this name
      weights-00001-of-00002.safetensors  optimizer-00001-of-00002.safetensors  ...
                          of every rank (trainer/engines/tensor_files.py); of one rank weights.safetensors and optimizer.safetensors
      state.json          position, fingerprints of the data, versions, counts, and the other files' sizes
      recipe.toml
    RUN/checkpoints/.step-00000500.part  one that was being written or deleted when the run was killed

With float16 also scale.json, its loss scale. The tensors are the same under every engine, whole and by name, each in one of the files: any
engine and any number of ranks goes on from them. Written aside by all ranks, each its share, synced, and renamed by rank 0; all need to see
the folder. There is no random state: dropout is seeded anew in each step by (seed, step, rank).
"""

from __future__ import annotations

import logging
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError

from schemas import RequestError, ShardError
from shards import durable
from trainer import recipe as recipes
from trainer.engines import tensor_files
from trainer.engines.engine import OPTIMIZER, SCALE, WEIGHTS, Engine
from trainer.recipe import Recipe

log = logging.getLogger(__name__)
FOLDER, STATE, RECIPE = "checkpoints", "state.json", "recipe.toml"


class State(msgspec.Struct, kw_only=True):
    """state.json."""

    format: int = 1
    mixture: dict[str, Any]  # Mixture.state: the step, the next draw of each source, and what they are draws of
    skipped_updates: int
    bad_records: dict[str, int]
    versions: dict[str, str]
    ranks: int = 0  # that it was trained on; 0: not known
    files: dict[str, int] = {}  # sizes in bytes

    @property
    def step(self) -> int:
        """Optimizer steps that are done."""
        return int(self.mixture["step"])


def save(run: Path, state: State, recipe: Recipe, engine: Engine) -> None:
    """Write a checkpoint and remove the oldest ones, `recipe.checkpoint.keep` stay. Called by all ranks; back when it is there."""
    final = run / FOLDER / name(state.step)
    aside = final.with_name(f".{final.name}.part")
    _write(aside, engine)
    if engine.rank == 0:
        files = [path for stem in (WEIGHTS, OPTIMIZER) for path in tensor_files.listed(aside, stem)]
        files += [aside / SCALE] if (aside / SCALE).is_file() else []
        state.files = {path.name: path.stat().st_size for path in files}
        (aside / RECIPE).write_text(recipes.as_toml(recipe), encoding="utf-8")
        (aside / STATE).write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        for path in (*aside.iterdir(), aside):
            durable.sync_folder(path)
        _remove(final)  # of a run that was set back
        aside.replace(final)
        durable.sync_folder(final.parent)
        for old in found(run)[: -recipe.checkpoint.keep]:
            _remove(old)
    engine.barrier()


def trial(run: Path, engine: Engine) -> None:
    """Write a checkpoint, read it back and remove it, so that nobody learns after a day that it can not be done. Called by all ranks."""
    aside = run / FOLDER / ".trial.part"
    _write(aside, engine)
    load(aside, engine)
    engine.barrier()
    if engine.rank == 0:
        shutil.rmtree(aside)


def found(run: Path) -> list[Path]:
    """The whole checkpoints of a run folder, oldest first."""
    return sorted(path for path in (run / FOLDER).glob("step-[0-9]*") if path.is_dir())


def name(step: int) -> str:
    """The folder's name."""
    return f"step-{step:08d}"


def read(checkpoint: Path) -> State:
    """Where it stands. Raises ShardError where a file is missing, cut or not what it should be."""
    try:
        state = msgspec.json.decode((checkpoint / STATE).read_bytes(), type=State)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(checkpoint, STATE, "a checkpoint's state", error) from error
    for file, size in state.files.items():
        path = checkpoint / file
        if not path.is_file() or path.stat().st_size != size:
            raise _damaged(checkpoint, file, f"{size} bytes", f"{path.stat().st_size} bytes" if path.is_file() else "no such file")
    return state


def load(checkpoint: Path, engine: Engine) -> None:
    """Put its weights and optimizer state into the engine. Raises RequestError where they are another model's, ShardError: damaged."""
    try:
        engine.load(checkpoint)
    except SafetensorError as error:
        raise _damaged(checkpoint, "weights", "safetensors", error) from error


def newest(recipe: Recipe, *, resume: bool) -> Path | None:
    """The checkpoint that this run goes on from; None where it begins. Raises RequestError where it may do neither.

    The same command goes on with a run that was stopped. `resume` wants one to be there, and takes a changed recipe.
    """
    if recipe.out is None:
        raise RequestError("out: expected a run folder, found none; give --out FOLDER")
    run = Path(recipe.out)
    there = found(run)
    if not there:
        if resume:
            raise RequestError(f"--resume: expected a run with a checkpoint in {run}, found none")
        return None
    state, last = read(there[-1]), there[-1]
    if state.step >= recipe.steps:
        done = f"a run whose {state.step} steps are done (--resume --set steps=N goes on with it)"
        raise RequestError(f"out {run}: expected a new or empty folder, or a run that was stopped, found {done}")
    for key, change in recipes.differences(recipes.load(str(last / RECIPE)), recipe).items():
        if recipes.harmless(key, recipe):
            continue
        if not resume:
            expected = f"expected the recipe that {last.name} was made with"
            raise RequestError(f"out {run}: {expected}, found another {key}: {change} (--resume goes on with what changed)")
        log.warning("%s: %s", key, change)
    return last


def versions() -> dict[str, str]:
    """Of what decides how a checkpoint is read and what a step computes."""
    return {package: version(package) for package in ("torch", "transformers", "safetensors")}


def _write(aside: Path, engine: Engine) -> None:
    try:
        if engine.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        engine.barrier()
        engine.save(aside)
    except (OSError, SafetensorError) as error:  # a full disk
        raise RequestError(f"{aside}: expected to write a checkpoint, found {error}") from error
    engine.barrier()


def _damaged(checkpoint: Path, file: str, expected: object, found: object) -> ShardError:
    told = f"{' '.join(str(found).split())[:200]}; delete {checkpoint} to go on from the one before"
    return ShardError(str(checkpoint / file), None, "checkpoint damaged", expected, told)


def _remove(checkpoint: Path) -> None:
    """Under another name first: what is half deleted is no checkpoint."""
    if checkpoint.exists():
        aside = checkpoint.with_name(f".{checkpoint.name}.old.part")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.replace(aside)
        shutil.rmtree(aside, ignore_errors=True)
