"""The optimizer's groups against those of the original trainers; the rule is in each folder's README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conformance import goldens
from trainer import recipe as recipes
from trainer.engines import optimizer
from trainer.model import Model, made
from trainer.recipe import Freeze, LanguageModel, Lora, ParameterGroup, Recipe, VisionTower
from trainer.weights import llava_names, qwen1

if not goldens.ROOT.is_dir():
    pytest.skip(f"no reference outputs at {goldens.ROOT}", allow_module_level=True)

FLAMINGO = goldens.ROOT / "openflamingo" / "optimizer_groups.json"
LLAVA, BASICVLM = (goldens.ROOT / system / "lora_and_param_groups.json" for system in ("llava", "basicvlm"))
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 128}
CLIP = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
OPEN_CLIP = {"model_type": "open_clip", "width": 32, "head_width": 16, "layers": 1, "patch_size": 8, "image_size": 16}

Groups = dict[tuple[float, float], set[str]]


def shape(recipe: Recipe, specials: dict[str, int] | None = None) -> Model:
    with torch.device("meta"):
        return made(recipe, 128, specials or {})


def found(groups: list[optimizer.Group], theirs: Any) -> Groups:
    """Names by (learning rate, weight decay), as the original calls them."""
    return {(group.lr, group.weight_decay): {theirs(name) for name in group.names} for group in groups}


def stated(groups: list[dict[str, Any]], kept: Any = lambda name: True) -> Groups:
    """The same of the reference: groups of one learning rate and weight decay are one."""
    sets: Groups = {}
    for group in groups:
        names = {name for name in group["parameters" if "parameters" in group else "params"] if kept(name)}
        if names:
            sets.setdefault((group["lr"], group["weight_decay"]), set()).update(names)
    return sets


def cases(path: Path) -> list[Any]:
    content = goldens.content(path).get("optimizer_groups", {}) if path.is_file() else {}
    return [pytest.param(name, case, id=name) for name, case in content.items()]


def compared(path: Path, name: str) -> None:
    for case in goldens.tables(path, f"optimizer_groups/{name}/"):
        goldens.compared(path, case)


def adam(case: dict[str, Any]) -> None:
    """What is the same in all groups."""
    made = recipes.Optimizer()
    assert case.get("optimizer", "AdamW") == "AdamW"
    assert tuple(case.get("betas", made.betas)) == made.betas
    assert case.get("eps", made.eps) == made.eps


@pytest.mark.skipif(not FLAMINGO.is_file(), reason=f"no {FLAMINGO.name}")
def test_golden_groups_of_openflamingo() -> None:
    case = goldens.content(FLAMINGO)
    config = case["config"]
    layers = 1 + max(int(number) for name in case["all_parameters"] for number in re.findall(r"model\.layers\.(\d+)\.", name))
    recipe = Recipe(
        compat="openflamingo",
        model=recipes.Family(family="flamingo"),
        vision=VisionTower(config=OPEN_CLIP, select_layer=-1),
        language=LanguageModel(config={"model_type": "llama", "num_hidden_layers": layers, **TINY}),
        flamingo=recipes.Flamingo(every=config["cross_attn_every_n_layers"], depth=config["perceiver_depth"]),
        freeze=Freeze(language=True, match=("language.*.rows",) if config["freeze_lm_embeddings"] else ()),
    )
    model = shape(recipe, {"<image>": 126, "<|endofchunk|>": 127})
    chosen = recipes.Optimizer(lr=config["learning_rate"], weight_decay=config["weight_decay"], decay="openflamingo")

    groups = optimizer.groups(model, chosen)

    assert found(groups, of_openflamingo) == stated(case["groups"])
    frozen = {of_openflamingo(name) for name, parameter in model.named_parameters() if not parameter.requires_grad}
    trained = {name for group in case["groups"] for name in group["params"]}
    assert {name for name in frozen if name.startswith("lang_encoder.")} - trained == set(case["not_optimized"]) - trained
    assert set(case["all_parameters"]) == trained | set(case["not_optimized"])
    adam({**case["optimizer"], "optimizer": case["optimizer"]["class"]})
    goldens.compared(FLAMINGO)


def of_openflamingo(name: str) -> str:
    """The table and its new rows are one there; every layer has a decoder_layer, with or without a cross-attention."""
    name = re.sub(r"\.(rows|table\.weight)$", ".weight", name)
    if not name.startswith("language."):
        return name
    own = re.sub(r"(layers\.\d+)\.(?!decoder_layer|gated_cross_attn_layer)", r"\1.decoder_layer.", name)
    return "lang_encoder." + own.removeprefix("language.")


@pytest.mark.parametrize(("name", "case"), cases(LLAVA))
def test_golden_groups_of_llava(name: str, case: dict[str, Any]) -> None:
    model = goldens.content(LLAVA)
    with_lora = name.startswith("lora")
    layers = model["model"]["text_config"]["num_hidden_layers"]
    recipe = Recipe(
        vision=VisionTower(config=CLIP),
        language=LanguageModel(config={"model_type": "llama", "num_hidden_layers": layers, **TINY}),
        lora=Lora(rank=model["lora_r"] if with_lora else 0, alpha=model["lora_alpha"]),
        freeze=Freeze(language=name.startswith("stage1")),
    )
    chosen = settings(case["learning_rate"], case["weight_decay"], case["mm_projector_lr"])

    groups = optimizer.groups(shape(recipe), chosen)

    assert found(groups, of_llava_lora if with_lora else of_llava) == stated(case["groups"])
    adam(case)
    compared(LLAVA, name)


def of_llava(name: str) -> str:
    return next(iter(llava_names.to_original({name: torch.empty(0)})))


def of_llava_lora(name: str) -> str:
    return "base_model.model." + ("model.mm_" + name if name.startswith("projector.") else name.removeprefix("language."))


@pytest.mark.parametrize(("name", "case"), cases(BASICVLM))
def test_golden_groups_of_basicvlm(name: str, case: dict[str, Any]) -> None:
    """The reference lists its tower, which it does not train either."""
    content = goldens.content(BASICVLM)
    layers = len({layer.split(".")[2] for layer in content["all_linear_modules_of_llm"] if ".h." in layer})
    recipe = Recipe(
        vision=VisionTower(config=CLIP),
        language=LanguageModel(config={"model_type": "qwen2", "num_hidden_layers": layers, **TINY}),
        lora=Lora(rank=content["lora_rank"], alpha=content["lora_alpha"], targets=tuple(content["target_modules_argument"].split("|"))),
    )
    chosen = settings(case["learning_rate"], case["weight_decay"], case["feature_proj_lr"])

    groups = optimizer.groups(shape(recipe), chosen)

    assert found(groups, of_basicvlm) == stated(case["groups"], lambda name: not name.startswith("visualModel."))
    adam(case)
    compared(BASICVLM, name)


def of_basicvlm(name: str) -> str:
    """Query, key and value are one there."""
    if name.startswith("projector."):
        return "feature_proj" + name.removeprefix("projector")
    back = {part: word for word, parts in qwen1.TARGETS.items() if word != "c_proj" for part in parts}
    layer, part, rest = re.fullmatch(r"language\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.(.+)", name).groups()  # type: ignore[union-attr]
    inside = "attn" if back[part] == "c_attn" else "mlp"
    return f"LLM.base_model.model.transformer.h.{layer}.{inside}.{back[part]}.{rest}"


def settings(lr: float, weight_decay: float, projector_lr: float | None) -> recipes.Optimizer:
    own = () if projector_lr is None else (ParameterGroup(match="projector", lr=projector_lr),)
    return recipes.Optimizer(lr=lr, weight_decay=weight_decay, decay="transformers", groups=own)
