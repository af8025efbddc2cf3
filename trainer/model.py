"""A LLaVA-style model put together from transformers: vision tower, projector, causal language model.

Axes: B rows, T tokens, S spliced positions, N pictures, P patches, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
import transformers
from torch import nn

from schemas import RequestError
from trainer.batch import Batch
from trainer.recipe import LanguageModel, Recipe, VisionTower
from trainer.rendered import IGNORE
from trainer.splice import splice

TOWERS = {"clip_vision_model": transformers.CLIPVisionModel, "siglip_vision_model": transformers.SiglipVisionModel}
_HAS_CLS = {"clip_vision_model": True, "siglip_vision_model": False}


class TokenLoss(NamedTuple):
    """The sum of the token losses, and over how many tokens."""

    total: torch.Tensor  # float32 scalar
    tokens: int


class LlavaModel(nn.Module):
    """Three parts, called vision, projector and language; these are the first words of its parameters' names."""

    def __init__(self, vision: nn.Module, projector: nn.Module, language: nn.Module, choice: VisionTower, longest: int) -> None:
        super().__init__()
        self.vision, self.projector, self.language = vision, projector, language
        self.choice, self.longest = choice, longest

    def forward(self, batch: Batch) -> TokenLoss:
        """The loss of predicting every supervised token from what stands before it."""
        logits_BSV, labels_BS = self.logits(batch)
        targets_BS = labels_BS[:, 1:]
        total = F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1).float(), targets_BS.flatten(), ignore_index=IGNORE, reduction="sum")
        return TokenLoss(total, int((targets_BS != IGNORE).sum()))

    def logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, S, V) and labels (B, S), not shifted, after the pictures are spliced in."""
        embed = cast(Any, self.language).get_input_embeddings()
        features_NPD = torch.empty(0) if batch.pixels_NCHW is None else self.features(batch.pixels_NCHW)
        embeds_BSD, labels_BS, mask_BS = splice(batch.ids_BT, batch.labels_BT, batch.mask_BT, embed, features_NPD, self.longest)
        out = self.language(inputs_embeds=embeds_BSD, attention_mask=mask_BS, use_cache=False)
        return out.logits, labels_BS

    def features(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """Projected patches (N, P, D) of the chosen hidden layer."""
        trained = any(parameter.requires_grad for parameter in self.vision.parameters())
        with contextlib.nullcontext() if trained else torch.no_grad():
            hidden_NPD = self.vision(pixels_NCHW, output_hidden_states=True).hidden_states[self.choice.select_layer]
        model_type = cast(Any, self.vision).config.model_type
        if _HAS_CLS[model_type] and self.choice.select_feature == "patch":
            hidden_NPD = hidden_NPD[:, 1:]
        return self.projector(hidden_NPD)


def build(recipe: Recipe, vocabulary: int) -> LlavaModel:
    """The model of a recipe, float32, seeded, its frozen parts without gradients. `vocabulary`: ids of the tokenizer are below it.

    Raises RequestError where a part is not stated, or the parts and the tokenizer do not fit each other.
    """
    torch.manual_seed(recipe.seed)
    vision = _vision(recipe.vision)
    language = _language(recipe.language, vocabulary)
    wide, narrow = vision.config.hidden_size, language.get_input_embeddings().embedding_dim
    projector = _projector(recipe.projector.kind, wide, narrow)
    for part, frozen in ((vision, recipe.freeze.vision), (projector, recipe.freeze.projector), (language, recipe.freeze.language)):
        part.requires_grad_(not frozen)
    if all((recipe.freeze.vision, recipe.freeze.projector, recipe.freeze.language)):
        raise RequestError("freeze: expected a part to train, found all of them frozen")
    model = LlavaModel(vision, projector, language, recipe.vision, _longest(recipe, language.config))
    return model.to(_device(recipe.device))


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        raise RequestError(f"device {name}: expected a device of this machine, found {str(error).splitlines()[0]}") from error


def _projector(kind: str, wide: int, narrow: int) -> nn.Module:
    """Its keys are those of LLaVA's checkpoints: 0 and 2 for the two layers, none for the one."""
    if kind == "linear":
        return nn.Linear(wide, narrow)
    return nn.Sequential(nn.Linear(wide, narrow), nn.GELU(), nn.Linear(narrow, narrow))


def _longest(recipe: Recipe, config: Any) -> int:
    """Spliced positions. LLaVA cuts to max_tokens a second time; by default nothing is lost that the model has positions for."""
    if recipe.compat == "llava":
        return recipe.max_tokens
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def _vision(choice: VisionTower) -> Any:
    config = vision_config(choice)
    depth = config.num_hidden_layers
    if not -depth - 1 <= choice.select_layer <= depth:
        raise RequestError(f"vision.select_layer: expected {-depth - 1} to {depth} for {depth} layers, found {choice.select_layer}")
    tower = TOWERS[config.model_type]
    if choice.weights is None:
        return tower(config)
    return _from_folder(tower, choice.weights, config)


def vision_config(choice: VisionTower) -> Any:
    """The configuration of the tower alone, also where the folder holds a whole CLIP."""
    config = _config(choice.weights, choice.config, "vision", "clip_vision_model")
    config = getattr(config, "vision_config", config)
    if config.model_type not in TOWERS:
        raise RequestError(f"vision: expected model_type {' or '.join(TOWERS)}, found {config.model_type}")
    return config


def _language(choice: LanguageModel, vocabulary: int) -> Any:
    table = choice.config if choice.weights else {"vocab_size": vocabulary, **choice.config}
    config = _config(choice.weights, table, "language", "llama")
    if config.vocab_size < vocabulary:
        raise RequestError(f"language: expected vocab_size of at least the tokenizer's {vocabulary}, found {config.vocab_size}")
    causal = transformers.AutoModelForCausalLM
    try:
        return causal.from_config(config) if choice.weights is None else _from_folder(causal, choice.weights, config)
    except ValueError as error:
        raise RequestError(f"language: expected a causal language model, found {str(error).splitlines()[0]}") from error


def _config(weights: str | None, table: dict[str, Any], part: str, example: str) -> Any:
    if weights is not None:
        if not (Path(weights) / "config.json").is_file():
            raise RequestError(f"{part}.weights {weights}: expected a folder with config.json, found none")
        if table.keys() - {"vocab_size"}:
            raise RequestError(f"{part}: expected weights or config, found both")
        return transformers.AutoConfig.from_pretrained(weights, local_files_only=True)
    if "model_type" not in table:
        raise RequestError(f'{part}: expected weights = FOLDER or config = {{model_type = "{example}", ...}}, found neither')
    try:
        return transformers.AutoConfig.for_model(**table)
    except Exception as error:  # transformers raises what it likes on a wrong value
        raise RequestError(f"{part}.config: expected a configuration that transformers knows, found {_line(error)}") from error


def _from_folder(kind: Any, folder: str, config: Any) -> Any:
    logging.getLogger("transformers").setLevel(logging.ERROR)  # a whole CLIP has a text tower that is not wanted
    try:
        return kind.from_pretrained(folder, config=config, local_files_only=True, dtype=torch.float32)
    except OSError as error:
        raise RequestError(f"{folder}: expected weights, found {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
