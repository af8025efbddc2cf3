"""LLaVA's checkpoints: three layouts of the same tensors, and the names of ours.

    ours            original LLaVA                                   transformers, on disk
    language.*      model.embed_tokens, model.layers, lm_head        language_model.*
    projector.0, 2  model.mm_projector.0, 2                          multi_modal_projector.linear_1, linear_2
    vision.*        model.vision_tower.vision_tower.vision_model.*   vision_tower.vision_model.*

Basic-VLM writes the projector alone (other_params.bin: 0.weight, ...), and so does LLaVA's first stage (mm_projector.bin). The layout on
disk is the one that old and new transformers read; new ones write another. Sources: scripts/convert_llava_weights_to_hf.py of
transformers; llava/model/multimodal_projector/builder.py of haotian-liu/LLaVA.
"""

from __future__ import annotations

import re
from typing import Any

import transformers

from schemas import RequestError
from trainer.weights.files import Tensors

_ORIGINAL = ("llava", "llava_llama", "llava_mistral", "llava_qwen")
_PROJECTOR = re.compile(r"(?:.*\bmm_projector\.|.*\bmulti_modal_projector\.|projector\.)?((?:linear_[12]|0|2)\.)?(weight|bias)")
_LAYER = {"linear_1.": "0.", "linear_2.": "2."}


def is_llava(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a LLaVA, in either layout."""
    return config.get("model_type") in _ORIGINAL and ("text_config" in config or "mm_vision_tower" in config)


def language_config(config: dict[str, Any]) -> Any:
    """The configuration of a LLaVA's language model."""
    if "text_config" in config:
        table = dict(config["text_config"])
        return transformers.AutoConfig.for_model(table.pop("model_type", "llama"), **table)
    kind = {"llava_mistral": "mistral", "llava_qwen": "qwen2"}.get(config["model_type"], "llama")
    dropped = ("model_type", "architectures", "auto_map", "transformers_version")
    return transformers.AutoConfig.for_model(kind, **{key: value for key, value in config.items() if key not in dropped})


def language_tensors(tensors: Tensors) -> Tensors:
    """The language model's, of a checkpoint in either layout."""
    kept: Tensors = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix("language_model.")
        if re.match(r"(model\.(layers|embed_tokens|norm)|lm_head)\.", plain) and not name.endswith("inv_freq"):
            kept[plain] = tensor
    return kept


def vision_tensors(tensors: Tensors) -> Tensors:
    """The tower's, of a checkpoint in either layout, under vision_model.*."""
    found = {re.fullmatch(r"(?:model\.vision_tower\.)?vision_tower\.(vision_model\..*)", name): tensor for name, tensor in tensors.items()}
    return {match[1]: tensor for match, tensor in found.items() if match is not None}


def projector_tensors(tensors: Tensors, where: str) -> Tensors:
    """The projector's under our names (0.weight, ...; weight, bias for the linear one). Raises RequestError where there is none."""
    kept: Tensors = {}
    named = any("projector" in name for name in tensors)
    for name, tensor in tensors.items():
        if named and "projector" not in name:
            continue
        found = _PROJECTOR.fullmatch(name)
        if found is None:
            raise RequestError(f"{where}: expected the parameters of a projector, found {name}")
        layer = found[1] or ""
        kept[_LAYER.get(layer, layer) + found[2]] = tensor
    if not kept:
        raise RequestError(f"{where}: expected the parameters of a projector, found none")
    return kept


def to_original(tensors: Tensors) -> Tensors:
    """Ours under the names of original LLaVA checkpoints."""
    return {_original(name): tensor for name, tensor in tensors.items()}


def to_transformers(tensors: Tensors) -> Tensors:
    """Ours under the names of LlavaForConditionalGeneration's folders."""
    return {_transformers(name): tensor for name, tensor in tensors.items()}


def _original(name: str) -> str:
    part, _, rest = name.partition(".")
    if part == "language":
        return rest
    if part == "projector":
        return f"model.mm_projector.{rest}"
    return f"model.vision_tower.vision_tower.vision_model.{rest.removeprefix('vision_model.')}"


def _transformers(name: str) -> str:
    part, _, rest = name.partition(".")
    if part == "language":
        return f"language_model.{rest}"
    if part == "vision":
        return f"vision_tower.vision_model.{rest.removeprefix('vision_model.')}"
    number, _, kind = rest.partition(".")
    return f"multi_modal_projector.linear_{int(number) // 2 + 1}.{kind}"
