"""MosaicGPT, the language model of OpenFlamingo-3B, in transformers' MPT: weights under its own names, and what it computes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from schemas import RequestError
from tests.trainer.test_flamingo import END, IMAGE, ROWS, SPECIALS, TOWER, batch
from trainer import flamingo, model
from trainer.parts import language, mpt
from trainer.recipe import LanguageModel, Recipe
from trainer.weights import config as configs
from trainer.weights import files, flamingo_names, mosaic_gpt
from trainer.weights.files import Tensors

Tiny = Callable[..., Recipe]

# What the card of mpt-1b-redpajama-200b says of it, in the words of its config.json.
PUBLISHED = {
    "model_type": "mosaic_gpt",
    "architectures": ["MosaicGPT"],
    "auto_map": {"AutoConfig": "configuration_mosaic_gpt.MosaicGPTConfig", "AutoModelForCausalLM": "mosaic_gpt.MosaicGPT"},
    "d_model": 2048,
    "n_heads": 16,
    "n_layers": 24,
    "mlp_ratio": 4,
    "max_seq_len": 2048,
    "vocab_size": 50432,
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_impl": "torch",
    "attn_qk_ln": True,
    "attn_clip_qkv": None,
    "attn_pdrop": 0.0,
    "low_precision_layernorm": True,
    "logit_scale": None,
    "no_bias": True,
    "softmax_scale": None,
    "torch_dtype": "bfloat16",
}
SMALL = {**PUBLISHED, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": 340}
NORMALISED = pytest.mark.parametrize("normalised", [True, False], ids=["qk_ln", "plain"])


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Its parameters, by its names."""
    width = config["d_model"]
    found: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (config["vocab_size"], width), "transformer.ln_f.weight": (width,)}
    for number in range(config["n_layers"]):
        block = {
            "ln_1": (width,),
            "attn.Wqkv": (3 * width, width),
            "attn.out_proj": (width, width),
            "ln_2": (width,),
            "mlp.mlp_up": (4 * width, width),
            "mlp.mlp_down": (width, 4 * width),
        }
        block |= {"attn.q_ln": (width,), "attn.k_ln": (width,)} if config["attn_qk_ln"] else {}
        found |= {f"transformer.blocks.{number}.{name}.weight": shape for name, shape in block.items()}
    return found


def written(folder: Path, **changed: Any) -> Tensors:
    """A folder as the published one, in small, with code that must not be run."""
    config = {**SMALL, **changed}
    generator = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(shape, generator=generator) * 0.3 + (len(shape) == 1) for name, shape in shapes(config).items()}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("configuration_mosaic_gpt.py", "mosaic_gpt.py"):
        (folder / name).write_text("raise SystemExit('run')")
    torch.save(tensors, folder / "pytorch_model.bin")
    return tensors


def norm(x_TD: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
    centred = x_TD - x_TD.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight_D


def by_hand(tensors: Tensors, ids: list[int], config: dict[str, Any]) -> torch.Tensor:
    """Logits (T, V) of a text, from the formulas, a head after another."""
    heads, clip = config["n_heads"], config["attn_clip_qkv"] or math.inf
    scale = config["softmax_scale"] or 1 / math.sqrt(config["d_model"] / heads)
    weight = {name.removeprefix("transformer.").removesuffix(".weight"): tensor.double() for name, tensor in tensors.items()}
    x_TD = weight["wte"][ids]
    back_TT = torch.arange(len(ids))[:, None] - torch.arange(len(ids))  # how far behind a key is
    for number in range(2):
        own = {name.removeprefix(f"blocks.{number}."): tensor for name, tensor in weight.items()}
        query, key, value = (norm(x_TD, own["ln_1"]) @ own["attn.Wqkv"].T).clamp(-clip, clip).chunk(3, -1)
        if config["attn_qk_ln"]:
            query, key = norm(query, own["attn.q_ln"]), norm(key, own["attn.k_ln"])
        found = []
        for head, (q, k, v) in enumerate(zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True), start=1):
            scores_TT = q @ k.T * scale - 2 ** (-8 * head / heads) * back_TT
            shares_TT = scores_TT.exp() * (back_TT >= 0)
            found.append(shares_TT / shares_TT.sum(-1, keepdim=True) @ v)
        x_TD = x_TD + torch.cat(found, -1) @ own["attn.out_proj"].T
        wide = norm(x_TD, own["ln_2"]) @ own["mlp.mlp_up"].T
        x_TD = x_TD + (wide * (1 + torch.erf(wide / math.sqrt(2))) / 2) @ own["mlp.mlp_down"].T
    return norm(x_TD, weight["ln_f"]) @ weight["wte"].T


