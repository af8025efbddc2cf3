"""MosaicGPT, the forerunner of MPT: its configuration and its weights as those of transformers' MPT. Its own code is never run.

What differs are names; and that its queries and keys may be normalised (parts/mpt.py), as in anas-awadalla/mpt-1b-redpajama-200b, around
which OpenFlamingo-3B was trained. https://github.com/mosaicml/examples at 3c51fdc0, examples/llm/src/models;
https://github.com/mosaicml/llm-foundry, scripts/misc/convert_examples_ckpt.py, which makes its checkpoints those of MPT.
"""

from __future__ import annotations

from typing import Any

import transformers

from schemas import RequestError
from trainer.weights import config as configs
from trainer.weights.files import Tensors

_NAMES = {"ln_1": "norm_1", "ln_2": "norm_2", "ln_f": "norm_f", "mlp.mlp_up": "ffn.up_proj", "mlp.mlp_down": "ffn.down_proj"}

# What transformers' MPT alone is, and what a MosaicGPT is that does not say.
_ONLY: dict[str, tuple[Any, Any]] = {
    "alibi": (True, False),
    "alibi_bias_max": (8, 8),
    "no_bias": (True, False),
    "mlp_ratio": (4, 4),
    "logit_scale": (None, None),
    "embedding_fraction": (1.0, 1.0),
    "prefix_lm": (False, False),
    "attn_uses_sequence_id": (False, False),
    "attn_pdrop": (0, 0),
    "resid_pdrop": (0, 0),
    "emb_pdrop": (0, 0),
}


def is_mosaic_gpt(config: dict[str, Any]) -> bool:
    """Whether a config.json is MosaicGPT's."""
    return config.get("model_type") == "mosaic_gpt"


def as_config(config: dict[str, Any]) -> transformers.MptConfig:
    """MPT's configuration of the same model. Raises RequestError where MPT has no such thing, or a size is missing."""
    for key, (expected, unsaid) in _ONLY.items():
        if config.get(key, unsaid) != expected:
            raise RequestError(f"language: expected a MosaicGPT with {key} = {expected}, as MPT, found {config.get(key, unsaid)}")
    sizes: dict[str, Any] = {key: _size(config, key) for key in ("vocab_size", "d_model", "n_heads", "n_layers", "max_seq_len")}
    if sizes["n_heads"].bit_count() != 1:  # MosaicGPT changed what ALiBi is then, and config.json does not say which it was
        raise RequestError(f"language: expected n_heads of MosaicGPT to be a power of two, found {sizes['n_heads']}")
    attention: dict[str, Any] = {
        "qk_ln": config.get("attn_qk_ln", False),
        "clip_qkv": config.get("attn_clip_qkv"),
        "softmax_scale": config.get("softmax_scale"),
    }
    try:
        return transformers.MptConfig(**sizes, attn_config=attention)
    except Exception as error:  # transformers raises what it likes on a wrong value
        raise RequestError(f"language: expected a configuration of MosaicGPT, found {configs.line(error)}") from error


def to_mpt(tensors: Tensors) -> Tensors:
    """MosaicGPT's tensors under MPT's names."""
    return {_renamed(name): tensor for name, tensor in tensors.items()}


def _renamed(name: str) -> str:
    module, _, kind = name.rpartition(".")
    for old, new in _NAMES.items():
        if module.endswith(f".{old}"):
            return f"{module.removesuffix(old)}{new}.{kind}"
    return name


def _size(config: dict[str, Any], key: str) -> int:
    found = config.get(key)
    if type(found) is not int or found < 1:
        raise RequestError(f"language: expected {key} of MosaicGPT as a whole number, found {found}")
    return found
