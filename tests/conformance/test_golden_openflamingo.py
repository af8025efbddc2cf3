"""Texts, ids, labels, model and checkpoints against what the original OpenFlamingo gave; the rule is in the folder's README."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file

from pipelines.mmc4 import Mmc4
from schemas import Record, RecordError, Reject
from schemas.record import image, image_part, record, text_part, turn
from tests.conformance import goldens
from trainer import flamingo
from trainer import recipe as recipes
from trainer.data import pixels
from trainer.data.batch import Batch
from trainer.model import token_loss
from trainer.recipe import Recipe, Source, TokenizerChoice
from trainer.run import schedule
from trainer.text import render, tokenizer
from trainer.text.rendered import Rendered
from trainer.weights import flamingo_names

REPOSITORY = Path(__file__).parents[2]
GOLDEN = goldens.ROOT / "openflamingo"
LLAMA = Path(os.environ.get("SHARDWEAVE_DATA", REPOSITORY / "../shared/data")) / "tokenizers" / "llama1-hf"

if not GOLDEN.is_dir():
    pytest.skip(f"no reference outputs at {GOLDEN}", allow_module_level=True)

ADDED = ("<|endofchunk|>", "<image>", "<PAD>")
LITERAL = (*ADDED, "</s>", "<s>", "<unk>")
BROKEN = ("image_decode_error", "missing_image")  # the reference drops the document, the pipeline drops the picture


CASES = goldens.tables(GOLDEN / "mmc4_cases.jsonl")
EXPECTED = goldens.tables(GOLDEN / "mmc4_expected.jsonl")
TOKENIZERS = ("tiny", "llama1") if LLAMA.is_dir() else ("tiny",)


def documents() -> list[Any]:
    """All in compat. By default special-looking text is data, and no ChatGPT sequence is cut inside a chunk: not those."""
    named = [(case, name) for case in CASES.values() for name in TOKENIZERS]
    cases = [(case, EXPECTED[case["case_id"]], name, "openflamingo") for case, name in named]
    cases += [(case, EXPECTED[case["case_id"]], name, "none") for case, name in named if not (literal(case) or cut_in_a_chunk(case))]
    return [pytest.param(*case, id=f"{case[0]['case_id']}-{case[2]}-{case[3]}") for case in cases]


def literal(case: dict[str, Any]) -> bool:
    text = case["doc"].get("example") or "".join(case["doc"].get("text_list", ()))
    return any(token in text for token in LITERAL)


def cut_in_a_chunk(case: dict[str, Any]) -> bool:
    return "is_gpt" in case["doc"] and len(case["doc"]["image_map"]) > case["params"]["max_num_images"]


def captions() -> list[Any]:
    batches = goldens.tables(GOLDEN / "laion_captions.json")
    return [pytest.param(batch, name, id=f"{number}-{name}") for number, batch in batches.items() for name in TOKENIZERS]


def models() -> list[Path]:
    return sorted(path.parent for path in GOLDEN.glob("model_*/meta.json"))


@lru_cache(maxsize=2)
def words(name: str) -> tokenizer.Tokenizer:
    """The tokenizer as OpenFlamingo has it: the file's own rule for spaces, three tokens added."""
    with TemporaryDirectory() as folder:
        shutil.copy(GOLDEN / "tiny_tokenizer.json", Path(folder) / "tokenizer.json")
        path = folder if name == "tiny" else str(LLAMA)
        return tokenizer.load(TokenizerChoice(path=path, form="file", eos="</s>", add=ADDED))


def shown(case: dict[str, Any], name: str, longest: int, coin: float, compat: str) -> Rendered:
    asked = case["params"]
    source = Source(
        name="mmc4",
        min_similarity=asked["sim_threshold"],
        min_images=asked["min_num_images"],
        max_images=asked["max_num_images"],
        max_tokens=longest,
        keep_single=0.5,
    )
    recipe = Recipe(template="flamingo", compat=compat)  # type: ignore[arg-type]
    kept = stored(case)
    return render.renderer(recipe, words(name), source)(kept, kept.turns, coin)


