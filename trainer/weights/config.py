"""Configurations and folders of transformers, read without a network."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
import transformers

from schemas import RequestError
from trainer.weights import json_object, origins


def read(weights: str | None, table: dict[str, Any], part: str, example: str) -> Any:
    """The configuration of a part: of its folder, or of the recipe's table. Raises RequestError where there is none or both."""
    if weights is not None:
        kind = stored(weights, part).get("model_type")
        if kind is not None and kind not in transformers.CONFIG_MAPPING:
            found = f"{kind}: code that comes with weights is never run; --set {part}.weights=FOLDER takes another model"
            raise RequestError(f"{part}.weights {weights}: expected a model that transformers knows, found {found}")
        if table.keys() - {"vocab_size"}:
            raise RequestError(f"{part}: expected weights or config, found both")
        try:
            return transformers.AutoConfig.from_pretrained(weights, local_files_only=True, trust_remote_code=False)
        except (ValueError, OSError) as error:
            raise RequestError(f"{part}.weights {weights}: expected a model that transformers knows, found {line(error)}") from error
    if "model_type" not in table:
        raise RequestError(f'{part}: expected weights = FOLDER or config = {{model_type = "{example}", ...}}, found neither')
    try:
        return transformers.AutoConfig.for_model(**copy.deepcopy(table))
    except Exception as error:  # transformers raises what it likes on a wrong value
        raise RequestError(f"{part}.config: expected a configuration that transformers knows, found {line(error)}") from error


def stored(weights: str, part: str) -> dict[str, Any]:
    """The config.json of a folder of weights as it stands. Raises RequestError where there is none."""
    path = Path(weights) / "config.json"
    if not path.is_file():
        raise RequestError(f"{part}.weights {weights}: expected a folder with config.json, found none{origins.told(weights)}")
    return json_object.read(path)


def from_folder(kind: Any, folder: str, config: Any) -> Any:
    """The model of this kind in the folder, float32. Raises RequestError where it does not hold one."""
    logging.getLogger("transformers").setLevel(logging.ERROR)  # a whole CLIP has a text tower that is not wanted
    try:
        model, found = kind.from_pretrained(folder, config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True)
    except OSError as error:
        raise RequestError(f"{folder}: expected weights, found {line(error)}") from error
    if missing := sorted(found["missing_keys"]):  # transformers makes them up, with no more than a warning
        raise RequestError(f"{folder}: expected {missing[0]} and {len(missing) - 1} more, found weights of another model")
    return model


def line(error: Exception) -> str:
    """An error's text in one line."""
    return " ".join(str(error).split())[:300]


_NO_SHAPE = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "auto_map")


def as_table(config: Any, part: str) -> dict[str, Any]:
    """A configuration as the table of a recipe that `read` makes the same one from. Raises RequestError where there is none."""
    table = {"model_type": config.model_type, **config.to_diff_dict()}
    table = {key: value for key, value in table.items() if value is not None and key not in _NO_SHAPE}
    again = transformers.AutoConfig.for_model(**copy.deepcopy(table)).to_dict()
    differs = [key for key, value in config.to_dict().items() if key not in _NO_SHAPE and again.get(key) != value]
    if differs:  # TOML has no null
        raise RequestError(f"{part}.config: expected one that a recipe can hold, found {differs[0]} = {getattr(config, differs[0], None)}")
    return table
