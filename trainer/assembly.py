"""Everything a recipe stands for, put together once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import shards
from schemas import RequestError
from trainer import model, render, tokenizer
from trainer.model import LlavaModel
from trainer.pixels import Preprocess
from trainer.recipe import Recipe
from trainer.render import Renderer
from trainer.sources import open_sources
from trainer.tokenizer import Tokenizer

# https://github.com/openai/CLIP/blob/main/clip/clip.py, _transform; SigLIP's processor has a half throughout.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """The parts of a run."""

    recipe: Recipe
    tokenizer: Tokenizer
    render: Renderer
    data: dict[str, shards.Shards]  # by source
    preprocess: Preprocess
    model: LlavaModel


def assemble(recipe: Recipe) -> Assembly:
    """The parts of this recipe, the cheap ones first: a wrong place is told before weights are read. Raises RequestError."""
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    words = tokenizer.load(recipe.tokenizer)
    data = open_sources(recipe)
    return Assembly(
        recipe=recipe,
        tokenizer=words,
        render=render.renderer(recipe, words),
        data=data,
        preprocess=preprocess(recipe),
        model=model.build(recipe, words.size),
    )


def preprocess(recipe: Recipe) -> Preprocess:
    """The tower's own preprocessing, but for what the recipe states. Raises RequestError where the size is not the tower's."""
    config, asked, saved = model.vision_config(recipe.vision), recipe.pictures, _saved(recipe.vision.weights)
    siglip = config.model_type == "siglip_vision_model"
    mean, std = (HALF, HALF) if siglip else (CLIP_MEAN, CLIP_STD)
    if asked.size is not None and asked.size != config.image_size:
        raise RequestError(f"pictures.size: expected the tower's {config.image_size}, found {asked.size}")
    return Preprocess(
        size=config.image_size,
        mean=asked.mean or tuple(saved.get("image_mean", mean)),
        std=asked.std or tuple(saved.get("image_std", std)),
        squash=siglip,
        pad=asked.image_aspect_ratio == "pad",
    )


def _saved(weights: str | None) -> dict[str, Any]:
    path = Path(weights or ".") / "preprocessor_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if weights and path.is_file() else {}
