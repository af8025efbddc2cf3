"""Prompts, pixels, weights and LoRA against what the original Basic-VLM gave; the rule is in the folder's README."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pipelines.llava import Llava
from schemas import Record
from schemas.record import image, image_part, record, text_part, turn
from tests.conformance import goldens
from trainer import llava
from trainer import recipe as recipes
from trainer.data.batch import Batch
from trainer.data.pixels import Preprocess
from trainer.model import token_loss
from trainer.parts import language, lora, tower
from trainer.recipe import Lora, Recipe, TokenizerChoice
from trainer.text import render, tokenizer
from trainer.text.basicvlm_text import SYSTEM
from trainer.text.rendered import Rendered
from trainer.weights import files, llava_names, qwen1

REPOSITORY = Path(__file__).parents[2]
GOLDEN = goldens.ROOT / "basicvlm"
QWEN = Path(os.environ.get("SHARDWEAVE_DATA", REPOSITORY / "../shared/data")) / "tokenizers" / "qwen"

if not GOLDEN.is_dir():
    pytest.skip(f"no reference outputs at {GOLDEN}", allow_module_level=True)
PLACEHOLDER = "<|extra_0|>"


EXAMPLES_FILE, LORA_FILE = GOLDEN / "training_examples.json", GOLDEN / "lora_and_param_groups.json"
EXAMPLES = goldens.content(EXAMPLES_FILE)
MODELS = sorted(path.parent for path in GOLDEN.glob("model*/config.json"))
needs_qwen = pytest.mark.skipif(not (QWEN.is_dir() and EXAMPLES), reason=f"no Qwen tokenizer at {QWEN}, or no {EXAMPLES_FILE.name}")
each_model = pytest.mark.parametrize("golden", MODELS, ids=lambda path: path.name)


@cache
def qwen() -> tokenizer.Tokenizer:
    return tokenizer.load(TokenizerChoice(path=str(QWEN)))


def answer_of(example: dict[str, Any]) -> str:
    return example["a"] if isinstance(example["a"], str) else example["a"][example["selected_answer_index"]]


def as_record(question: str, answer: str) -> Record:
    before, _, after = question.partition(PLACEHOLDER)
    parts = [text_part(before)] * bool(before) + [image_part(0)] + [text_part(after)] * bool(after)
    shown = [image(width=4, height=4, format="jpg", bytes=1)]
    return record("basicvlm", images=shown, turns=[turn("user", parts), turn("assistant", [text_part(answer)])])


def rendered_as(stored: Record, compat: str) -> Rendered:
    recipe = Recipe(template="qwen", system=EXAMPLES["system_prompt"], compat=compat)  # type: ignore[arg-type]
    return render.renderer(recipe, qwen())(stored, stored.turns)


def expanded(out: Rendered, length: int) -> list[int]:
    """Labels of the row that the language model sees: a picture is `length` positions."""
    return [label for id, label in zip(out.ids, out.labels, strict=True) for _ in range(length if id == -200 else 1)]


def right(case: dict[str, Any], out: Rendered) -> None:
    placeholder = case["placeholder_id"]
    assert [placeholder if id == -200 else id for id in out.ids] == [*case["input_ids"], EXAMPLES["eod_id"]]
    assert [at for at, id in enumerate(out.ids) if id == -200] == case["placeholder_positions"]
    collated = case["single_collated"]
    labels = expanded(out, EXAMPLES["image_context_length"])
    assert len(labels) == collated["labels_length"]
    assert {str(at): label for at, label in enumerate(labels) if label != -100} == {
        str(at): label for at, label in collated["labels_nonignored"].items()
    }


@needs_qwen
@pytest.mark.parametrize("case", EXAMPLES.get("examples", []), ids=lambda case: case["case_id"])
def test_golden_examples_have_the_right_ids_and_labels_in_compat(case: dict[str, Any]) -> None:
    goldens.compared(EXAMPLES_FILE, f"examples/{case['case_id']}", goldens.COMPAT)
    right(case, rendered_as(as_record(case["q"], answer_of(case)), "basicvlm"))


def literal(case: dict[str, Any]) -> bool:
    return "<|" in case["q"].replace(PLACEHOLDER, "") or "<|" in answer_of(case)


@needs_qwen
@pytest.mark.parametrize("case", [case for case in EXAMPLES.get("examples", []) if not literal(case)], ids=lambda case: case["case_id"])
def test_golden_examples_have_the_right_ids_and_labels_by_default(case: dict[str, Any]) -> None:
    goldens.compared(EXAMPLES_FILE, f"examples/{case['case_id']}", goldens.DEFAULT)
    right(case, rendered_as(as_record(case["q"], answer_of(case)), "none"))


@needs_qwen
def test_golden_batches_have_the_right_labels() -> None:
    outs = [rendered_as(as_record(case["q"], answer_of(case)), "basicvlm") for case in EXAMPLES["examples"]]
    for number, batch in enumerate(EXAMPLES["batches"]):
        goldens.compared(EXAMPLES_FILE, f"batches/{number}", goldens.COMPAT)
        length, eod = batch["image_context_length"], EXAMPLES["eod_id"]
        for row, out in enumerate(outs):
            ids = [EXAMPLES["examples"][row]["placeholder_id"] if id == -200 else id for id in out.ids]
            assert batch["input_ids"][row] == ids + [eod] * (len(batch["input_ids"][row]) - len(ids))
            labels = expanded(out, length)
            found = {str(at): label for at, label in enumerate(labels) if label != -100}
            assert {str(at): label for at, label in batch["labels_nonignored"][row].items()} == found
            if batch["labels"] is not None:
                assert batch["labels"][row] == labels + [-100] * (len(batch["labels"][row]) - len(labels))


@needs_qwen
def test_golden_rows_of_llava_files_become_the_questions_and_answers() -> None:
    files = [name for name, rows in EXAMPLES["annotation_rows"].items() if any("conversations" in row for row in rows)]
    rows = [row for file in files for row in EXAMPLES["annotation_rows"][file]]
    shown = [row["image"] for row in rows]
    for name in files:
        goldens.compared(EXAMPLES_FILE, f"annotation_rows/{name}", goldens.COMPAT)
    for row in rows:
        question, answer = (turn["value"].replace("<image>", PLACEHOLDER) for turn in row["conversations"][:2])
        found = [case for case in EXAMPLES["examples"] if case["q"] == question.replace("\n", "") and answer_of(case) == answer]
        assert found or shown.count(row["image"]) > 1  # of several rows with one picture the reference loses some
        for case in found[:1]:
            right(case, rendered_as(as_record(question, answer), "basicvlm"))


QUESTIONS = (f"这幅图像描述了什么？{PLACEHOLDER}", f"{PLACEHOLDER}这幅图像中有什么？")


@needs_qwen
def test_golden_rows_of_captions_become_the_questions_and_answers_that_chance_chose() -> None:
    chance = np.random.RandomState(EXAMPLES["process_seed"])
    for name, rows in EXAMPLES["annotation_rows"].items():
        for number, row in enumerate(rows):
            if "caption" not in row:
                continue
            goldens.compared(EXAMPLES_FILE, f"annotation_rows/{name}/{number}", goldens.COMPAT)
            captions = row["caption"]
            answer = captions if isinstance(captions, str) else captions[chance.choice(len(captions))]
            question = QUESTIONS[0 if chance.rand() > 0.5 else 1]
            case = next(case for case in EXAMPLES["examples"] if case["ID"] == EXAMPLES["image_map"][row["image_id"]]["ID"])
            right(case, rendered_as(as_record(question, answer), "basicvlm"))


@needs_qwen
@pytest.mark.parametrize("case", EXAMPLES.get("examples", []), ids=lambda case: case["case_id"])
def test_golden_prompts_of_the_chat_helper_hold_the_placeholder_as_text(case: dict[str, Any]) -> None:
    stored = record("basicvlm", turns=[turn("user", [text_part(case["q"])]), turn("assistant", [text_part("a")])])

    out = rendered_as(stored, "none")

    assert out.ids[:-2] == case["make_context_token_ids"]


def test_golden_examples_have_the_system_prompt_that_is_ours() -> None:
    assert EXAMPLES.get("system_prompt", SYSTEM) == SYSTEM


def pictures() -> list[Any]:
    found = [(file, *case) for file in sorted(GOLDEN.glob("siglip_preprocess_*.json")) for case in goldens.tables(file, "cases/").items()]
    return [pytest.param(file, name, case, id=case["file"]) for file, name, case in found]


def test_golden_rows_with_the_same_picture_keep_their_own_answers(tmp_path: Path, photo: Callable[..., bytes]) -> None:
    file = GOLDEN / "id_collision.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    goldens.compared(file, mode=goldens.DEFAULT)
    stated = goldens.content(file)
    pairs = []
    for name in sorted(name for name in stated if name.startswith("file")):
        path = tmp_path / f"{name}.json"
        rows = stated[name]
        for row in rows:
            for sentence, role in zip(row["conversations"], ("human", "gpt"), strict=False):
                sentence["from"] = role
            (tmp_path / row["image"]).write_bytes(photo())
        path.write_text(json.dumps(rows))
        source = Llava(annotations=(path,), images=(tmp_path,))
        for row in (row for unit in source.units(None) for row in source.rows(unit)):
            made = source.sample(row).record
            said = [turn.text() for turn in made.turns]
            pairs.append({"image": made.images[0].origin, "q": PLACEHOLDER + said[0].strip(), "a": said[1]})

    assert pairs == stated["by_construction_pairs"]


@pytest.mark.parametrize(("file", "name", "case"), pictures())
def test_golden_pictures_give_the_right_pixels(file: Path, name: str, case: dict[str, Any]) -> None:
    goldens.compared(file, name)
    goldens.compared(GOLDEN / case["file"])
    stated = goldens.content(file)
    size = case["shape"][1]
    preprocess = Preprocess(size=size, mean=tuple(stated["mean"]), std=tuple(stated["std"]), squash=True, pad=False)

    pixels_CHW = preprocess.pixels((GOLDEN / case["file"]).read_bytes())

    samples = [float(pixels_CHW[tuple(place)]) for place in stated["sample_positions_c_y_x"]]
    np.testing.assert_allclose(samples, case["samples_float32"], atol=2e-5, rtol=0)
    np.testing.assert_allclose(pixels_CHW.mean((1, 2)), case["mean"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(pixels_CHW.std((1, 2)), case["std"], atol=1e-5, rtol=0)


def qwen_folder(golden: Path, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A folder of the first Qwen, as it is published: its config.json and its names."""
    stated = goldens.content(golden / "config.json")
    for name in ("config.json", "weights_reference_keys.safetensors"):
        goldens.compared(golden / name)
    tensors = load_file(golden / "weights_reference_keys.safetensors")
    own = {name.removeprefix("LLM."): tensor for name, tensor in tensors.items() if name.startswith("LLM.")}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen", **stated["qwen_config"]}))
    save_file(own, folder / "model.safetensors")
    projector = {name.removeprefix("feature_proj."): tensor for name, tensor in tensors.items() if name.startswith("feature_proj.")}
    torch.save(projector, folder / "other_params.bin")
    return own, stated


