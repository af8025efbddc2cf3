from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from schemas import RequestError
from tests.trainer.test_flamingo import TOWER, language
from tests.trainer.test_llava_export import prompt
from trainer import __main__ as command
from trainer import assembly, model, recipe
from trainer.data.batch import Batch
from trainer.recipe import Recipe
from trainer.text import tokenizer
from trainer.use import export, generate, trained
from trainer.use.generate import Sampling
from trainer.use.trained import Trained

Tiny = Callable[..., Recipe]
IDS = [1, -200, 5, 6, 7]


def made(recipe: Recipe) -> Trained:
    """A new model as if it had been trained: with an adapter that does something, and gates that are open."""
    words = tokenizer.load(recipe.tokenizer)
    built = model.build(recipe, words.size, words.specials).eval()
    for name, parameter in built.named_parameters():
        if "lora_B" in name or name.endswith((".rows", "gate")):
            torch.nn.init.normal_(parameter, std=0.3)
    return Trained(name="new", recipe=recipe, tokenizer=words, preprocess=assembly.preprocess(recipe), model=built)


@torch.no_grad()
def logits(run: Trained, batch: Batch | None = None) -> torch.Tensor:
    return run.model.logits(batch or prompt(IDS, 16))[0]


def test_the_hugging_face_folder_has_the_run_s_logits(ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["export", str(ran), "--to", str(tmp_path / "hf"), "--form", "hf"]) == 0

    assert capsys.readouterr().out == f"hf, written to {tmp_path}/hf\n"
    kind: Any = transformers.LlavaForConditionalGeneration
    read = kind.from_pretrained(tmp_path / "hf").eval()
    ids = torch.tensor([[1, *[read.config.image_token_index] * 4, 5, 6, 7]])
    with torch.no_grad():
        found = read(input_ids=ids, pixel_values=prompt(IDS, 16).pixels_NCHW, attention_mask=torch.ones_like(ids)).logits
    wanted = logits(trained.load(ran))
    torch.testing.assert_close(found[..., : wanted.shape[-1]], wanted, atol=1e-5, rtol=1e-5)


def test_the_language_model_s_folder_has_its_logits_with_the_adapter_in_it(tiny: Tiny, tmp_path: Path) -> None:
    run = made(tiny("lora.rank=2"))
    wanted = logits(run, prompt([1, 5, 6], 16))

    export.export(run, "language", tmp_path / "language")

    read: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "language")
    with torch.no_grad():
        torch.testing.assert_close(read.eval()(input_ids=torch.tensor([[1, 5, 6]])).logits, wanted, atol=1e-5, rtol=1e-5)
    assert transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "language")("red")["input_ids"]


@pytest.mark.parametrize("settings", [(), ("lora.rank=2",), ("projector.kind=linear",)])
def test_the_original_s_folder_is_read_again(tiny: Tiny, tmp_path: Path, settings: tuple[str, ...]) -> None:
    run = made(tiny(*settings))
    wanted = logits(run)

    export.export(run, "llava", tmp_path / "llava")

    parts = [f"{part}.weights={tmp_path}/llava" for part in ("projector", "language")]
    assert torch.allclose(
        logits(made(tiny(*settings[:0], *parts, "language.config={}", f"projector.kind={run.recipe.projector.kind}"))), wanted, atol=1e-5
    )
    stated = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert (stated["model_type"], stated["architectures"]) == ("llava_llama", ["LlavaLlamaForCausalLM"])
    assert (stated["mm_projector_type"], stated["mm_vision_select_layer"], stated["rope_theta"]) == (run.recipe.projector.kind, -2, 10000.0)
    names = set(safetensors.torch.load_file(tmp_path / "llava" / "model.safetensors"))
    assert {"model.embed_tokens.weight", "lm_head.weight"} < names
    assert any(name.startswith("model.vision_tower.vision_tower.vision_model.") for name in names)
    assert not any("lora" in name for name in names)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("lora.rank=2", "lora.alpha=8"),
        ("language.config.model_type=qwen2", "language.config.tie_word_embeddings=true"),
        ("vision.config.model_type=siglip_vision_model", "vision.select_layer=-1", "pictures.image_aspect_ratio=pad"),
        (*TOWER, language("gpt_neox"), 'tokenizer.add=["<|endofchunk|>", "<image>"]'),
        (*TOWER, language("mpt"), 'tokenizer.add=["<|endofchunk|>", "<image>"]'),
    ],
)
def test_a_merged_folder_needs_nothing_else(tiny: Tiny, tmp_path: Path, settings: tuple[str, ...]) -> None:
    run = made(tiny(*settings))
    image = run.tokenizer.specials.get("<image>", -200)
    batch = prompt([1, -200, 5], 16)
    batch.ids_BT[batch.ids_BT == -200] = image
    wanted = logits(run, batch)

    export.export(run, "merged", tmp_path / "merged")
    shutil.move(tmp_path / "merged", tmp_path / "moved")
    read = trained.load(tmp_path / "moved", settings=["seed=99", "tokenizer.add=[]" if image < 0 else "seed=98"])

    torch.testing.assert_close(logits(read, batch), wanted, atol=1e-5, rtol=1e-5)
    assert read.recipe.lora.rank == 0
    assert read.preprocess == run.preprocess
    assert read.tokenizer.encode("red</s>", first=True) == run.tokenizer.encode("red</s>", first=True)