@cache
def converted(case_id: str) -> tuple[Record, Counter[tuple[str, str]]] | Reject:
    """The pipeline's record of a document and what it counted, or why there is none."""
    document = CASES[case_id]["doc"]
    small = 0 if "is_gpt" in document else 11000
    with TemporaryDirectory() as folder:
        path = Path(folder) / "docs_shard_0_v2.jsonl"
        path.write_text(json.dumps(document) + "\n")
        options: dict[str, Any] = {"layout": "flat", "assignment": "lsa", "min_image_bytes": small, "verify": "decode"}
        source = Mmc4(annotations=(path,), images=(GOLDEN / "images",), **options)
        (row,) = source.rows(source.units(None)[0])
        try:
            sample = source.sample(row)
        except Reject as reject:
            return reject
    return sample.record, sample.counts


def stored(case: dict[str, Any]) -> Record:
    found = converted(case["case_id"])
    if isinstance(found, Reject):
        raise found
    return found[0]


def numbers(case: dict[str, Any], expected: dict[str, Any], out: Rendered) -> list[int]:
    """The pictures as the reference counts them: positions in image_info, or the number in the placeholder."""
    if "is_gpt" in case["doc"]:
        return [index + 1 for index in out.images]
    return [expected["valid_images"][index] for index in out.images]


def reason(error: Exception) -> str:
    found = str(getattr(error, "reason", ""))
    return {"image_min_bytes": "no_usable_image", "image_missing": "no_usable_image"}.get(found, found)


@pytest.mark.parametrize(("case", "expected", "name", "compat"), documents())
@pytest.mark.parametrize("coin", [0.99, 0.5])
def test_golden_documents_render_with_the_right_ids_labels_and_pictures(
    case: dict[str, Any], expected: dict[str, Any], name: str, compat: str, coin: float
) -> None:
    compares(case, compat)
    told = expected["tokenizers"][name]
    kept, why = (told["kept"], told["reason"]) if coin > 0.5 else (told["kept_if_coin_le_half"], told["reason_if_coin_le_half"])
    want = told["compat_2023"] if compat == "openflamingo" or told["reading_order"] == "same" else told["reading_order"]
    if why in BROKEN:
        found = converted(case["case_id"])
        assert not isinstance(found, Reject)
        assert any(family == "images_dropped" for family, _ in found[1])
        assert len(found[0].images) == sum((GOLDEN / "images" / picture).is_file() for picture in pictures(case["doc"])) - (
            why == BROKEN[0]
        )
        return
    if not kept:
        with pytest.raises((RecordError, Reject)) as caught:
            shown(case, name, told["max_tokens"], coin, compat)
        assert reason(caught.value) == why
        return
    if compat == "none" and set(want["labels"]) == {-100}:  # the reference trains on nothing, ours leaves it out
        with pytest.raises(RecordError, match="nothing_to_train"):
            shown(case, name, told["max_tokens"], coin, compat)
        return
    out = shown(case, name, told["max_tokens"], coin, compat)
    length = sum(want["attention_mask"])

    assert out.text == want["text"]
    assert out.ids == want["input_ids"][:length]
    assert out.labels == want["labels"][:length]
    assert set(want["labels"][length:]) <= {-100}
    seen = want["image_order"] if compat == "openflamingo" else want["image_order"][: want["n_image_tokens"]]
    assert numbers(case, expected, out) == seen
    assert out.ids.count(words(name).specials["<image>"]) == want["n_image_tokens"]


def compares(case: dict[str, Any], compat: str) -> None:
    for name in ("mmc4_cases.jsonl", "mmc4_expected.jsonl"):
        goldens.compared(GOLDEN / name, case["case_id"], goldens.DEFAULT if compat == "none" else goldens.COMPAT)
    for name in pictures(case["doc"]):
        goldens.compared(GOLDEN / "images" / name)