def siglip_folder(golden: Path, folder: Path, stated: dict[str, Any]) -> None:
    goldens.compared(golden / "siglip_vision_weights.safetensors")
    tensors = load_file(golden / "siglip_vision_weights.safetensors")
    vision = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**stated["vision_config"]))
    own = vision.state_dict()
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in own) else ""
    vision.load_state_dict({prefix + name: tensor for name, tensor in tensors.items()})
    vision.save_pretrained(folder)


@cache
def built(golden: Path) -> tuple[llava.LlavaModel, dict[str, Any]]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        _, stated = qwen_folder(golden, folder)
        siglip_folder(golden, folder / "siglip", stated)
        recipe = Recipe(
            compat="basicvlm",
            vision=recipes.VisionTower(weights=str(folder / "siglip"), select_layer=-1, post_norm=True),
            projector=recipes.Projector(weights=str(folder / "other_params.bin")),
            language=recipes.LanguageModel(weights=str(folder)),
        )
        return llava.build(recipe, stated["qwen_config"]["vocab_size"], {}).eval(), stated


@each_model
def test_golden_towers_give_the_right_features(golden: Path) -> None:
    goldens.compared(golden / "siglip_io.safetensors")
    model, _ = built(golden)
    io = load_file(golden / "siglip_io.safetensors")

    with torch.no_grad():
        patches = tower.patches(model.vision, io["pixel_values"].bfloat16().float(), model.choice)  # as the original casts them

    torch.testing.assert_close(patches, io["last_hidden_state_float32"], atol=1e-4, rtol=0)
    torch.testing.assert_close(patches[:, model.skip :], io["features_given_to_projector_float32"], atol=1e-4, rtol=0)
    torch.testing.assert_close(patches, io["last_hidden_state_bf16_as_float32"], atol=0.1, rtol=0)