def test_a_merged_run_answers_as_the_run(ran: Path, tmp_path: Path) -> None:
    asked, sampling = [("prompt", "Which colour?")], Sampling(max_new_tokens=5)
    run = trained.load(ran)
    wanted = generate.answer(run, asked, sampling)

    export.export(run, "merged", tmp_path / "merged")

    assert generate.answer(trained.load(tmp_path / "merged"), asked, sampling) == wanted


def test_a_flamingo_checkpoint_is_read_again(tiny: Tiny, tmp_path: Path) -> None:
    added = 'tokenizer.add=["<|endofchunk|>", "<image>"]'
    settings = (*TOWER, language("gpt_neox"), added, "compat=openflamingo")
    run = made(tiny(*settings))
    batch = prompt([1, -200, 5], 16)
    batch.ids_BT[batch.ids_BT == -200] = run.tokenizer.specials["<image>"]

    export.export(run, "flamingo", tmp_path / "flamingo")

    words = run.tokenizer
    again = model.build(tiny(*settings, f"flamingo.weights={tmp_path}/flamingo/checkpoint.pt"), words.size, words.specials).eval()
    with torch.no_grad():
        torch.testing.assert_close(again.logits(batch)[0], logits(run, batch))


def test_weights_may_be_written_in_16_bits(tiny: Tiny, tmp_path: Path) -> None:
    export.export(made(tiny()), "hf", tmp_path / "hf", "bfloat16")

    tensors = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("form", "setting", "told"),
    [
        ("flamingo", "seed=1", "expected a model of family flamingo, found llava"),
        ("llava", "language.config.model_type=gpt_neox", "expected llama or mistral or qwen2, and a tower of transformers"),
        ("hf", "projector.kind=linear", "a projector of two layers, found projector.kind = linear"),
        ("hf", TOWER[0], "a tower of transformers before its last norm, found OpenClipTower"),
    ],
)
def test_a_form_that_does_not_fit_leaves_nothing_behind(tiny: Tiny, tmp_path: Path, form: str, setting: str, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        export.export(made(tiny(setting)), form, tmp_path / "deep" / "folder")

    assert list((tmp_path / "deep").iterdir()) == []


def test_a_folder_that_holds_something_is_refused_before_weights_are_read(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")

    assert command.main(["export", str(ran), "--to", str(tmp_path), "--form", "hf"]) == 2
    assert capsys.readouterr().err == f"error: --to {tmp_path}: expected a new or empty folder, found one that holds something\n"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_configuration_that_a_recipe_can_not_hold_is_told() -> None:
    from trainer.weights import config

    whole = config.as_table(transformers.MistralConfig(hidden_size=32), "language")
    assert config.read(None, whole, "language", "llama").to_dict() == transformers.MistralConfig(hidden_size=32).to_dict()
    with pytest.raises(RequestError, match=r"language.config: expected one that a recipe can hold, found sliding_window = None"):
        config.as_table(transformers.MistralConfig(sliding_window=None), "language")


def test_the_forms_of_the_command_are_those_that_there_are() -> None:
    assert tuple(export.FORMS) == command.FORMS
    assert tuple(export.DTYPES) == command.DTYPES
    assert recipe.shipped()
