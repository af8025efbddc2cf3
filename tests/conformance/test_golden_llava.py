"""Ids, labels, pixels, models and orders against what the original LLaVA-1.5 code gave; the rule is in the folder's README."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image as Pillow
from safetensors.torch import load_file

from schemas import Part, Record, RecordError
from schemas.record import image, image_part, record, text_part, turn
from tests.bench import padding
from tests.conformance import goldens
from trainer import llava
from trainer import recipe as recipes
from trainer.data.batch import Batch
from trainer.data.pixels import Preprocess, decoded, squared
from trainer.model import token_loss
from trainer.parts import lora
from trainer.recipe import LanguageModel, Lora, Projector, Recipe, TokenizerChoice, VisionTower
from trainer.run import schedule
from trainer.text import compat, rendered, template, tokenizer
from trainer.text.rendered import Rendered
from trainer.weights import llava_names

REPOSITORY = Path(__file__).parents[2]
GOLDEN = goldens.ROOT / "llava"
LLAMA = Path(os.environ.get("SHARDWEAVE_DATA", REPOSITORY / "../shared/data")) / "tokenizers" / "llama1-hf"

if not GOLDEN.is_dir():
    pytest.skip(f"no reference outputs at {GOLDEN}", allow_module_level=True)
needs_llama = pytest.mark.skipif(not LLAMA.is_dir(), reason=f"no LLaMA tokenizer at {LLAMA}")

SPECIAL = ("<s>", "</s>", "<unk>")
MAX_TOKENS = 2048


def texts(row: dict[str, Any]) -> list[str]:
    return [sentence["value"] for sentence in row["conversations"]]


def comparable(row: dict[str, Any]) -> bool:
    special = any(special in text for text in texts(row) for special in SPECIAL)
    unplaced = "image" in row and not any("<image>" in text for text in texts(row))
    return not special and not unplaced


def cases(*, compat: bool) -> list[Any]:
    """All rows in compat. By default special-looking text is data and a picture that no marker places is shown: not those rows."""
    found = [(file, name, row) for file in sorted(GOLDEN.glob("preprocess_*.jsonl")) for name, row in goldens.tables(file).items()]
    return [pytest.param(file, row, id=name) for file, name, row in found if compat or comparable(row["row"])]


def image_cases() -> list[Any]:
    found = [(file, *case) for file in sorted(GOLDEN.glob("image_preprocess_*.json")) for case in goldens.tables(file, "cases/").items()]
    return [pytest.param(file, name, case, id=name) for file, name, case in found]


@pytest.fixture(scope="module")
def llama() -> tokenizer.Tokenizer:
    return tokenizer.load(TokenizerChoice(path=str(LLAMA)))


@needs_llama
@pytest.mark.parametrize(("file", "case"), cases(compat=False))
def test_golden_rows_render_with_the_right_ids_and_labels(file: Path, case: dict[str, Any], llama: tokenizer.Tokenizer) -> None:
    goldens.compared(file, case["case_id"], goldens.DEFAULT)
    row, reference = case["row"], case["reference"]

    if reference["error"]:
        with pytest.raises(RecordError, match="template"):
            default(row, case["template"], llama)
        return
    out = default(row, case["template"], llama)
    length = len(reference["input_ids"])

    assert out.ids[:length] == reference["input_ids"]
    assert out.labels[:length] == reference["by_construction"]["labels"]
    assert sum(label != -100 for label in out.labels[:length]) == reference["by_construction"]["n_supervised"]
    assert out.text == reference["prompt"]
    assert len(out.ids) == length or (length == MAX_TOKENS and "image" not in row)
    assert out.cut(MAX_TOKENS).ids == reference["input_ids"][: reference["collated_length"]]


@pytest.fixture(scope="module")
def llama_legacy() -> tokenizer.Tokenizer:
    return tokenizer.load(TokenizerChoice(path=str(LLAMA), form="file"))


@needs_llama
@pytest.mark.parametrize("kind", ["reference", "reference_legacy_tokenizer"])
@pytest.mark.parametrize(("file", "case"), cases(compat=True))
def test_golden_rows_render_bug_for_bug_in_compat(
    file: Path, case: dict[str, Any], kind: str, llama: tokenizer.Tokenizer, llama_legacy: tokenizer.Tokenizer
) -> None:
    goldens.compared(file, case["case_id"], goldens.COMPAT)
    row, reference = case["row"], case[kind]
    stored, words = as_record(row), llama if kind == "reference" else llama_legacy

    if reference["error"]:
        with pytest.raises(RecordError, match="template"):
            compat.render(stored, stored.turns, case["template"], words, MAX_TOKENS)
        return
    out = compat.render(stored, stored.turns, case["template"], words, MAX_TOKENS)

    assert out.ids == reference["input_ids"]
    assert out.labels == reference["labels"]
    assert out.text == reference["prompt"]
    cut = out.cut(MAX_TOKENS)
    assert len(cut.ids) == reference["collated_length"]
    assert sorted(cut.hidden) == reference["collated_attention_false_at"]
    assert all(label == -100 for label in out.labels) == reference["thrown_away"]


@pytest.mark.parametrize(("file", "name", "case"), image_cases())
def test_golden_pictures_give_the_right_pixels(file: Path, name: str, case: dict[str, Any]) -> None:
    goldens.compared(file, name)
    goldens.compared(GOLDEN / case["file"])
    content = goldens.content(file)
    data = (GOLDEN / case["file"]).read_bytes()
    pad = case["image_aspect_ratio"] == "pad"
    mean, std = tuple(content["image_mean"]), tuple(content["image_std"])
    preprocess = Preprocess(size=content["crop"], mean=mean, std=std, squash=False, pad=pad)

    pixels_CHW = preprocess.pixels(data)

    assert preprocess.colour() == tuple(content["pad_colour_rgb"])
    made = padded(data, preprocess)
    assert made.size == tuple(case["size_after_padding_wh"])
    assert hashlib.sha256(made.tobytes()).hexdigest() == case["padded_rgb_uint8_sha256"]
    assert pixels_CHW.shape == (3, content["crop"], content["crop"])
    assert pixels_CHW.dtype == np.float32
    places = content["sample_positions_c_y_x"]
    samples = [float(pixels_CHW[tuple(place)]) for place in places]
    np.testing.assert_allclose(samples, case["samples_float32"], atol=2e-5, rtol=0)
    np.testing.assert_allclose(pixels_CHW.mean((1, 2)), case["mean_float32_per_channel"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(pixels_CHW.std((1, 2)), case["std_float32_per_channel"], atol=1e-5, rtol=0)


def padded(data: bytes, preprocess: Preprocess) -> Pillow.Image:
    picture = decoded(data)
    return squared(picture, preprocess.colour()) if preprocess.pad else picture


def default(row: dict[str, Any], name: str, llama: tokenizer.Tokenizer) -> Rendered:
    stored = as_record(row)
    return rendered.tokenise(template.pieces(stored, stored.turns, name), llama)


def as_record(row: dict[str, Any]) -> Record:
    """The record that LLaVA's row is, without the ingest: markers become parts where they stand."""
    images = [image(width=4, height=4, format="jpg", bytes=1)] if "image" in row else []
    sentences = [(sentence["from"], parts(sentence["value"], bool(images))) for sentence in row["conversations"]]
    unplaced = bool(images) and not any(part.image == 0 for _, spoken in sentences for part in spoken)
    if unplaced:
        sentences[0] = (sentences[0][0], [image_part(0), *sentences[0][1]])
    roles = {"human": "user", "gpt": "assistant"}
    turns = [turn(roles[name], spoken) for name, spoken in sentences]
    return record("llava", images=images, turns=turns, meta={"unplaced": [0]} if unplaced else {})


