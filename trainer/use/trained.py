"""A run that has trained, or is training: its recipe, its tokenizer, and the model with the weights of its end or of a step.

    RUN/trained.safetensors                        of the end
    RUN/checkpoints/step-*/weights*.safetensors    of a step, with the recipe it was made with
    RUN/tokenizer                                  where an export has put it; else the recipe says where it is

Weights are those of the trained parameters: frozen parts come from where the recipe says, or are made again from its seed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas import RequestError
from trainer import assembly, log, model
from trainer import recipe as recipes
from trainer.data.pixels import Preprocess
from trainer.model import Model
from trainer.recipe import Recipe
from trainer.run import checkpoint
from trainer.text import tokenizer
from trainer.text.tokenizer import Tokenizer
from trainer.use import prompt
from trainer.weights import files

TOKENIZER = "tokenizer"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What answers, is measured and is exported."""

    name: str  # the run's folder, and the step if one was asked for
    recipe: Recipe
    tokenizer: Tokenizer
    preprocess: Preprocess
    model: Model  # without dropout

    @functools.cached_property
    def stops(self) -> list[int]:
        """Ids that end an answer."""
        return prompt.stops(self.recipe, self.tokenizer)


def load(run: str | Path, step: int | None = None, *, settings: Sequence[str] = ()) -> Trained:
    """The run in this folder at a step's checkpoint, or at its end: its newest checkpoint where it has not ended.

    `settings` change values of its recipe, as in device=cuda. Raises RequestError where there is no run or no such step, and where the
    weights are another model's, with the first name and both shapes; ShardError where a checkpoint is damaged.
    """
    run = Path(run)
    where = find(run, step)
    own = [f"tokenizer.path={run / TOKENIZER}"] if (run / TOKENIZER).is_dir() else []
    recipe = recipes.load(str((where if where.is_dir() else where.parent) / log.RECIPE), settings=[*own, *settings])
    words = tokenizer.load(recipe.tokenizer)
    pictures = assembly.preprocess(recipe)
    built = model.build(recipe, words.size, words.specials)
    put(built, where)
    name = run.resolve().name if step is None else f"{run.resolve().name}-{checkpoint.name(step)}"
    return Trained(name=name, recipe=recipe, tokenizer=words, preprocess=pictures, model=built.eval())


def find(run: Path, step: int | None = None) -> Path:
    """The weights of a run: a file, or a checkpoint's folder. Raises RequestError where it has none, ShardError where it is damaged."""
    if not (run / log.RECIPE).is_file():
        raise RequestError(f"{run}: expected a run folder with {log.RECIPE}, found none")
    if step is None and (run / log.WEIGHTS).is_file():
        return run / log.WEIGHTS
    there = {path.name: path for path in checkpoint.found(run)}
    if not there:
        raise RequestError(f"{run}: expected {log.WEIGHTS} or a checkpoint, found a run that has come to neither")
    chosen = max(there) if step is None else checkpoint.name(step)
    if chosen not in there:
        raise RequestError(f"{run}: expected a checkpoint of step {step}, found {', '.join(sorted(there))}")
    checkpoint.read(there[chosen])  # whole
    return there[chosen]


def put(built: Model, where: Path) -> None:
    """Put a run's weights into its model. Raises RequestError where a name is missing or too many, or has another shape: both are told."""
    trained = {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    files.load(built, files.read(where), str(where), optional=built.state_dict().keys() - trained)