@each_model
def test_golden_models_give_the_right_logits_and_loss(golden: Path) -> None:
    goldens.compared(golden / "io.safetensors")
    model, stated = built(golden)
    io = load_file(golden / "io.safetensors")
    ids = torch.where(io["input_ids"] == stated["other_config"]["replace_token_id"], -200, io["input_ids"])
    mask = torch.ones_like(ids, dtype=torch.bool)
    features = model.projector(io["vision_features"])
    batch = Batch(ids_BT=ids, labels_BT=ids, mask_BT=mask, pixels_NCHW=torch.zeros(len(ids), 3, 8, 8), pictures=(1,) * len(ids))

    class Shown(llava.LlavaModel):
        def features(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
            return features

    shown = Shown(model.vision, model.projector, model.language, model.choice, model.longest, model.skip)
    logits, _ = shown.logits(batch)
    loss = token_loss(logits, io["labels"])

    torch.testing.assert_close(features, io["projected_features"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, io["logits"], atol=1e-4, rtol=0)
    assert float(loss.sums_B.sum() / loss.counts_B.sum()) == pytest.approx(stated["loss"], abs=1e-5)


@each_model
def test_golden_weights_go_to_qwen2_and_back(golden: Path, tmp_path: Path) -> None:
    own, _ = qwen_folder(golden, tmp_path)

    back = qwen1.from_qwen2(qwen1.to_qwen2(own))

    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in own.items())


@pytest.mark.skipif(not (LORA_FILE.is_file() and MODELS), reason=f"no {LORA_FILE.name}, or no model")
def test_golden_lora_layers_are_those_of_the_argument(tmp_path: Path) -> None:
    stated = goldens.content(LORA_FILE)
    qwen_folder(MODELS[0], tmp_path)
    model = language.build(recipes.LanguageModel(weights=str(tmp_path)), 1)
    asked = tuple(stated["target_modules_argument"].split("|"))
    lora.put(model, Lora(rank=stated["lora_rank"], alpha=stated["lora_alpha"], targets=asked))

    fused = {"q_proj": "c_attn", "k_proj": "c_attn", "v_proj": "c_attn", "up_proj": "w1", "gate_proj": "w2"}
    found = [name.removesuffix(".lora_A") for name, module in model.named_modules() if name.endswith(".lora_A")]
    ours = {(name.split(".")[2], fused[name.rpartition(".")[2]]) for name in found}
    theirs = {(name.split(".h.")[1].split(".")[0], name.rpartition(".")[2]) for name in stated["lora_wrapped_modules"]}
    assert ours == theirs
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }


