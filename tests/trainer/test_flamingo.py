from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from schemas import Record, RequestError
from trainer import assembly, blank, flamingo, loop, model
from trainer.data.batch import Batch
from trainer.log import RunFolder
from trainer.parts import flamingo_released
from trainer.recipe import Recipe, Source, TokenizerChoice
from trainer.run.tokens import marked
from trainer.text import flamingo_text, render, tokenizer
from trainer.text.rendered import LeftOut
from trainer.weights import flamingo_names

Tiny = Callable[..., Recipe]
Told = Callable[..., Record]

END, IMAGE = 330, 331
SPECIALS = {"<|endofchunk|>": END, "<image>": IMAGE}
TOWER = (
    'vision.config={model_type="open_clip", width=32, head_width=16, layers=2, patch_size=8, image_size=16}',
    "vision.select_layer=-1",
    "model.family=flamingo",
    "freeze.language=true",
    "flamingo.depth=1",
    "flamingo.latents=3",
    "flamingo.heads=2",
    "flamingo.head_width=8",
)
FAMILIES = {
    "llama": "",
    "qwen2": "num_key_value_heads=2",
    "opt": "word_embed_proj_dim=32, ffn_dim=64, pad_token_id=1",
    "mpt": "d_model=32, n_heads=2, n_layers=2, max_seq_len=64",
    "gpt_neox": "",
}


def language(kind: str) -> str:
    sizes = "hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64"
    return (
        f'language.config={{model_type="{kind}", {FAMILIES[kind] if kind == "mpt" else ", ".join(filter(None, [sizes, FAMILIES[kind]]))}}}'
    )


def built(tiny: Tiny, *settings: str, kind: str = "llama") -> flamingo.FlamingoModel:
    made = cast(flamingo.FlamingoModel, model.build(tiny(*TOWER, language(kind), *settings), 333, SPECIALS))
    for name, parameter in made.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 0.7)
    return made.eval()


def batch(*rows: list[int], seed: int = 0) -> Batch:
    longest, counts = max(map(len, rows)), tuple(row.count(IMAGE) for row in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    pixels = torch.randn(sum(counts), 3, 16, 16, generator=torch.Generator().manual_seed(seed)) if sum(counts) else None
    labels = torch.where(mask & (ids != IMAGE), ids, -100)
    return Batch(ids_BT=ids, labels_BT=labels, mask_BT=mask, pixels_NCHW=pixels, pictures=counts)


ROWS = ([1, IMAGE, 5, 6, END, IMAGE, 7], [1, 2, IMAGE, 8])


@pytest.mark.parametrize("kind", FAMILIES)
def test_any_language_model_gets_its_cross_attentions_and_generates_with_a_cache(tiny: Tiny, kind: str) -> None:
    made = built(tiny, kind=kind)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 0}

    cached, uncached = (made.generate(batch(*ROWS), use_cache=use_cache, **options) for use_cache in (True, False))
    alone = [made.generate(batch(ROWS[0]), **options), made.generate(beside(batch(*ROWS), 1), **options)]

    assert [type(layer) for layer in made.layers()] == [flamingo.FlamingoLayer] * 2
    assert torch.equal(cached, uncached)
    assert torch.equal(cached, torch.cat(alone))


def beside(both: Batch, row: int) -> Batch:
    """One row of a batch, with its own pictures."""
    at, length = sum(both.pictures[:row]), int(both.mask_BT[row].sum())
    assert both.pixels_NCHW is not None
    pixels = both.pixels_NCHW[at : at + both.pictures[row]]
    one = both.ids_BT[row : row + 1, :length]
    return Batch(ids_BT=one, labels_BT=one, mask_BT=torch.ones_like(one).bool(), pixels_NCHW=pixels, pictures=(both.pictures[row],))