def parts(text: str, has_image: bool) -> Sequence[Part]:
    if not has_image:
        return [text_part(text)]
    out: list[Part] = []
    for number, piece in enumerate(text.split("<image>")):
        out += [image_part(0)] if number else []
        out += [text_part(piece)] if piece else []
    return out


def models() -> list[Path]:
    """Without the tiled pictures of LLaVA 1.6."""
    return [path.parent for path in sorted(GOLDEN.glob("model_*/config.json")) if "anyres" not in path.parent.name]


def built(golden: Path, folder: Path, layout: str) -> tuple[llava.LlavaModel, dict[str, Any]]:
    """The reference's model, read from a folder as it is published in either layout."""
    stated = json.loads((golden / "config.json").read_text())
    shutil.copy(golden / f"weights_{layout}_keys.safetensors", folder / "model.safetensors")
    parts = {"vision_config": {"model_type": "clip_vision_model", **stated["vision_config"]}, "text_config": stated["text_config"]}
    original = {"model_type": "llava_llama", "mm_vision_tower": "openai/clip", **stated["text_config"]}
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", **parts} if layout == "hf" else original))
    tower = folder
    if layout == "original":  # its folder does not say what tower it has
        tower = folder / "clip"
        tower.mkdir()
        (tower / "config.json").write_text(json.dumps({"model_type": "llava", **parts}))
        shutil.copy(folder / "model.safetensors", tower)
    chosen = {"select_layer": stated["mm_vision_select_layer"], "select_feature": stated["mm_vision_select_feature"]}
    recipe = Recipe(
        vision=VisionTower(weights=str(tower), **chosen),
        projector=Projector(kind=stated["mm_projector_type"], weights=str(folder)),
        language=LanguageModel(weights=str(folder)),
    )
    return llava.build(recipe, stated["text_config"]["vocab_size"], {}), stated


