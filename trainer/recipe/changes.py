"""What is another in one recipe than in another, and what of it leaves a run the run that it was."""

from __future__ import annotations

import dataclasses
from typing import Any

from trainer.recipe.keys import Recipe
from trainer.recipe.toml import written
from trainer.recipe.typed import label

# What may differ between a run and the run that goes on from its checkpoint without anybody asking.
HARMLESS = ("out", "device", "threads", "loader.", "checkpoint.", "log.", "engine.", "held_out.")


def differences(was: Recipe, now: Recipe) -> dict[str, str]:
    """What changed, key by key: "was A, is B". Sources are told apart by name."""
    before, after = _flat("", dataclasses.asdict(was)), _flat("", dataclasses.asdict(now))
    keys = [key for key in (before | after) if before.get(key) != after.get(key)]
    return {key: f"was {_shown(before.get(key))}, is {_shown(after.get(key))}" for key in keys}


def harmless(key: str, recipe: Recipe) -> bool:
    """Whether a run stays the same run with another value here. Pixels may differ with dct_scaling, a mean of means with micro-batches."""
    if key == "loader.dct_scaling":
        return False
    if key.endswith("micro_batch_size"):
        return recipe.loss_norm == "global"
    return key.startswith(HARMLESS) or (key.startswith("sources.") and key.endswith(".shards"))


def _flat(where: str, value: Any) -> dict[str, Any]:
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        value = {label(item, number): item for number, item in enumerate(value)}
    if not isinstance(value, dict):
        return {where: value}
    return {key: leaf for name, item in value.items() for key, leaf in _flat(f"{where}.{name}".lstrip("."), item).items()}


def _shown(value: Any) -> str:
    return "none" if value is None else written(value)
