from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers

from schemas import RequestError
from trainer import llava, model
from trainer.data.batch import Batch
from trainer.recipe import Recipe, TokenizerChoice
from trainer.text import tokenizer
from trainer.use import llava_export

Tiny = Callable[..., Recipe]


def built(recipe: Recipe, size: int) -> llava.LlavaModel:
    return cast(llava.LlavaModel, model.build(recipe, size)).eval()


def prompt(ids: list[int], size: int) -> Batch:
    row = torch.tensor([ids])
    shown = ids.count(-200)
    pixels = torch.randn(shown, 3, size, size, generator=torch.Generator().manual_seed(1)) if shown else None
    return Batch(ids_BT=row, labels_BT=row, mask_BT=torch.ones_like(row).bool(), pixels_NCHW=pixels, pictures=(shown,))


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("vision.select_feature=cls_patch", "vision.select_layer=-1"),
        ("vision.config.model_type=siglip_vision_model", "vision.select_layer=-1"),
        ("language.config.model_type=qwen2", "language.config.tie_word_embeddings=true"),
        ("lora.rank=4", "lora.alpha=8"),
    ],
)
def test_an_exported_folder_gives_the_same_logits_in_transformers(
    tiny: Tiny, words: str, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    spoken = tokenizer.load(TokenizerChoice(path=words))
    recipe = tiny(*settings)
    ours = built(recipe, spoken.size)
    for name, parameter in ours.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = prompt([1, -200, 5, 6, 7], 16)
    with torch.no_grad():
        wanted, _ = ours.logits(batch)

    llava_export.export(ours, recipe, spoken, tmp_path / "folder")

    kind: Any = transformers.LlavaForConditionalGeneration
    read, info = kind.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    image = read.config.image_token_index
    ids = torch.tensor([[1, *[image] * ours.patches, 5, 6, 7]])
    with torch.no_grad():
        found = read.eval()(input_ids=ids, pixel_values=batch.pixels_NCHW, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(found[..., : wanted.shape[-1]], wanted, atol=1e-5, rtol=1e-5)


def test_an_exported_folder_has_a_tokenizer_and_a_processor(tiny: Tiny, words: str, tmp_path: Path) -> None:
    spoken = tokenizer.load(TokenizerChoice(path=words))
    recipe = tiny("pictures.image_aspect_ratio=pad")
    llava_export.export(built(recipe, spoken.size), recipe, spoken, tmp_path)

    read = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert read("red<image>green")["input_ids"][-4:].count(json.loads((tmp_path / "config.json").read_text())["image_token_index"]) == 1
    stated = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (stated["image_processor_type"], stated["do_pad"], stated["size"]) == ("LlavaImageProcessor", True, {"shortest_edge": 16})


@pytest.mark.parametrize(
    ("setting", "told"),
    [("projector.kind=linear", "a projector of two layers"), ("language.config.model_type=gpt_neox", "a language model of LLaMA's layout")],
)
def test_what_transformers_has_no_place_for_is_refused(
    tiny: Tiny, spoken: tokenizer.Tokenizer, tmp_path: Path, setting: str, told: str
) -> None:
    recipe = tiny(setting)
    with pytest.raises(RequestError, match=told):
        llava_export.export(built(recipe, spoken.size), recipe, spoken, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_an_exported_folder_is_read_again(tiny: Tiny, spoken: tokenizer.Tokenizer, tmp_path: Path) -> None:
    recipe = tiny("seed=3")
    ours = built(recipe, spoken.size)
    llava_export.export(ours, recipe, spoken, tmp_path)
    again = tiny(*[f"{part}.weights={tmp_path}" for part in ("vision", "projector", "language")], "vision.config={}", "language.config={}")

    read = built(again, spoken.size)

    batch = prompt([1, -200, 5], 16)
    with torch.no_grad():
        torch.testing.assert_close(read.logits(batch)[0][..., : spoken.size], ours.logits(batch)[0])


def test_an_answer_is_generated_with_a_picture_and_without_whatever_stands_beside_it(tiny: Tiny) -> None:
    ours = built(tiny("seed=5"), 330)
    alone = [prompt([1, -200, 5, 6], 16), prompt([1, 7], 16)]
    row = torch.tensor([[1, -200, 5, 6], [1, 7, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    both = Batch(ids_BT=row, labels_BT=row, mask_BT=mask, pixels_NCHW=alone[0].pixels_NCHW, pictures=(1, 0))
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 329, "pad_token_id": 329}

    together = ours.generate(both, **options)

    assert torch.equal(together, torch.cat([ours.generate(batch, **options) for batch in alone]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mm_projector.bin", "model.mm_projector."),
        ("non_lora_trainables.bin", "base_model.model.model.mm_projector."),
        ("other_params.bin", ""),
        ("trained.bin", "projector."),
    ],
)
def test_a_projector_is_read_from_the_files_that_there_are(tiny: Tiny, tmp_path: Path, name: str, text: str) -> None:
    tensors = {f"{text}{key}": tensor for key, tensor in built(tiny("seed=9"), 330).projector.state_dict().items()}
    torch.save(tensors, tmp_path / name)

    read = built(tiny(f"projector.weights={tmp_path / name}"), 330)

    assert all(torch.equal(tensor, tensors[text + key]) for key, tensor in read.projector.state_dict().items())


def test_weights_that_do_not_fit_are_told_with_both_shapes(tiny: Tiny, tmp_path: Path) -> None:
    torch.save({"model.mm_projector.0.weight": torch.zeros(3, 5)}, tmp_path / "mm_projector.bin")
    with pytest.raises(RequestError, match=r"0\.weight: expected shape \(32, 32\), found \(3, 5\)"):
        built(tiny(f"projector.weights={tmp_path}/mm_projector.bin"), 330)
    with pytest.raises(RequestError, match="expected weights, found no such file or folder"):
        built(tiny("projector.weights=/nowhere.bin"), 330)