def built(folder: Path) -> Any:
    return language.build(LanguageModel(weights=str(folder)), 333).eval()


def test_the_published_model_has_its_names_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))

    config = language.shape(LanguageModel(weights=str(tmp_path)))
    with torch.device("meta"):
        made = mpt.kind(config).from_config(config)
        stored = mosaic_gpt.to_mpt({name: torch.empty(shape) for name, shape in shapes(PUBLISHED).items()})

    own = {name: tensor.shape for name, tensor in made.state_dict().items() if name != "lm_head.weight"}
    assert {name: tensor.shape for name, tensor in stored.items()} == own
    assert sum(shape.numel() for shape in own.values()) == 24 * (12 * 2048**2 + 4 * 2048) + 2048 + 50432 * 2048 == 1_311_442_944
    assert made.lm_head.weight is made.transformer.wte.weight
    assert (language.layers(made)[0], language.positions(made)) == ("transformer.blocks", 2048)


@pytest.mark.parametrize(
    "changed",
    [{}, {"attn_qk_ln": False}, {"attn_clip_qkv": 0.5}, {"softmax_scale": 0.1}, {"n_heads": 1}],
    ids=["published", "not normalised", "clipped", "scaled", "one head"],
)
def test_its_logits_are_those_of_the_formulas_with_padding_on_either_side(tmp_path: Path, changed: dict[str, Any]) -> None:
    tensors = written(tmp_path, **changed)
    texts = [[5, 300, 7, 7, 21, 9, 100, 2], [8, 1, 2], [9, 9, 4, 333, 6]]
    ids_BT, mask_BT = torch.zeros(3, 8, dtype=torch.long), torch.zeros(3, 8, dtype=torch.long)
    for row, (text, begin) in enumerate(zip(texts, (0, 5, 0), strict=True)):
        ids_BT[row, begin : begin + len(text)] = torch.tensor(text)
        mask_BT[row, begin : begin + len(text)] = 1

    with torch.no_grad():
        logits_BTV = built(tmp_path)(input_ids=ids_BT, attention_mask=mask_BT).logits

    for row, text in enumerate(texts):
        expected_TV = by_hand(tensors, text, {**SMALL, **changed})
        torch.testing.assert_close(logits_BTV[row][mask_BT[row].bool()].double(), expected_TV, rtol=0, atol=1e-4)


@NORMALISED
def test_generating_with_a_cache_is_generating_without(tmp_path: Path, normalised: bool) -> None:
    written(tmp_path, attn_qk_ln=normalised)
    made = built(tmp_path)
    ids_BT = torch.tensor([[0, 0, 5, 9, 7], [4, 3, 5, 8, 1]])
    asked = {"input_ids": ids_BT, "attention_mask": (ids_BT > 0).long(), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}

    cached, anew = (made.generate(**asked, use_cache=use_cache) for use_cache in (True, False))

    assert cached.shape == (2, 13)
    assert torch.equal(cached, anew)