def pictures(document: dict[str, Any]) -> list[str]:
    entries = document.get("image_info") or list(document.get("image_map", {}).values())
    return [entry["image_name"] for entry in entries]


def assigned() -> list[Any]:
    found = [(case, EXPECTED[name]) for name, case in CASES.items() if EXPECTED[name]["assignment"] is not None]
    return [pytest.param(*case, id=case[0]["case_id"]) for case in found]


@pytest.mark.parametrize(("case", "expected"), assigned())
def test_golden_pairs_are_those_of_the_assignment_above_the_threshold(case: dict[str, Any], expected: dict[str, Any]) -> None:
    kept = stored(case)
    found = [
        [expected["valid_images"][index], sentence(kept, index), picture.similarity]
        for index, picture in enumerate(kept.images)
        if picture.similarity is not None
    ]

    assert found == expected["assignment"]
    assert [pair for pair in found if pair[2] >= case["params"]["sim_threshold"]] == expected["pairs_kept"]


def sentence(stored: Record, index: int) -> int:
    parts = stored.turns[0].parts
    at = next(number for number, part in enumerate(parts) if part.image == index)
    return sum(part.text is not None for part in parts[:at])


@pytest.mark.parametrize("compat", ["none", "openflamingo"])
@pytest.mark.parametrize(("batch", "name"), captions())
def test_golden_captions_render_with_the_right_ids_and_labels(batch: dict[str, Any], name: str, compat: str) -> None:
    recipe = Recipe(template="flamingo", compat=compat)  # type: ignore[arg-type]
    show = render.renderer(recipe, words(name), Source(name="laion", task="caption", max_tokens=batch["max_tokens"]))
    want = batch["tokenizers"][name]
    goldens.compared(GOLDEN / "laion_captions.json", batch["batch_id"], goldens.DEFAULT if compat == "none" else goldens.COMPAT)
    for row, caption in enumerate(batch["captions"]):
        if compat == "none" and any(token in caption for token in LITERAL):
            continue
        shown = [image(width=4, height=4, format="jpg", bytes=1)]
        stored = record("laion", images=shown, turns=[turn("text", [image_part(0), text_part(caption)])])
        out = show(stored, stored.turns)
        length = sum(want["attention_mask"][row])

        assert out.ids == want["input_ids"][row][:length]
        # Nothing predicts the first token: the reference writes it into the labels, and no loss is taken of it.
        first = 1 if words(name).bos is not None and compat == "none" else 0
        assert out.labels[first:] == want["labels"][row][first:length]


def test_golden_tokenizers_have_the_right_tokens() -> None:
    for name in ("tiny_tokenizer.json", "tokenizer_info.json"):
        goldens.compared(GOLDEN / name)
    for name, stated in goldens.content(GOLDEN / "tokenizer_info.json").items():
        if name in TOKENIZERS:
            assert words(name).size == stated["len"]
            assert all(words(name).specials[token] == stated[token] for token in ADDED)
            assert (words(name).eos, words(name).bos is not None) == (stated["</s>"], stated["bos_first"])


RATES = GOLDEN / "lr_schedules.json"


def rates() -> dict[str, list[float]]:
    return goldens.content(RATES).get("lr_used_at_optimizer_step", {})


@pytest.mark.parametrize("name", rates())
def test_golden_learning_rates_are_in_force_at_their_steps(name: str) -> None:
    kind, _, total = name.partition("_total")
    goldens.compared(RATES)
    stated = goldens.content(RATES)
    chosen = recipes.Schedule(kind=kind, warmup_steps=stated["warmup_steps"])  # type: ignore[arg-type]

    found = [stated["base_lr"] * schedule.factor(step, int(total), chosen) for step in range(len(rates()[name]))]

    assert found == pytest.approx(stated["lr_used_at_optimizer_step"][name], rel=1e-9)


