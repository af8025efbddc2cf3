"""The vision tower: of transformers a CLIP or SigLIP, any of open_clip's, EfficientNet-Lite0; its patches, and how its pictures are made.

Axes: N pictures, P patches, W the tower's width.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn

from schemas import RequestError
from trainer.data.pixels import Preprocess
from trainer.parts import efficientnet
from trainer.parts.efficientnet import EfficientNetLite0
from trainer.recipe import Recipe, VisionTower, nearest
from trainer.weights import config as configs
from trainer.weights import files, llava_names

TOWERS = {"clip_vision_model": transformers.CLIPVisionModel, "siglip_vision_model": transformers.SiglipVisionModel}
OPEN_CLIP = "open_clip"  # model_type of a new tower whose configuration is that of open_clip's CLIPVisionCfg

# https://github.com/openai/CLIP/blob/main/clip/clip.py, _transform; SigLIP's processor has a half throughout.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


class OpenClipTower(nn.Module):
    """One of open_clip's towers. Its patches are taken before its last norm: there the released Flamingo weights were trained."""

    def __init__(self, visual: nn.Module, width: int, depth: int, size: int) -> None:
        super().__init__()
        self.visual, self.width, self.depth, self.size = visual, width, depth, size

    def patches(self, pixels_NCHW: torch.Tensor, layer: int) -> torch.Tensor:
        """(N, P, W) behind `layer`: an index into the hidden states. The patch embedding, 0, open_clip does not give."""
        block = (layer if layer >= 0 else self.depth + 1 + layer) - 1
        visual: Any = self.visual
        options = {"normalize_intermediates": False, "intermediates_only": True, "output_fmt": "NLC"}
        return visual.forward_intermediates(pixels_NCHW, indices=[block], stop_early=True, **options)["image_intermediates"][0]

    @property
    def count(self) -> int:
        """P."""
        visual: Any = self.visual
        trunk = getattr(visual, "trunk", None)  # of timm
        return int(trunk.patch_embed.num_patches if trunk is not None else visual.grid_size[0] * visual.grid_size[1])


# Towers that are not of transformers: they say width, size and count themselves, and give their patches.
OWN = (OpenClipTower, EfficientNetLite0)


def build(choice: VisionTower) -> nn.Module:
    """The tower of a recipe, float32. Raises RequestError where it is not stated, not there, or has no such layer."""
    if efficientnet.chosen(choice):
        return efficientnet.build(choice)
    if is_open_clip(choice):
        tower: nn.Module = _open_clip(choice)
        least, depth = -tower.depth, tower.depth
    else:
        known = config(choice)
        kind, least, depth = TOWERS[known.model_type], -known.num_hidden_layers - 1, known.num_hidden_layers
        tower = kind(known) if choice.weights is None else _from_folder(kind, choice.weights, known)
    if not least <= choice.select_layer <= depth or (choice.select_layer == 0 and is_open_clip(choice)):
        raise RequestError(f"vision.select_layer: expected {least} to {depth} for {depth} layers, found {choice.select_layer}")
    return tower


def width(tower: nn.Module) -> int:
    """W."""
    return tower.width if isinstance(tower, OWN) else int(tower.config.hidden_size)  # type: ignore[union-attr]


def image_size(tower: nn.Module) -> int:
    """Pixels of an edge."""
    return tower.size if isinstance(tower, OWN) else int(tower.config.image_size)  # type: ignore[union-attr]


def patches(tower: nn.Module, pixels_NCHW: torch.Tensor, choice: VisionTower) -> torch.Tensor:
    """Patches (N, P, W) of the chosen hidden layer, the class token among them if the recipe wants it. No graph if it is frozen."""
    trained = any(parameter.requires_grad for parameter in tower.parameters())
    pixels_NCHW = pixels_NCHW.to(next(tower.parameters()).dtype)
    with contextlib.nullcontext() if trained else torch.no_grad():
        if isinstance(tower, OWN):
            return tower.patches(pixels_NCHW, choice.select_layer)
        out = tower(pixels_NCHW, output_hidden_states=True)
        hidden_NPW = out.last_hidden_state if choice.post_norm else out.hidden_states[choice.select_layer]
    has_cls = tower.config.model_type == "clip_vision_model"  # type: ignore[union-attr]
    return hidden_NPW[:, 1:] if has_cls and choice.select_feature == "patch" else hidden_NPW


