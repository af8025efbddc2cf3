"""A LLaMA out of a GGUF file, as transformers' own. SmolLM2 and many others are one.

llama.cpp names the tensors its own way, and sorts the rows of query and key so that the two numbers which a position turns together
stand beside each other; transformers has them half a head apart. https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers.initialization import no_init_weights

from schemas import RequestError
from trainer.weights import files, gguf
from trainer.weights.files import Tensors

_TURNS = "llama.rope.freq_base"
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def build(path: Path) -> transformers.LlamaForCausalLM:
    """The model in the file, float32. Raises RequestError: not a GGUF file, not a LLaMA, tensors that do not fit its settings."""
    file = gguf.read(path)
    stated = config(file)
    with no_init_weights():
        model = transformers.LlamaForCausalLM(stated)
    model.tie_weights()
    files.load(model, tensors(file, stated), str(path), optional=("lm_head.weight",) if stated.tie_word_embeddings else ())
    return model


def config(file: gguf.Gguf) -> transformers.LlamaConfig:
    """The settings, held against the tensors that are there: nothing larger than the file is built of what it says. Raises RequestError."""
    if (kind := file.stated("general.architecture", str)) != "llama":
        raise RequestError(f"{file.path}: expected general.architecture llama, found {kind}")
    if scaled := [key for key in file.metadata if key.startswith("llama.rope.scaling.")]:
        raise RequestError(f"{file.path}: expected positions as they are, found {scaled[0]}")
    layers, width, inner = (_whole(file, key) for key in ("block_count", "embedding_length", "feed_forward_length"))
    heads = _whole(file, "attention.head_count")
    shared, head = _whole(file, "attention.head_count_kv", heads), _whole(file, "attention.key_length", width // heads)
    if head % 2 or heads % shared:
        raise RequestError(f"{file.path}: expected heads of even width that share evenly, found {heads} and {shared} of {head}")
    words = len(file.stated("tokenizer.ggml.tokens", list))
    _fits(file, layers, {"attn_q": (heads * head, width), "attn_k": (shared * head, width), "ffn_down": (width, inner)}, (words, width))
    turns = file.stated(_TURNS, float) if _TURNS in file.metadata else 10000.0
    return transformers.LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=head,
        max_position_embeddings=_whole(file, "context_length"),
        rms_norm_eps=file.stated("llama.attention.layer_norm_rms_epsilon", float),
        rope_parameters={"rope_type": "default", "rope_theta": turns},
        tie_word_embeddings="output.weight" not in file.tensors,
        bos_token_id=file.metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=file.metadata.get("tokenizer.ggml.padding_token_id"),
    )


def tensors(file: gguf.Gguf, stated: transformers.LlamaConfig) -> Tensors:
    """Under transformers' names, float32; a name that is not known stays as it is."""
    heads = {"attn_q": stated.num_attention_heads, "attn_k": stated.num_key_value_heads}
    found: Tensors = {}
    for name, tensor in file.tensors.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        values = torch.from_numpy(gguf.values(tensor))
        found[_renamed(name)] = _halves(values, heads[part]) if part in heads else values
    return found


def _whole(file: gguf.Gguf, key: str, otherwise: int | None = None) -> int:
    key = f"llama.{key}"
    number = file.stated(key, int) if otherwise is None or key in file.metadata else otherwise
    if number < 1:
        raise RequestError(f"{file.path}: {key}: expected at least 1, found {number}")
    return number


def _fits(file: gguf.Gguf, layers: int, inside: dict[str, tuple[int, int]], table: tuple[int, int]) -> None:
    """Raises RequestError with the first tensor that the settings do not describe."""
    if layers > len(file.tensors):
        raise RequestError(f"{file.path}: expected tensors of {layers} layers, found {len(file.tensors)} tensors")
    expected = {f"blk.{layer}.{part}.weight": shape for layer in range(layers) for part, shape in inside.items()}
    for name, shape in {"token_embd.weight": table, **expected}.items():
        found = file.tensors[name].shape if name in file.tensors else "none"
        if found != shape:
            raise RequestError(f"{file.path}: {name}: expected shape {shape}, found {found}")


def _renamed(name: str) -> str:
    part, _, last = name.rpartition(".")
    if part in _OUTSIDE:
        return f"{_OUTSIDE[part]}.{last}"
    first, _, rest = part.partition(".")
    layer, _, inside = rest.partition(".")
    return f"model.layers.{layer}.{_INSIDE[inside]}.{last}" if first == "blk" and inside in _INSIDE else name


def _halves(weight_OI: torch.Tensor, heads: int) -> torch.Tensor:
    """Each head's rows 0, 1, 2, 3, ... to 0, 2, ..., 1, 3, ..."""
    return weight_OI.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