def built(folder: Path, compat: str = "openflamingo") -> tuple[flamingo.FlamingoModel, dict[str, torch.Tensor], dict[str, Any]]:
    """The reference's model with its weights, what went in and came out, and what is said of it."""
    for name in ("meta.json", "weights.safetensors", "io.safetensors"):
        goldens.compared(folder / name)
    stated = goldens.content(folder / "meta.json")
    lm, shape = dict(stated["lm"]), stated["flamingo"]
    lm.pop("type")
    language = {"model_type": "llama", **lm, "attn_implementation": "eager"}
    inside = shape["perceiver"]
    sizes = {"depth": inside["depth"], "latents": inside["num_latents"], "heads": inside["heads"], "head_width": inside["dim_head"]}
    tower = {"model_type": "open_clip", "width": shape["vis_dim"], "head_width": 16, "layers": 1, "patch_size": 8, "image_size": 16}
    recipe = Recipe(
        compat=compat,  # type: ignore[arg-type]
        model=recipes.Family(family="flamingo"),
        vision=recipes.VisionTower(config=tower, select_layer=-1),
        language=recipes.LanguageModel(config=language),
        flamingo=recipes.Flamingo(every=shape["cross_attn_every_n_layers"], **sizes),
        freeze=recipes.Freeze(language=True),
    )
    specials = {"<image>": shape["media_token_id"], "<|endofchunk|>": shape["eoc_token_id"]}
    model = flamingo.build(recipe, lm["vocab_size"], specials)
    put(model, load_file(folder / "weights.safetensors"))
    return model.eval(), load_file(folder / "io.safetensors"), stated


def put(model: flamingo.FlamingoModel, weights: dict[str, torch.Tensor]) -> None:
    """The frozen parts under their names, the rest as a checkpoint is read."""
    own = model.language.state_dict()
    plain = {name.replace(".decoder_layer.", "."): name for name in own}
    frozen = {
        "embed_tokens": "lang_encoder.model.embed_tokens.weight",
        "lm_head": "lang_encoder.lm_head.weight",
    }
    for name, tensor in weights.items():
        ours = name.removeprefix("lang_encoder.").replace(".decoder_layer.", ".")
        if name in frozen.values():
            ours = ours.replace(".weight", ".table.weight")
        if name.startswith("lang_encoder."):
            own[plain[ours]].copy_(tensor)
    wanted = {name: tensor for name, tensor in weights.items() if name.startswith("perceiver.") or ".gated_cross_attn_layer." in name}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        torch.save(wanted | {name: weights[name] for name in frozen.values()}, path)
        flamingo_names.load(model, str(path))