@pytest.mark.skipif(not (LORA_FILE.is_file() and MODELS), reason=f"no {LORA_FILE.name}, or no model")
def test_golden_adapters_and_other_parameters_are_read(tmp_path: Path) -> None:
    goldens.compared(LORA_FILE, "lora")
    stated = goldens.content(LORA_FILE)
    own, _ = qwen_folder(MODELS[0], tmp_path)
    torch.manual_seed(0)
    stored = {name: torch.randn(shape) for name, shape in stated["adapter_state_shapes"].items()}
    torch.save(stored, tmp_path / "adapter_model.bin")
    model = language.build(recipes.LanguageModel(weights=str(tmp_path)), 1)
    asked = tuple(stated["target_modules_argument"].split("|"))
    lora.put(model, Lora(rank=stated["lora_rank"], alpha=stated["lora_alpha"], targets=asked, weights=str(tmp_path)))

    lora.merge(model)

    merged = qwen1.from_qwen2(model.state_dict())
    scale = stated["lora_alpha"] / stated["lora_rank"]
    for name in (name for name in stored if name.endswith("lora_A.weight")):
        down, up = stored[name], stored[name.replace("lora_A", "lora_B")]
        plain = name.removeprefix("base_model.model.").replace("lora_A.", "")
        torch.testing.assert_close(merged[plain], own[plain] + scale * up @ down, atol=1e-4, rtol=1e-5)
    projector = llava_names.projector_tensors(files.read(tmp_path / "other_params.bin"), "other_params.bin")
    assert set(projector) == set(stated["other_params_keys"])
