"""A trained LLaVA as a folder that transformers reads: LlavaForConditionalGeneration, with its processor and tokenizer.

The weights are written in the layout that old and new transformers read (trainer/weights/llava_names.py), the configurations by hand: what
save_pretrained of one version writes, another does not always read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch

from schemas import RequestError
from trainer.llava import LlavaModel
from trainer.parts import lora, tower
from trainer.recipe import Recipe
from trainer.text import tokenizer
from trainer.text.tokenizer import Tokenizer
from trainer.weights import llava_names
from trainer.weights.files import Tensors

IMAGE_TOKEN = "<image>"  # noqa: S105 - no password


def export(model: LlavaModel, recipe: Recipe, words: Tokenizer, folder: Path) -> None:
    """Write the folder; LoRA is merged into the model first. Logits of the folder's model are the model's.

    A token <image> is added where the tokenizer has none, with a row of its own in embedding and head: the mean of the others.
    Raises RequestError where transformers' model has no such part.
    """
    from huggingface_hub import save_torch_state_dict

    _check(model, recipe)
    lora.merge(model.language)
    image_id = words.specials.get(IMAGE_TOKEN, words.size)
    tensors = _with_row(llava_names.to_transformers(model.state_dict()), image_id)
    folder.mkdir(parents=True, exist_ok=True)
    rows = tensors["language_model.model.embed_tokens.weight"].shape[0]
    _write(folder / "config.json", _config(model, recipe, image_id, rows))
    _write(folder / "preprocessor_config.json", _preprocessor(model, recipe))
    _write(folder / "processor_config.json", {"processor_class": "LlavaProcessor", "image_token": IMAGE_TOKEN, **_tokens(model, recipe)})
    _write(folder / "generation_config.json", {"eos_token_id": words.eos, "pad_token_id": words.eos})
    tokenizer.export(recipe.tokenizer, folder, add=(IMAGE_TOKEN,))
    save_torch_state_dict({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder)


def _check(model: LlavaModel, recipe: Recipe) -> None:
    where = "export: expected what LlavaForConditionalGeneration has,"
    if recipe.projector.kind == "linear":
        raise RequestError(f"{where} a projector of two layers, found projector.kind = linear")
    if not hasattr(model.vision, "config") or recipe.vision.post_norm:
        found = "vision.post_norm" if recipe.vision.post_norm else type(model.vision).__name__
        raise RequestError(f"{where} a tower of transformers before its last norm, found {found}")
    if not hasattr(model.language, "model") or not hasattr(model.language, "lm_head"):
        raise RequestError(f"{where} a language model of LLaMA's layout, found {type(model.language).__name__}")


def _with_row(tensors: Tensors, image_id: int) -> Tensors:
    """With a row for the image's token, where there is none."""
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        table = tensors[name]
        if image_id >= len(table):
            new = table.float().mean(0).to(table.dtype).expand(image_id + 1 - len(table), -1)
            tensors[name] = torch.cat([table, new])
    return tensors


def text_config(model: LlavaModel) -> dict[str, Any]:
    """The language model's, as old and new transformers read it: these look for the angles of positions in different places."""
    text = cast(Any, model.language).config.to_dict()
    rope = text.get("rope_parameters") or {}
    return {**text, "rope_theta": rope["rope_theta"]} if "rope_theta" in rope else text


def _config(model: LlavaModel, recipe: Recipe, image_id: int, rows: int) -> dict[str, Any]:
    text, vision = text_config(model), cast(Any, model.vision).config.to_dict()
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": image_id,
        "image_seq_length": model.patches,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": recipe.vision.select_layer,
        "vision_feature_select_strategy": _strategy(model, recipe),
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "text_config": {**text, "vocab_size": rows},
        "vision_config": vision,
        "dtype": str(next(model.language.parameters()).dtype).removeprefix("torch."),
    }


def _strategy(model: LlavaModel, recipe: Recipe) -> str:
    """default leaves the first position out: CLIP's class token, or the patch that Basic-VLM takes for one."""
    left_out = (_has_cls(model) and recipe.vision.select_feature == "patch") or model.skip
    return "default" if left_out else "full"


def _has_cls(model: LlavaModel) -> bool:
    return cast(Any, model.vision).config.model_type == "clip_vision_model"


def _tokens(model: LlavaModel, recipe: Recipe) -> dict[str, Any]:
    """What the processor counts a picture's positions from."""
    size = cast(Any, model.vision).config.patch_size
    strategy = _strategy(model, recipe)
    return {"patch_size": size, "vision_feature_select_strategy": strategy, "num_additional_image_tokens": int(_has_cls(model))}


def _preprocessor(model: LlavaModel, recipe: Recipe) -> dict[str, Any]:
    made = tower.preprocess(recipe)
    square = {"height": made.size, "width": made.size}
    return {
        "image_processor_type": "LlavaImageProcessor" if made.pad else "SiglipImageProcessor" if made.squash else "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_pad": made.pad,
        "do_resize": True,
        "size": square if made.squash else {"shortest_edge": made.size},
        "resample": 3,
        "do_center_crop": not made.squash,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(made.mean),
        "image_std": list(made.std),
        "do_convert_rgb": True,
    }


def _write(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")