@pytest.mark.parametrize("kind", FAMILIES)
def test_only_the_resampler_the_cross_attentions_and_two_rows_are_trained(tiny: Tiny, kind: str) -> None:
    made = built(tiny, kind=kind)
    loss = made(batch(*ROWS))
    (loss.sums_B.sum() / loss.counts_B.sum()).backward()

    trained = {name for name, p in made.named_parameters() if p.requires_grad}

    assert all(name.startswith("perceiver.") or ".gated_cross_attn_layer." in name or name.endswith(".rows") for name in trained)
    assert {name for name, p in made.named_parameters() if p.grad is not None} == trained
    assert loss.counts_B.tolist() == [4, 2]


def test_text_sees_the_picture_just_before_it_and_none_before_the_first(tiny: Tiny) -> None:
    made = built(tiny)
    shown = batch([1, 2, IMAGE, 5, IMAGE, 6])

    def changed(picture: int) -> list[bool]:
        assert shown.pixels_NCHW is not None
        other = shown.pixels_NCHW.clone()
        other[picture] += 1
        with torch.no_grad():
            made.language.eval()
            resampled = made.resampled(shown)
            moved = made.resampled(replace(shown, pixels_NCHW=other))
            seen = (shown.ids_BT == IMAGE).cumsum(1)
            attention = made.layers()[0].gated_cross_attn_layer.attn  # type: ignore[union-attr]
            hidden = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(2))
            found = []
            for latents in (resampled, moved):
                made._put(latents, seen)
                found.append(attention(hidden, made.media))  # type: ignore[operator]
        return (found[0] != found[1]).any(-1)[0].tolist()

    assert changed(0) == [False, False, True, True, False, False]
    assert changed(1) == [False, False, False, False, True, True]
    made.flamingo = made.flamingo.__class__(**{**vars(made.flamingo), "attend": "all"})
    assert changed(0) == [False, False, True, True, True, True]


def test_the_layers_that_have_a_cross_attention_are_every_nth(tiny: Tiny) -> None:
    made = built(tiny, "language.config.num_hidden_layers=4", "flamingo.every=2")

    assert [isinstance(layer, flamingo.FlamingoLayer) for layer in made.layers()] == [False, True, False, True]


def test_closed_gates_leave_the_language_model_as_it_was(tiny: Tiny) -> None:
    made = built(tiny)
    for name, parameter in made.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.zeros_(parameter)
    shown = batch(*ROWS)

    with torch.no_grad():
        assert torch.equal(made.logits(shown)[0][shown.mask_BT], made.logits(batch(*ROWS, seed=1))[0][shown.mask_BT])


def test_a_batch_without_pictures_gives_every_trained_parameter_a_gradient(tiny: Tiny) -> None:
    made = built(tiny)
    made(batch([1, 2, 3])).sums_B.sum().backward()

    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)
    assert all(not p.grad.any() for name, p in made.named_parameters() if name.startswith("perceiver.") and p.grad is not None)