def freeze_unused(tower: nn.Module, choice: VisionTower) -> None:
    """What lies behind the chosen layer gets no gradient from any batch, and DDP waits for one of every parameter: it is not trained."""
    trained = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    if not trained:
        return
    size = image_size(tower)
    with torch.enable_grad():
        total = patches(tower, torch.zeros(1, 3, size, size, device=trained[0].device), choice).float().sum()
        gradients = torch.autograd.grad(total, trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def patch_count(tower: nn.Module, choice: VisionTower) -> int:
    """P."""
    if isinstance(tower, OWN):
        return tower.count
    known = cast(Any, tower).config
    has_cls = known.model_type == "clip_vision_model" and choice.select_feature == "cls_patch"
    return int((known.image_size // known.patch_size) ** 2 + has_cls)


def is_open_clip(choice: VisionTower) -> bool:
    """Whether the recipe's tower is one of open_clip's."""
    return choice.open_clip is not None or choice.config.get("model_type") == OPEN_CLIP


def config(choice: VisionTower) -> Any:
    """The configuration of a tower of transformers, also where the folder holds a whole CLIP."""
    known = configs.read(choice.weights, choice.config, "vision", "clip_vision_model")
    known = getattr(known, "vision_config", known)
    if known.model_type not in TOWERS:
        raise RequestError(f"vision: expected model_type {' or '.join([*TOWERS, OPEN_CLIP, efficientnet.KIND])}, found {known.model_type}")
    if choice.post_norm and choice.select_layer != -1:
        raise RequestError(f"vision.post_norm: expected select_layer = -1 with it, found {choice.select_layer}")
    return known


def preprocess(recipe: Recipe) -> Preprocess:
    """The tower's own preprocessing, but for what the recipe states. Raises RequestError where the size is not the tower's."""
    asked = recipe.pictures
    size, mean, std, squash = _preprocess(recipe.vision)
    if asked.size is not None and asked.size != size:
        raise RequestError(f"pictures.size: expected the tower's {size}, found {asked.size}")
    pad = asked.image_aspect_ratio == "pad"
    return Preprocess(size=size, mean=asked.mean or tuple(mean), std=asked.std or tuple(std), squash=squash, pad=pad)


def _from_folder(kind: Any, folder: str, known: Any) -> nn.Module:
    """A tower, a whole CLIP or SigLIP, or a LLaVA of which the tower is taken."""
    if not llava_names.is_llava(configs.stored(folder, "vision")):
        return configs.from_folder(kind, folder, known)
    tower = kind(known)
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tower.state_dict()) else ""
    found = llava_names.vision_tensors(files.read(folder))
    files.load(tower, {prefix + name.removeprefix("vision_model."): tensor for name, tensor in found.items()}, folder)
    return tower


def _preprocess(choice: VisionTower) -> tuple[int, tuple[float, ...], tuple[float, ...], bool]:
    """Size, mean, std, and whether a picture is squashed to the square."""
    if efficientnet.chosen(choice):
        return EfficientNetLite0.size, efficientnet.MEAN, efficientnet.STD, False
    if is_open_clip(choice):
        return _open_clip_preprocess(choice)
    known, saved = config(choice), _saved(choice.weights)
    siglip = known.model_type == "siglip_vision_model"
    mean, std = (HALF, HALF) if siglip else (CLIP_MEAN, CLIP_STD)
    return known.image_size, saved.get("image_mean", mean), saved.get("image_std", std), siglip


def _saved(weights: str | None) -> dict[str, Any]:
    path = Path(weights or ".") / "preprocessor_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if weights and path.is_file() else {}


def _open_clip(choice: VisionTower) -> OpenClipTower:
    cfg, embed_dim, quick_gelu = _open_clip_config(choice)
    if choice.weights is None:
        from open_clip.model import CLIPVisionCfg, _build_vision_tower

        try:
            visual = _build_vision_tower(embed_dim, CLIPVisionCfg(**cfg), quick_gelu)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RequestError(f"vision.config: expected open_clip's CLIPVisionCfg, found {configs.line(error)}") from error
    else:
        visual = _open_clip_pretrained(choice)
    trunk: Any = getattr(visual, "trunk", None)  # of timm
    if trunk is not None:
        return OpenClipTower(visual, trunk.num_features, len(trunk.blocks), _edge(cfg))
    return OpenClipTower(visual, cfg.get("width", 768), cfg.get("layers", 12), _edge(cfg))


def _open_clip_pretrained(choice: VisionTower) -> nn.Module:
    """The tower of a whole open_clip model: a tag of open_clip's, which it downloads once, or a file."""
    import open_clip

    name, weights = choice.open_clip or "", choice.weights or ""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights not in tags and not Path(weights).is_file():
        raise RequestError(f"vision.weights {weights}: expected a file or one of {name}'s tags, {', '.join(tags)}, found neither")
    logging.getLogger().setLevel(max(logging.getLogger().level, logging.WARNING))  # it logs to the root
    try:
        return open_clip.create_model(name, pretrained=weights, precision="fp32").visual  # type: ignore[return-value]
    except Exception as error:  # whatever a download or a file raises, it gave no weights
        where = open_clip.get_pretrained_cfg(name, weights)
        told = f"; it is at {where.get('url') or where.get('hf_hub')}" if where else ""
        raise RequestError(f"vision.weights {weights}: expected weights of {name}, found {configs.line(error)}{told}") from error


def _open_clip_config(choice: VisionTower) -> tuple[dict[str, Any], int, bool]:
    """Its CLIPVisionCfg, embedding width, and whether it has the GELU of OpenAI's weights."""
    import open_clip

    if choice.open_clip is None:
        cfg = {key: value for key, value in choice.config.items() if key != "model_type"}
        return cfg, cfg.get("width", 768), False
    known = open_clip.get_model_config(choice.open_clip)
    if known is None:
        near = nearest(choice.open_clip, open_clip.list_models())
        raise RequestError(f"vision.open_clip: expected a name that open_clip knows, found {choice.open_clip}{near}")
    stated = open_clip.get_pretrained_cfg(choice.open_clip, choice.weights or "") or {}
    return known["vision_cfg"], known["embed_dim"], bool(stated.get("quick_gelu", known.get("quick_gelu", False)))


def _open_clip_preprocess(choice: VisionTower) -> tuple[int, tuple[float, ...], tuple[float, ...], bool]:
    import open_clip

    cfg, _, _ = _open_clip_config(choice)
    stated = open_clip.get_pretrained_cfg(choice.open_clip or "", choice.weights or "") or {}
    squash = stated.get("resize_mode") == "squash"
    return _edge(cfg), tuple(stated.get("mean") or CLIP_MEAN), tuple(stated.get("std") or CLIP_STD), squash


def _edge(cfg: dict[str, Any]) -> int:
    size = cfg.get("image_size", 224)
    return int(size if isinstance(size, int) else size[0])