def batch_of(io: dict[str, torch.Tensor]) -> Batch:
    """The recorded batch, without the blank pictures that the reference adds to rows that have none."""
    ids, mask = io["input_ids"], io["attention_mask"].bool()
    counts = ((ids == -200) & mask).sum(1).tolist()
    places, at = [], 0
    for count in counts:
        places += range(at, at + count)
        at += max(count, 1)
    return Batch(ids_BT=ids, labels_BT=io["labels"], mask_BT=mask, pixels_NCHW=io["images"][places], pictures=tuple(counts))


@pytest.mark.parametrize("layout", ["original", "hf"])
@pytest.mark.parametrize("folder", models(), ids=lambda path: path.name)
def test_golden_models_give_the_right_logits_loss_and_gradients(folder: Path, layout: str, tmp_path: Path) -> None:
    model, stated = built(folder, tmp_path, layout)
    for name in ("config.json", f"weights_{layout}_keys.safetensors", "io.safetensors", "grad_norms.json"):
        goldens.compared(folder / name)
    io = load_file(folder / "io.safetensors")
    batch = batch_of(io)
    spliced = model.spliced(batch)
    logits, labels = model.logits(batch)
    loss = token_loss(logits, labels)
    mean = loss.sums_B.sum() / loss.counts_B.sum()
    mean.backward()

    seen = io["spliced_attention_mask"].bool()
    torch.testing.assert_close(model.features(io["images"]), io["image_features"], atol=1e-5, rtol=0)
    torch.testing.assert_close(spliced.embeds_BSD[seen], io["spliced_inputs_embeds"][seen], atol=1e-5, rtol=0)
    assert torch.equal(spliced.mask_BS.bool(), seen)
    assert torch.equal(labels[seen], io["spliced_labels"][seen])
    torch.testing.assert_close(logits[seen], io["logits"][seen], atol=1e-4, rtol=0)
    assert float(mean.detach()) == pytest.approx(stated["loss"], abs=1e-5)
    norms = goldens.content(folder / "grad_norms.json")
    found = {name: p.grad for name, p in model.named_parameters()}
    trained = llava_names.to_original({name: grad for name, grad in found.items() if grad is not None})
    assert set(trained) == set(norms["grad_l2_norm"])
    for name, norm in norms["grad_l2_norm"].items():
        assert float(trained[name].norm()) == pytest.approx(norm, rel=1e-3, abs=1e-7), name


@pytest.mark.parametrize("folder", models(), ids=lambda path: path.name)
def test_golden_names_go_to_both_layouts(folder: Path, tmp_path: Path) -> None:
    model, _ = built(folder, tmp_path, "original")
    own = model.state_dict()

    original, hf = llava_names.to_original(own), llava_names.to_transformers(own)

    goldens.compared(folder / "key_mapping.json")
    mapping = goldens.content(folder / "key_mapping.json")
    assert {mapping[name]: tensor.shape for name, tensor in original.items()} == {name: tensor.shape for name, tensor in hf.items()}
    stored = load_file(folder / "weights_hf_keys.safetensors")
    goldens.compared(folder / "hf_crosscheck.json")
    if loaded := goldens.content(folder / "hf_crosscheck.json").get("loading_info"):
        assert len(hf.keys() - stored.keys()) == loaded["unexpected_keys"]
        assert len(stored.keys() - hf.keys()) == loaded["missing_keys"]
    assert hf.keys() == stored.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in hf.items())


def test_golden_lora_layers_and_adapters_have_the_right_names() -> None:
    path = GOLDEN / "lora_and_param_groups.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    goldens.compared(path, "lora")
    stated = goldens.content(path)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**stated["model"]["text_config"]))

    assert lora.targets(model, ["all"]) == stated["find_all_linear_names_before_vision_modules"]
    assert lora.targets(model, ["all"]) == stated["find_all_linear_names_with_vision_modules"]
    lora.put(model, Lora(rank=stated["lora_r"], alpha=stated["lora_alpha"]))
    shapes = {name: list(tensor.shape) for name, tensor in lora.adapter(model).items()}
    assert shapes == {name.replace(".default.", "."): shape for name, shape in stated["lora_adapter_shapes"].items()}
    stored = {name: torch.zeros(1) for name in stated["non_lora_trainable_keys"]}
    assert set(llava_names.projector_tensors(stored, "non_lora_trainables.bin")) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def orders(file: str, where: str) -> list[Any]:
    return [pytest.param(name, case, id=name) for name, case in goldens.tables(GOLDEN / file, where).items()]


