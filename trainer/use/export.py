"""A trained run as a folder that others read.

    hf          LlavaForConditionalGeneration of transformers, with its processor and tokenizer: trainer/use/llava_export.py
    language    the language model alone, a folder of transformers
    llava       names and config.json of the original LLaVA, as its own code reads them
    flamingo    OpenFlamingo's checkpoint.pt
    merged      a run folder that needs no other: all parameters under our names, the recipe of their shapes, the tokenizer

LoRA is merged into the weights it stands on. The folder is written aside and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch

from schemas import RequestError
from shards import durable
from trainer import log
from trainer import recipe as recipes
from trainer.flamingo import FlamingoModel
from trainer.llava import LlavaModel
from trainer.parts import lora, tower
from trainer.recipe import Freeze, Lora, Recipe
from trainer.text import tokenizer
from trainer.use import llava_export, trained
from trainer.use.trained import Trained
from trainer.weights import config as configs
from trainer.weights import flamingo_names, llava_names
from trainer.weights.files import Tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ORIGINAL = {  # whose classes the original and its successor have
    "llama": ("llava_llama", "LlavaLlamaForCausalLM"),
    "mistral": ("llava_mistral", "LlavaMistralForCausalLM"),
    "qwen2": ("llava_qwen", "LlavaQwenForCausalLM"),
}


def export(run: Trained, form: str, to: Path, dtype: str = "float32") -> None:
    """Write the folder; the model itself is merged, and in `dtype`, afterwards.

    Raises RequestError where the folder holds something, or the form has no place for such a model: then nothing is written.
    """
    free(to)
    to = to.resolve()
    to.parent.mkdir(parents=True, exist_ok=True)
    aside = durable.aside(to)
    aside.mkdir()
    try:
        run.model.to(DTYPES[dtype])
        FORMS[form](run, aside)
        for path in (*aside.rglob("*"), aside):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes files that nobody else may read
            durable.sync_folder(path)
        aside.replace(to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    durable.sync_folder(to.parent)


def free(to: Path) -> None:
    """Raises RequestError where the folder holds something."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RequestError(f"--to {to}: expected a new or empty folder, found one that holds something")


def _hf(run: Trained, folder: Path) -> None:
    llava_export.export(_llava_model(run, "hf"), run.recipe, run.tokenizer, folder)


def _language(run: Trained, folder: Path) -> None:
    language = cast(Any, _llava_model(run, "language").language)
    lora.merge(language)
    language.save_pretrained(folder)
    tokenizer.export(run.recipe.tokenizer, folder)


def _llava(run: Trained, folder: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    model = _llava_model(run, "llava")
    stated = _original_config(model, run.recipe)
    lora.merge(model.language)
    save_torch_state_dict(llava_names.to_original(_tensors(model)), folder)
    (folder / "config.json").write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.export(run.recipe.tokenizer, folder)


def _flamingo(run: Trained, folder: Path) -> None:
    model, recipe = run.model, run.recipe
    if not isinstance(model, FlamingoModel):
        raise RequestError(f"--form flamingo: expected a model of family flamingo, found {recipe.model.family}")
    if recipe.lora.rank or not recipe.freeze.language:
        raise RequestError("--form flamingo: expected a frozen language model, which a checkpoint.pt does not hold, found a trained one")
    flamingo_names.save(model, folder / "checkpoint.pt")


def _merged(run: Trained, folder: Path) -> None:
    recipe = _whole(run)
    lora.merge(cast(Any, run.model.language))
    safetensors.torch.save_file(_once(_tensors(run.model)), folder / log.WEIGHTS)
    (folder / log.RECIPE).write_text(recipes.as_toml(recipe), encoding="utf-8")
    (folder / trained.TOKENIZER).mkdir()
    tokenizer.export(recipe.tokenizer, folder / trained.TOKENIZER)


FORMS: dict[str, Callable[[Trained, Path], None]] = {
    "hf": _hf,
    "language": _language,
    "llava": _llava,
    "flamingo": _flamingo,
    "merged": _merged,
}


def _llava_model(run: Trained, form: str) -> LlavaModel:
    if not isinstance(run.model, LlavaModel):
        told = "; --form flamingo writes a checkpoint.pt, --form merged all of it" if isinstance(run.model, FlamingoModel) else ""
        raise RequestError(f"--form {form}: expected a model of family llava, found {run.recipe.model.family}{told}")
    return run.model


def _original_config(model: LlavaModel, recipe: Recipe) -> dict[str, Any]:
    """config.json as llava/model/builder.py reads it: the language model's, and what the pictures are. Raises RequestError."""
    text = llava_export.text_config(model)
    if text["model_type"] not in _ORIGINAL or not hasattr(model.vision, "config") or recipe.vision.post_norm:
        found = f"{text['model_type']} and {type(model.vision).__name__}"
        raise RequestError(
            f"--form llava: expected {' or '.join(_ORIGINAL)}, and a tower of transformers before its last norm, found {found}"
        )
    kind, name = _ORIGINAL[text["model_type"]]
    return {
        **text,
        "model_type": kind,
        "architectures": [name],
        "use_mm_proj": True,
        "mm_vision_tower": recipe.vision.weights,
        "mm_hidden_size": tower.width(model.vision),
        "mm_projector_type": recipe.projector.kind,
        "mm_vision_select_layer": recipe.vision.select_layer,
        "mm_vision_select_feature": recipe.vision.select_feature,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "unfreeze_mm_vision_tower": not recipe.freeze.vision,  # else the original takes the tower from mm_vision_tower
        "image_aspect_ratio": recipe.pictures.image_aspect_ratio,
        "tokenizer_model_max_length": recipe.max_tokens,
        "tokenizer_padding_side": "right",
    }


def _whole(run: Trained) -> Recipe:
    """The recipe of the same model, its parts' shapes in place of their folders. A tower that is not transformers' stays a name."""
    recipe, model = run.recipe, cast(Any, run.model)
    parts: dict[str, Any] = {
        "language": dataclasses.replace(recipe.language, weights=None, config=configs.as_table(model.language.config, "language")),
        "projector": dataclasses.replace(recipe.projector, weights=None),
        "flamingo": dataclasses.replace(recipe.flamingo, weights=None),
        "lora": Lora(),
        "freeze": Freeze(vision=False),  # all parameters are here, and all are asked for
    }
    if hasattr(model.vision, "config"):
        table = configs.as_table(model.vision.config, "vision")
        parts["vision"] = dataclasses.replace(recipe.vision, weights=None, config=table)
        parts["pictures"] = dataclasses.replace(recipe.pictures, mean=run.preprocess.mean, std=run.preprocess.std)
    return dataclasses.replace(recipe, out=None, **parts)


def _tensors(model: torch.nn.Module) -> Tensors:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _once(tensors: Tensors) -> Tensors:
    """Without the second name of a tensor that has two: a file of safetensors holds none twice."""
    first: dict[int, str] = {}
    return {name: tensor for name, tensor in tensors.items() if first.setdefault(tensor.data_ptr(), name) == name}
