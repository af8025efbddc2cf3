"""Qwen, the first: its weights as those of Qwen2, and back. Transformers no longer knows it; Qwen2 is the same architecture.

What differs are names, and that query, key and value are one matrix (c_attn). Its intermediate_size counts both halves of the gated
layer: w2 is the gate, w1 is multiplied by it. What Qwen does to positions beyond the seq_length it was trained with (dynamic NTK,
log n attention) Qwen2 does not: the model is used up to seq_length. https://github.com/QwenLM/Qwen, modeling_qwen.py
"""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers

from schemas import RequestError
from trainer.weights.files import Tensors

_OUTSIDE = {"transformer.wte": "model.embed_tokens", "transformer.ln_f": "model.norm", "lm_head": "lm_head"}
_INSIDE = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.up_proj",
    "mlp.w2": "mlp.gate_proj",
    "mlp.c_proj": "mlp.down_proj",
}
_FUSED, _SPLIT = "attn.c_attn", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

# Names of linear layers, as LoRA targets name them.
TARGETS = {"c_attn": ("q_proj", "k_proj", "v_proj"), "w1": ("up_proj",), "w2": ("gate_proj",), "c_proj": ("o_proj", "down_proj")}


def is_qwen1(config: dict[str, Any]) -> bool:
    """Whether a config.json is Qwen's."""
    return config.get("model_type") == "qwen"


def as_config(config: dict[str, Any]) -> transformers.Qwen2Config:
    """Qwen2's configuration of the same model. Raises RequestError where Qwen2 has no such thing."""
    heads, width = config["num_attention_heads"], config["hidden_size"]
    if config.get("kv_channels", width // heads) * heads != width or config.get("rotary_pct", 1.0) != 1.0:
        raise RequestError("language: expected Qwen's heads to fill its width and to turn whole, found a variant that Qwen2 is not")
    return transformers.Qwen2Config(
        vocab_size=config["vocab_size"],
        hidden_size=width,
        intermediate_size=config["intermediate_size"] // 2,
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=config.get("seq_length", config.get("max_position_embeddings", 2048)),
        rms_norm_eps=config.get("layer_norm_epsilon", 1e-6),
        rope_parameters={"rope_type": "default", "rope_theta": float(config.get("rotary_emb_base", 10000))},
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def to_qwen2(tensors: Tensors) -> Tensors:
    """Qwen's tensors under Qwen2's names, c_attn cut in three along its rows. LoRA's A matrices are shared by the three."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith((".inv_freq", ".attn.bias", ".masked_bias")):
            continue
        found = re.fullmatch(r"transformer\.h\.(\d+)\.(.+?)\.((?:lora_[AB]\.)?(?:weight|bias))", name)
        if found is None:
            renamed[_outside(name, _OUTSIDE)] = tensor
        elif found[2] == _FUSED:
            whole = "lora_A" in found[3]
            pieces = [tensor] * 3 if whole else tensor.chunk(3)
            renamed |= {f"model.layers.{found[1]}.{part}.{found[3]}": piece for part, piece in zip(_SPLIT, pieces, strict=True)}
        else:
            renamed[f"model.layers.{found[1]}.{_inside(found[2], name)}.{found[3]}"] = tensor
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def from_qwen2(tensors: Tensors) -> Tensors:
    """The inverse: Qwen2's tensors under Qwen's names, query, key and value put together. No LoRA: three A matrices are not one."""
    back = {new: old for old, new in _INSIDE.items()}
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if found is None:
            renamed[_outside(name, {new: old for old, new in _OUTSIDE.items()})] = tensor
        elif found[2] == _SPLIT[0]:
            three = [tensors[f"model.layers.{found[1]}.{part}.{found[3]}"] for part in _SPLIT]
            renamed[f"transformer.h.{found[1]}.{_FUSED}.{found[3]}"] = torch.cat(three)
        elif found[2] not in _SPLIT:
            renamed[f"transformer.h.{found[1]}.{back[found[2]]}.{found[3]}"] = tensor
    return renamed


def _outside(name: str, names: dict[str, str]) -> str:
    module, _, kind = name.rpartition(".")
    if module not in names:
        raise RequestError(f"language: expected Qwen's parameters, found {name}")
    return f"{names[module]}.{kind}"


def _inside(module: str, name: str) -> str:
    if module not in _INSIDE:
        raise RequestError(f"language: expected Qwen's parameters, found {name}")
    return _INSIDE[module]