def conditioned(model: flamingo.FlamingoModel, io: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits for the recorded features."""
    features = io["vision_features"]
    rows, slots = features.shape[:2]
    model.resampled = lambda batch: model.arranged(features.flatten(0, 1).flatten(1, 2), [slots] * rows)  # type: ignore[method-assign]
    logits, _ = model.logits(batch_of(io))
    return logits


def batch_of(io: dict[str, torch.Tensor]) -> Batch:
    mask = io["attention_mask"].bool()
    return Batch(ids_BT=io["input_ids"], labels_BT=io["labels"], mask_BT=mask, pixels_NCHW=None, pictures=(0,) * len(mask))


@pytest.mark.parametrize("folder", models(), ids=lambda path: path.name)
def test_golden_models_give_the_right_hidden_states_logits_and_loss(folder: Path) -> None:
    model, io, stated = built(folder)
    seen: dict[str, torch.Tensor] = {}
    for number, layer in enumerate(model.layers()):
        layer.register_forward_hook(lambda _, __, out, number=number: seen.update({f"hidden_after_layer_{number}": first(out)}))
        if isinstance(layer, flamingo.FlamingoLayer):
            after = layer.gated_cross_attn_layer
            after.register_forward_hook(lambda _, __, out, number=number: seen.update({f"hidden_after_xattn_{number}": out}))  # type: ignore[union-attr]

    with torch.no_grad():
        logits = conditioned(model, io)
        features = io["vision_features"]
        perceived = model.perceiver(features.flatten(0, 1).flatten(1, 2)).view_as(io["perceiver_out"])
    loss = token_loss(logits, io["labels"])

    torch.testing.assert_close(perceived, io["perceiver_out"], atol=2e-5, rtol=0)
    for name in (name for name in io if name.startswith("hidden_after")):
        torch.testing.assert_close(seen[name], io[name], atol=2e-5, rtol=0)
    torch.testing.assert_close(logits, io["logits"], atol=2e-5, rtol=0)
    assert int(loss.counts_B.sum()) == stated["n_loss_tokens"]
    assert float(loss.sums_B.sum() / loss.counts_B.sum()) == pytest.approx(stated["loss"], abs=1e-5)


def first(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("folder", models(), ids=lambda path: path.name)
def test_golden_models_give_the_right_gradients(folder: Path) -> None:
    model, io, stated = built(folder)
    loss = token_loss(conditioned(model, io), io["labels"])

    (loss.sums_B.sum() / loss.counts_B.sum()).backward()

    rows = model.language.get_input_embeddings()  # type: ignore[operator]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, Any] = {theirs(name): p.grad for name, p in trained.items() if ".rows" not in name}
    assert set(found) | {"lang_encoder.model.embed_tokens.weight"} == set(stated["trainable_parameters"])
    for name, norm in stated["grad_norm_by_parameter"].items():
        if name in found:
            assert float(found[name].double().norm()) == pytest.approx(norm, rel=1e-4, abs=1e-9), name
    media, end = rows.rows.grad
    torch.testing.assert_close(media, io["grad_media_row"], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(end, io["grad_eoc_row"], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(model.perceiver.latents.grad, io["grad_perceiver_latents"], atol=2e-5, rtol=1e-4)
    for name in (name for name in io if name.startswith("grad.")):
        torch.testing.assert_close(found[name.removeprefix("grad.")], io[name], atol=2e-5, rtol=1e-4)
    total = torch.stack([p.grad.double().norm() for p in trained.values() if p.grad is not None]).norm()
    assert float(total) == pytest.approx(stated["grad_norm_total_after_embedding_row_mask"], rel=1e-4)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def theirs(name: str) -> str:
    return "lang_encoder." + name.removeprefix("language.") if name.startswith("language.") else name


@pytest.mark.parametrize("folder", models(), ids=lambda path: path.name)
def test_golden_models_generate_the_right_ids_with_and_without_a_cache(folder: Path) -> None:
    model, io, stated = built(folder)
    slots = io["vision_features"].shape[1]
    resampled = model.arranged(io["vision_features"][:1].flatten(0, 1).flatten(1, 2), [slots])
    model.resampled = lambda batch: resampled  # type: ignore[method-assign]
    prompt = io["gen_prompt"]
    batch = Batch(ids_BT=prompt, labels_BT=prompt, mask_BT=torch.ones_like(prompt).bool(), pixels_NCHW=None, pictures=(0,))
    wanted = io["gen_output"][:, prompt.shape[1] :]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 2, "pad_token_id": stated["flamingo"]["pad_token_id"]}

    for use_cache in (True, False):
        assert torch.equal(model.generate(batch, use_cache=use_cache, **options), wanted)


@pytest.mark.parametrize("folder", models(), ids=lambda path: path.name)
def test_golden_checkpoints_are_written_as_they_were_read(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    model, _, stated = built(folder)

    written = flamingo_names.export(model)

    assert set(stated["trainable_parameters"]) <= set(written)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in written.items())


@pytest.mark.parametrize("path", sorted((GOLDEN / "images").glob("*")), ids=lambda path: path.name)
def test_golden_images_are_taken_or_refused_as_pillow_does(path: Path) -> None:
    goldens.compared(path)
    try:
        expected = Pillow.open(path).convert("RGB").tobytes()
    except (OSError, SyntaxError):
        with pytest.raises(RecordError, match="image_decode"):
            pixels.decoded(path.read_bytes())
        return

    assert pixels.decoded(path.read_bytes()).tobytes() == expected
