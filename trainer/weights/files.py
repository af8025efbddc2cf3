"""Tensors from weight files: safetensors or torch's own, one file or several. Foreign pickles are never run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from schemas import RequestError

Tensors = dict[str, torch.Tensor]
PATTERNS = ("model*.safetensors", "pytorch_model*.bin", "trained.safetensors", "weights*.safetensors")  # the first that a folder has


def read(path: str | Path) -> Tensors:
    """All tensors of a file, or of the weight files of a folder. Raises RequestError: not there, a part missing, not weights."""
    tensors: Tensors = {}
    for file in listed(Path(path)):
        tensors |= _read(file)
    return tensors


def load(module: nn.Module, tensors: Mapping[str, torch.Tensor], where: str, *, optional: Iterable[str] = ()) -> None:
    """Put the tensors into the module, in its dtype; all of them must fit, and only `optional` ones may be missing.

    Raises RequestError with the first name that differs, and both shapes.
    """
    own = module.state_dict()
    for name, tensor in tensors.items():
        if name not in own:
            raise RequestError(f"{where}: {name}: expected one of the model's {len(own)} parameters, found a name it does not have")
        if own[name].shape != tensor.shape:
            raise RequestError(f"{where}: {name}: expected shape {tuple(own[name].shape)}, found {tuple(tensor.shape)}")
    if missing := sorted(own.keys() - tensors.keys() - set(optional)):
        raise RequestError(f"{where}: expected {missing[0]} and {len(missing) - 1} more, found none")
    module.load_state_dict(dict(tensors), strict=False)


def listed(path: Path) -> list[Path]:
    """The weight files of a folder, or the file itself. Raises RequestError where there are none, or one that an index lists is missing."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RequestError(f"{path}: expected weights, found no such file or folder; download them there first")
    for index in sorted(path.glob("*.index.json")):
        names = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        if missing := sorted(name for name in names if not (path / name).is_file()):
            raise RequestError(f"{path}: expected {missing[0]}, which {index.name} lists, found no such file; download it again")
        return [path / name for name in sorted(names)]
    for pattern in PATTERNS:
        if files := sorted(path.glob(pattern)):
            return files
    raise RequestError(f"{path}: expected {' or '.join(PATTERNS)}, found none")


def _read(file: Path) -> Tensors:
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        found = "a pickle of other things, which is never run, or a damaged one" if isinstance(error, pickle.UnpicklingError) else why
        raise RequestError(f"{file}: expected weights, found {found}") from error
    stored = stored.get("model_state_dict", stored) if isinstance(stored, dict) else None  # OpenFlamingo's training checkpoints
    if stored is None or not all(isinstance(tensor, torch.Tensor) for tensor in stored.values()):
        raise RequestError(f"{file}: expected a table of tensors, found something else")
    return {name.removeprefix("module."): tensor for name, tensor in stored.items()}