def test_no_code_of_the_folder_is_run(tmp_path: Path) -> None:
    written(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    assert isinstance(built(tmp_path), mpt.NormalisedMpt)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("alibi", False, "expected a MosaicGPT with alibi = True, as MPT, found False"),
        ("no_bias", False, "expected a MosaicGPT with no_bias = True, as MPT, found False"),
        ("mlp_ratio", 8, "expected a MosaicGPT with mlp_ratio = 4, as MPT, found 8"),
        ("logit_scale", "inv_sqrt_d_model", "expected a MosaicGPT with logit_scale = None, as MPT, found inv_sqrt_d_model"),
        ("n_heads", 6, "expected n_heads of MosaicGPT to be a power of two, found 6"),
        ("attn_qk_ln", "yes", "expected a configuration of MosaicGPT, found .*qk_ln"),
        ("d_model", "wide", "expected d_model of MosaicGPT as a whole number, found wide"),
    ],
)
def test_what_mpt_can_not_be_is_refused(tmp_path: Path, key: str, value: Any, told: str) -> None:
    written(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, key: value}))

    with pytest.raises(RequestError, match=told):
        built(tmp_path)


def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    tensors = written(tmp_path)
    del tensors["transformer.blocks.1.attn.k_ln.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")

    with pytest.raises(RequestError, match=r"expected transformer\.blocks\.1\.attn\.k_ln\.weight and 0 more, found none"):
        built(tmp_path)


def test_the_same_model_is_had_from_a_recipe_s_table_and_from_a_folder_of_mpt(tmp_path: Path) -> None:
    written(tmp_path)
    made = built(tmp_path)
    made.save_pretrained(tmp_path / "mpt")

    again = built(tmp_path / "mpt")
    new = language.build(LanguageModel(config=configs.as_table(made.config, "language")), 333)

    assert json.loads((tmp_path / "mpt" / "config.json").read_text())["model_type"] == "mpt"
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in made.state_dict().items())
    assert {name: tensor.shape for name, tensor in new.state_dict().items()} == {
        name: tensor.shape for name, tensor in made.state_dict().items()
    }


def flamingo_of(tiny: Tiny, folder: Path, *settings: str) -> flamingo.FlamingoModel:
    recipe = tiny(*TOWER, *settings)
    recipe = recipe.__class__(**{**vars(recipe), "language": LanguageModel(weights=str(folder))})
    return cast(flamingo.FlamingoModel, model.build(recipe, 333, SPECIALS)).eval()


def test_a_flamingo_is_built_on_it(tiny: Tiny, tmp_path: Path) -> None:
    written(tmp_path)
    one = flamingo_of(tiny, tmp_path)
    for parameter in one.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    flamingo_names.save(one, tmp_path / "checkpoint.pt")

    other = flamingo_of(tiny, tmp_path, f"flamingo.weights={tmp_path}/checkpoint.pt")

    stored = files.read(tmp_path / "checkpoint.pt")
    assert stored["lang_encoder.transformer.wte.weight"].shape == (333, 32)  # of 340, as OpenFlamingo cuts it
    gates = [f"lang_encoder.transformer.blocks.{number}.gated_cross_attn_layer.attn_gate" for number in (0, 1)]
    assert [name for name in stored if name.endswith("attn_gate")] == gates
    with torch.no_grad():
        shown = batch(*ROWS)
        logits = one.logits(shown)[0]
        assert torch.equal(other.logits(shown)[0], logits)
        assert not torch.allclose(one.logits(batch(*ROWS, seed=1))[0][shown.mask_BT], logits[shown.mask_BT])
    loss = one(batch(*ROWS))
    (loss.sums_B.sum() / loss.counts_B.sum()).backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in one.parameters())


def test_a_flamingo_on_it_answers_with_a_cache_as_without(tiny: Tiny, tmp_path: Path) -> None:
    written(tmp_path)
    made = flamingo_of(tiny, tmp_path)
    for name, parameter in made.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 0.7)
    asked = batch([1, IMAGE, 5, 6], [1, IMAGE, 7, END, IMAGE, 8])

    cached, anew = (made.generate(asked, max_new_tokens=6, do_sample=False, use_cache=use_cache) for use_cache in (True, False))

    assert torch.equal(cached, anew)