GROUPS, CHUNKS, RATES = "group_by_modality_length.json", "split_to_even_chunks.json", "lr_cosine_warmup003.json"


@pytest.mark.parametrize(("name", "case"), orders(GROUPS, "cases/"))
def test_golden_orders_by_modality_are_those_of_the_sampler_that_ours_is_measured_against(name: str, case: dict[str, Any]) -> None:
    goldens.compared(GOLDEN / GROUPS, name, goldens.COMPAT)
    lengths, asked = case["lengths"], (case["batch_size"], case["world_size"])
    torch.manual_seed(case["torch_manual_seed"])
    assert torch.randperm(5).tolist() == case["rng_check_randperm5"]

    torch.manual_seed(case["torch_manual_seed"])
    assert padding.modality_grouped(lengths, *asked) == case["modality_grouped_order"]
    torch.manual_seed(case["torch_manual_seed"])
    assert padding.length_grouped([abs(length) for length in lengths], *asked) == case["length_only_grouped_order"]
    if given := case.get("with_generator"):
        torch.manual_seed(given["global_torch_seed"])
        generator = torch.Generator().manual_seed(given["generator_seed"])
        assert padding.modality_grouped(lengths, *asked, generator) == given["modality_grouped_order"]


@pytest.mark.parametrize(("name", "case"), orders(GROUPS, "error_cases/"))
def test_golden_lengths_that_the_sampler_refuses_are_refused(name: str, case: dict[str, Any]) -> None:
    goldens.compared(GOLDEN / GROUPS, name, goldens.COMPAT)
    if "error" not in case:
        assert padding.modality_grouped(case["lengths"], 2, 2) == case["result"]
        return
    with pytest.raises(ValueError, match="other than 0"):
        padding.modality_grouped(case["lengths"], 2, 2)


@pytest.mark.parametrize(("name", "case"), orders(CHUNKS, ""))
def test_golden_chunks_are_as_even(name: str, case: dict[str, Any]) -> None:
    goldens.compared(GOLDEN / CHUNKS, name, goldens.COMPAT)

    assert padding.even_chunks(case["indices"], case["lengths"], case["num_chunks"]) == case["result"]


@pytest.mark.parametrize(("name", "case"), orders(RATES, ""))
def test_golden_learning_rates_are_in_force_at_their_steps(name: str, case: dict[str, Any]) -> None:
    goldens.compared(GOLDEN / RATES, name)
    chosen, steps = recipes.Schedule(kind="cosine", warmup_ratio=case["warmup_ratio"]), case["num_training_steps"]

    found = [case["base_lr"] * schedule.factor(step, steps, chosen) for step in range(steps + 1)]

    assert schedule.warmup_steps(steps, chosen) == case["warmup_steps"]
    assert found[:50] == pytest.approx(case["lr_used_at_step_0_to_49"], rel=1e-9)
    assert found[-6:-1] == pytest.approx(case["lr_used_at_last_5_steps"], rel=1e-9)
    assert found[-1] == pytest.approx(case["lr_after_last_step"], rel=1e-9, abs=1e-20)


@needs_llama
def test_a_sentencepiece_file_gives_the_ids_of_its_tokenizer_json(llama: tokenizer.Tokenizer, tmp_path: Path) -> None:
    shutil.copy(LLAMA / "tokenizer.model", tmp_path)

    converted = tokenizer.load(TokenizerChoice(path=str(tmp_path)))

    for case in cases(compat=True):
        prompt = "".join(texts(case.values[1]["row"]))
        assert converted.encode(prompt, first=True) == llama.encode(prompt, first=True)
    assert (converted.bos, converted.eos, converted.unk, converted.size) == (llama.bos, llama.eos, llama.unk, llama.size)


DATA = ("</s>", "<s>", "<unk>", "<image>", "[SEG]", "<|im_end|>", "<|eot_id|>", "a</s>b <unk> c")


@pytest.mark.parametrize("folder", sorted(LLAMA.parent.glob("*/tokenizer.json")), ids=lambda path: path.parent.name)
def test_no_text_becomes_a_special_token_of_a_real_tokenizer(folder: Path) -> None:
    real = tokenizer.load(TokenizerChoice(path=str(folder.parent)))

    for text in DATA:
        for first in (True, False):
            ids, _ = real.encode(text, first=first)
            assert not set(ids) & set(real.specials.values()), text
            assert len(ids) > 1, text