@pytest.mark.parametrize(
    ("kind", "compat", "trained"), [("llama", "none", True), ("llama", "openflamingo", False), ("opt", "openflamingo", True)]
)
def test_the_new_tokens_rows_of_the_head_train_too_but_for_openflamingo_s_untied_ones(
    tiny: Tiny, kind: str, compat: str, trained: bool
) -> None:
    made = built(tiny, f"compat={compat}", kind=kind)
    head = cast(Any, made.language).get_output_embeddings()

    assert head.rows.requires_grad is trained
    assert (head.rows is cast(Any, made.language).get_input_embeddings().rows) is (kind == "opt")


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_checkpoint_is_written_and_read_under_openflamingo_s_names(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    one, other = built(tiny, "seed=1", kind=kind), built(tiny, "seed=1", kind=kind)
    for parameter in one.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    flamingo_names.save(one, tmp_path / "checkpoint.pt")

    flamingo_names.load(other, str(tmp_path / "checkpoint.pt"))

    stored = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(name.startswith(("perceiver.", "lang_encoder.")) for name in stored)
    for name, parameter in one.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(other.get_parameter(name), parameter), name
    table = next(tensor for name, tensor in stored.items() if name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight")))
    assert torch.equal(table[[IMAGE, END]], cast(Any, one.language).get_input_embeddings().rows)


def test_a_checkpoint_of_another_shape_is_told(tiny: Tiny, tmp_path: Path) -> None:
    flamingo_names.save(built(tiny, "flamingo.latents=5"), tmp_path / "checkpoint.pt")

    with pytest.raises(RequestError, match=r"perceiver\.latents: expected shape \(3, 32\), found \(5, 32\)"):
        built(tiny, f"flamingo.weights={tmp_path}/checkpoint.pt")


def test_a_tokenizer_without_the_two_tokens_is_told(tiny: Tiny) -> None:
    with pytest.raises(RequestError, match=r"tokenizer: expected a token <image>, found none; OpenFlamingo has tokenizer\.add"):
        model.build(tiny(*TOWER, language("llama")), 333, {})


# Language model, cross-attentions, every, width, and trained parameters with the whole table of 50,280 rows among them.
RELEASED = {
    "openflamingo-3b": ("mpt", 24, 1, 2048, 1_046_992_944),
    "openflamingo-4b": ("gpt_neox", 16, 2, 2560, 1_089_480_736),
    "openflamingo-9b": ("mpt", 8, 4, 4096, 1_384_781_840),
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_shapes_have_the_released_names_and_counts(name: str) -> None:
    kind, blocks, every, width, count = RELEASED[name]
    recipe = flamingo_released.recipe(name)
    with torch.device("meta"):
        made = flamingo.build(recipe, 50280, {"<|endofchunk|>": 50277, "<image>": 50278})

    stored = flamingo_names.export(made)

    where = "lang_encoder.transformer.blocks" if kind == "mpt" else "lang_encoder.gpt_neox.layers"
    tables = (
        {"lang_encoder.transformer.wte.weight"}
        if kind == "mpt"
        else {"lang_encoder.gpt_neox.embed_in.weight", "lang_encoder.embed_out.weight"}
    )
    attention = {f"{where}.{every - 1 + number * every}.gated_cross_attn_layer.attn_gate" for number in range(blocks)}
    assert {key for key in stored if key.endswith(".attn_gate")} == attention
    assert {key for key in stored if "gated_cross_attn_layer" not in key and not key.startswith("perceiver.")} == tables
    shapes = {key: tuple(tensor.shape) for key, tensor in stored.items()}
    inside = f"{where}.{every - 1}.gated_cross_attn_layer"
    assert shapes["perceiver.latents"] == (64, 1024)
    assert shapes["perceiver.layers.5.0.to_kv.weight"] == (1024, 1024)
    assert shapes["perceiver.layers.0.1.1.weight"] == (4096, 1024)
    assert shapes[f"{inside}.attn.to_q.weight"] == (512, width)
    assert shapes[f"{inside}.attn.to_kv.weight"] == (1024, 1024)
    assert shapes[f"{inside}.ff.1.weight"] == (4 * width, width)
    assert shapes[f"{inside}.attn_gate"] == (1,)
    assert sum(tensor.numel() for key, tensor in stored.items() if key != "lang_encoder.embed_out.weight") == count
    assert sum(tensor.numel() for key, tensor in stored.items() if key.startswith("perceiver.")) == 63_019_008


@pytest.fixture(scope="module")
def words_of(words: str) -> tokenizer.Tokenizer:
    return tokenizer.load(TokenizerChoice(path=words, add=("<|endofchunk|>", "<image>", "<PAD>")))


def shown(stored: Record, words_of: tokenizer.Tokenizer, coin: float = 1.0, **source: Any) -> str:
    recipe = Recipe(template="flamingo", max_tokens=source.pop("max_tokens", 256))
    return marked(render.renderer(recipe, words_of, Source(name="s", **source))(stored, stored.turns, coin))


def test_a_document_is_trained_on_behind_its_pictures(told: Told, words_of: tokenizer.Tokenizer) -> None:
    stored = told(("text", "Before. <0> One. <1>Two. Three."))

    assert shown(stored, words_of) == "Before.<image>⟦One.<|endofchunk|>⟧<image>⟦Two. Three.<|endofchunk|>⟧</s>"
    assert shown(stored, words_of, max_images=1) == "Before.<image>⟦One. Two. Three.<|endofchunk|>⟧</s>"


def test_a_caption_is_trained_on_to_its_end(told: Told, words_of: tokenizer.Tokenizer) -> None:
    assert shown(told(("text", "<0> a cat ")), words_of, task="caption") == "<image>⟦a cat<|endofchunk|></s>⟧"


def test_questions_are_written_as_openflamingo_asks_them(told: Told, words_of: tokenizer.Tokenizer) -> None:
    stored = told(("user", "<0>\nWhich colour?"), ("assistant", "Red."), ("user", "Sure?"), ("assistant", "Yes."))

    first, second = "Question:Which colour? Short answer:⟦Red.<|endofchunk|>⟧", "Question:Sure? Short answer:⟦Yes.<|endofchunk|>⟧"
    assert shown(stored, words_of) == f"<image>{first}{second}</s>"


def test_a_picture_unlike_its_sentence_is_not_shown(told: Told, words_of: tokenizer.Tokenizer) -> None:
    stored = told(("text", "<0>One. <1>Two."))
    stored.images = [copy.copy(picture) for picture in stored.images]
    stored.images[0].similarity, stored.images[1].similarity = 0.2, 0.24

    assert shown(stored, words_of, min_similarity=0.24) == "One.<image>⟦Two.<|endofchunk|>⟧</s>"


@pytest.mark.parametrize(
    ("text", "source", "why"),
    [
        ("No picture.", {}, "no_usable_image"),
        ("<0>One.", {"min_similarity": 0.9}, "all_pairs_below_threshold"),
        ("<0>One.", {"min_images": 2}, "too_few_image_tokens"),
        ("<0>One.", {"keep_single": 0.5, "coin": 0.5}, "single_image_coin"),
        ("One.<0>Two.", {"max_tokens": 3}, "too_few_image_tokens"),
        ("<0>One.", {"max_tokens": 2}, "single_image_at_last_token"),
    ],
)
def test_records_that_the_rules_leave_out_are_told_by_reason(
    told: Told, words_of: tokenizer.Tokenizer, text: str, source: dict[str, Any], why: str
) -> None:
    stored = told(("text", text))
    for picture in stored.images:
        picture.similarity = 0.5

    with pytest.raises(LeftOut) as caught:
        shown(stored, words_of, **source)

    assert caught.value.reason == why


def test_text_alone_is_trained_on_where_a_source_asks_for_it(told: Told, words_of: tokenizer.Tokenizer) -> None:
    assert shown(told(("text", "Words.")), words_of, min_images=0) == "⟦Words.⟧</s>"


def test_the_two_tokens_are_data_in_a_text(told: Told, words_of: tokenizer.Tokenizer) -> None:
    stored = told(("text", "<0>a <|endofchunk|> b"))
    out = flamingo_text.render(stored, stored.turns, Source(name="s"), words_of, 256)

    assert out.ids.count(words_of.specials["<|endofchunk|>"]) == 1


def test_a_recipe_trains_it_and_it_has_to_look(tiny: Tiny) -> None:
    added = 'tokenizer.add=["<|endofchunk|>", "<image>", "<PAD>"]'
    settings = (
        *TOWER,
        language("llama"),
        added,
        "template=flamingo",
        "freeze.vision=false",
        "freeze.language=false",
        "sources.colours.batch_size=4",
        "steps=60",
    )
    recipe = tiny(*settings, "optimizer.lr=1e-2")
    made = assembly.assemble(recipe)
    for name, parameter in made.model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 0.5)

    with RunFolder(recipe) as folder:
        result = loop.train(made, folder)

    lines = [json.loads(line) for line in (Path(result["out"]) / "log.jsonl").read_text().splitlines()]
    seen = blank.compare(made, blank.first_examples(made, 4))
    assert lines[0]["loss"] > 4
    assert seen.picture < 1 < seen.blank
