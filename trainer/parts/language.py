"""The causal language model, from a folder, a file, or new.

A folder is one of transformers' own; or Qwen's, the first (read as Qwen2), or MosaicGPT (read as MPT); or a LLaVA, original or of
transformers, of which the language model is taken. A LLaMA may also be a GGUF file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from schemas import RequestError
from trainer.parts import mpt
from trainer.recipe import LanguageModel
from trainer.weights import config as configs
from trainer.weights import files, gguf, gguf_llama, llava_names, mosaic_gpt, packaged, qwen1


def build(choice: LanguageModel, vocabulary: int) -> Any:
    """The language model of a recipe, float32; ids of its tokenizer are below `vocabulary`. Raises RequestError."""
    if choice.weights is not None and choice.weights.endswith(".gguf"):
        if choice.config:
            raise RequestError("language: expected weights or config, found both")
        return gguf_llama.build(packaged.path(choice.weights))
    if choice.weights is not None:
        stored = configs.stored(choice.weights, "language")
        if qwen1.is_qwen1(stored):
            return _converted(choice, qwen1.as_config(stored), qwen1.to_qwen2)
        if mosaic_gpt.is_mosaic_gpt(stored):
            return _converted(choice, mosaic_gpt.as_config(stored), mosaic_gpt.to_mpt)
        if llava_names.is_llava(stored):
            return _converted(choice, llava_names.language_config(stored), llava_names.language_tensors)
    table = choice.config if choice.weights else {"vocab_size": vocabulary, **choice.config}
    config = configs.read(choice.weights, table, "language", "llama")
    try:
        causal = mpt.kind(config)
        return causal.from_config(config) if choice.weights is None else configs.from_folder(causal, choice.weights, config)
    except ValueError as error:
        raise RequestError(f"language: expected a causal language model, found {str(error).splitlines()[0]}") from error


def shape(choice: LanguageModel) -> Any:
    """The configuration of what `weights` holds, of which nothing else is read. Raises RequestError."""
    place = choice.weights or ""
    if place.endswith(".gguf"):
        return gguf_llama.config(gguf.read(packaged.path(place)))
    stored = configs.stored(place, "language")
    if qwen1.is_qwen1(stored):
        return qwen1.as_config(stored)
    if mosaic_gpt.is_mosaic_gpt(stored):
        return mosaic_gpt.as_config(stored)
    return llava_names.language_config(stored) if llava_names.is_llava(stored) else configs.read(place, choice.config, "language", "llama")


def fits(language: Any, vocabulary: int) -> Any:
    """The same language model. Raises RequestError where the tokenizer has ids that it has no row for."""
    rows = language.get_input_embeddings().weight.shape[0]
    if rows < vocabulary:
        raise RequestError(f"language: expected vocab_size of at least the tokenizer's {vocabulary}, found {rows}")
    return language


def layers(language: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of its layers, and the list's name in it: the outermost ModuleList that is as long as the model is deep.

    Raises RequestError where there is none.
    """
    depth = language.config.get_text_config().num_hidden_layers  # type: ignore[union-attr]
    lists = [(name, module) for name, module in language.named_modules() if isinstance(module, nn.ModuleList)]
    found = [(name.count("."), name, module) for name, module in lists if len(module) == depth]
    if not found:
        raise RequestError(f"language: expected a list of {depth} layers, found lists of {[len(module) for _, module in lists]}")
    _, name, module = min(found, key=lambda item: item[:2])
    return name, module


def positions(language: Any) -> int:
    """How many positions it was made for; 2**31 where it does not say."""
    return int(getattr(language.config, "max_position_embeddings", None) or getattr(language.config, "max_seq_len", None) or 2**31)


def _converted(choice: LanguageModel, config: Any, convert: Any) -> Any:
    model = mpt.kind(config).from_config(config)
    tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
    files.load(model, convert(files.read(choice.weights or "")), f"{choice.weights}", optional=tied)
    return model.to(torch.float32)
