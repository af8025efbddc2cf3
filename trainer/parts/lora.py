"""LoRA on a language model: put in place, written, read, merged. Hu et al. 2021, https://arxiv.org/abs/2106.09685; by peft.

The language model keeps its class and names; each chosen layer becomes peft's layer of the same name, with base_layer, lora_A and lora_B
in it. On disk are peft's own files: adapter_config.json, adapter_model.safetensors (or .bin, read with weights_only).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from schemas import RequestError
from trainer.recipe import Lora
from trainer.weights import files, qwen1
from trainer.weights.files import Tensors

_PREFIX = "base_model.model."
_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def put(language: Any, choice: Lora) -> None:
    """Put LoRA's layers into the language model; they alone are trained. Raises RequestError where a target is no linear layer."""
    import peft

    names = targets(language, choice.targets)
    config = peft.LoraConfig(r=choice.rank, lora_alpha=choice.alpha, lora_dropout=choice.dropout, target_modules=names)  # type: ignore[arg-type]
    peft.inject_adapter_in_model(config, language)
    for name, parameter in language.named_parameters():
        parameter.requires_grad_("lora_" in name)
    if choice.weights is not None:
        load(language, choice.weights)


def targets(language: Any, asked: Sequence[str]) -> list[str]:
    """Last words of the names of linear layers: those asked for, Qwen's in Qwen2's words, or of all but the head."""
    head = language.get_output_embeddings()
    linear = {name.rpartition(".")[2] for name, module in language.named_modules() if isinstance(module, nn.Linear) and module is not head}
    if list(asked) == ["all"]:
        return sorted(linear)
    words = [word for name in asked for word in ((name,) if name in linear else qwen1.TARGETS.get(name, (name,)))]
    if unknown := [word for word in words if word not in linear]:
        raise RequestError(f"lora.targets: expected of {', '.join(sorted(linear))}, found {unknown[0]}")
    return words


def load(language: Any, folder: str) -> None:
    """Read an adapter that was written by peft for these layers, or for Qwen's. Raises RequestError where it does not fit."""
    found = [Path(folder) / name for name in _FILES if (Path(folder) / name).is_file()]
    if not found:
        raise RequestError(f"lora.weights {folder}: expected {' or '.join(_FILES)}, found neither")
    _same_scale(language, Path(folder))
    stored = {name.removeprefix(_PREFIX).replace(".default.", "."): tensor for name, tensor in files.read(found[0]).items()}
    if any(name.startswith("transformer.h.") for name in stored) and any(".c_attn." in name for name in stored):
        stored = qwen1.to_qwen2(stored)
    own = language.state_dict()
    named = {_inside(name): tensor for name, tensor in stored.items()}
    files.load(language, named, folder, optional=[name for name in own if "lora_" not in name])


def adapter(language: Any) -> Tensors:
    """LoRA's parameters under peft's names."""
    own = language.state_dict()
    return {_PREFIX + name.replace(".default.", "."): tensor for name, tensor in own.items() if "lora_" in name}


def save(language: Any, choice: Lora, folder: Path) -> None:
    """Write the adapter as peft does, so that PeftModel.from_pretrained reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter(language).items()}
    safetensors.torch.save_file(tensors, folder / _FILES[0], metadata={"format": "pt"})
    stated = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": choice.rank, "lora_alpha": choice.alpha, "lora_dropout": choice.dropout}
    stated |= {"target_modules": targets_put(language), "bias": "none", "fan_in_fan_out": False, "base_model_name_or_path": None}
    (folder / "adapter_config.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")


def targets_put(language: Any) -> list[str]:
    """Last words of the names of the layers that have LoRA."""
    return sorted({name.rpartition(".")[2] for name, module in language.named_modules() if _is_lora(module)})


@torch.no_grad()
def merge(language: Any) -> None:
    """Add LoRA into the layers it stands on and take it out: the language model is as it was, with other weights."""
    for name, module in list(language.named_modules()):
        if _is_lora(module):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(language.get_submodule(parent), last, module.get_base_layer())
    for holder in (language, getattr(language, "base_model", language)):
        if hasattr(holder, "peft_config"):
            del holder.peft_config


def _is_lora(module: nn.Module) -> Any:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def _inside(name: str) -> str:
    """peft's name on disk as it is in a model."""
    return name.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight")


def _same_scale(language: Any, folder: Path) -> None:
    """alpha / rank multiplies the adapter: another one would be another model."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    scale = next(module.scaling["default"] for _, module in language.named_modules() if _is_lora(module))
    if "r" in stored and "lora_alpha" in stored and abs(stored["lora_alpha"] / stored["r"] - scale) > 1e-9:
        expected = f"lora.rank = {stored['r']} and lora.alpha = {stored['lora_alpha']}"
        raise RequestError(f"{path}: expected {expected}, as the adapter was trained, found another scale, {scale}")
