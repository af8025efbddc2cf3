from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from schemas import RequestError
from trainer import llava, model
from trainer.data.batch import Example, collate
from trainer.parts import tower
from trainer.parts.splice import splice
from trainer.recipe import Recipe
from trainer.text.rendered import Rendered

Tiny = Callable[..., Recipe]


def build(recipe: Recipe) -> llava.LlavaModel:
    return cast(llava.LlavaModel, model.build(recipe, 330))


def row(ids: list[int], labels: list[int], pictures: int = 0, hidden: frozenset[int] = frozenset()) -> Example:
    rendered = Rendered(ids=ids, labels=labels, images=list(range(pictures)), hidden=hidden)
    return Example(rendered=rendered, pixels=[np.zeros((3, 16, 16), np.float32)] * pictures)


def spliced(*rows: Example, features: int = 0, longest: int = 100) -> tuple[list[list[float]], list[list[int]], list[list[int]]]:
    """First number of each position, labels, mask; words are themselves, patches are 100, 101 for the first picture, 110, 111, ..."""
    batch = collate(rows)
    embed = torch.nn.Embedding(10, 1, _weight=torch.arange(10.0)[:, None])
    features_NPD = torch.tensor([[[100.0 + 10 * n], [101.0 + 10 * n]] for n in range(features)]).reshape(features, 2, 1)
    out = splice(batch.ids_BT, batch.labels_BT, batch.mask_BT, embed, features_NPD, longest)
    return out.embeds_BSD[:, :, 0].tolist(), out.labels_BS.tolist(), out.mask_BS.tolist()


def test_every_placeholder_becomes_the_patches_of_the_next_picture_untrained() -> None:
    embeds, labels, mask = spliced(row([1, -200, 2], [-100, -100, 2], 1), row([-200, 3, -200], [-100, 3, -100], 2), features=3)

    assert embeds == [[1, 100, 101, 2, 0], [110, 111, 3, 120, 121]]
    assert labels == [[-100, -100, -100, 2, -100], [-100, -100, 3, -100, -100]]
    assert mask == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_rows_without_pictures_stand_beside_rows_with_some() -> None:
    embeds, labels, mask = spliced(row([1, 2], [1, 2]), row([-200, 3], [-100, 3], 1), features=1)

    assert embeds == [[1, 2, 0], [100, 101, 3]]
    assert labels == [[1, 2, -100], [-100, -100, 3]]
    assert mask == [[1, 1, 0], [1, 1, 1]]


def test_hidden_positions_never_reach_the_model_and_long_rows_are_cut() -> None:
    embeds, labels, _ = spliced(row([1, 5, -200, 2, 3], [1, 5, -100, 2, 3], 1, hidden=frozenset([1])), features=1, longest=4)

    assert embeds == [[1, 100, 101, 2]]
    assert labels == [[1, -100, -100, 2]]


def test_the_loss_of_a_row_is_the_sum_over_its_tokens_that_are_trained(tiny: Tiny) -> None:
    built = build(tiny())
    both = collate([row([1, -200, 5, 6], [-100, -100, 5, 6], 1), row([1, 7], [-100, 7])])
    alone = [collate([row([1, -200, 5, 6], [-100, -100, 5, 6], 1)]), collate([row([1, 7], [-100, 7])])]

    together = built(both)

    assert together.counts_B.tolist() == [2, 1]
    torch.testing.assert_close(together.sums_B, torch.cat([built(batch).sums_B for batch in alone]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("kind", "feature", "patches"), [("clip", "patch", 4), ("clip", "cls_patch", 5), ("siglip", "patch", 4)])
def test_features_are_the_patches_of_the_chosen_layer(tiny: Tiny, kind: str, feature: str, patches: int) -> None:
    recipe = tiny(f"vision.config.model_type={kind}_vision_model", f"vision.select_feature={feature}")

    features_NPD = build(recipe).features(torch.zeros(2, 3, 16, 16))

    assert features_NPD.shape == (2, patches, 32)


def test_the_second_to_last_layer_is_the_default(tiny: Tiny) -> None:
    torch.manual_seed(0)
    pixels_NCHW = torch.randn(1, 3, 16, 16)
    default, first = (build(tiny(*settings)).features(pixels_NCHW) for settings in ([], ["vision.select_layer=1"]))

    assert torch.equal(default, first)  # of two layers: hidden states 0, 1, 2


@pytest.mark.parametrize(("kind", "keys"), [("mlp2x_gelu", {"0.weight", "0.bias", "2.weight", "2.bias"}), ("linear", {"weight", "bias"})])
def test_a_projector_has_the_keys_of_llava_s_checkpoints(tiny: Tiny, kind: str, keys: set[str]) -> None:
    assert set(build(tiny(f"projector.kind={kind}")).projector.state_dict()) == keys


def test_the_tower_is_frozen_by_default_and_each_part_can_be(tiny: Tiny) -> None:
    def trained(*settings: str) -> set[str]:
        named = build(tiny(*settings)).named_parameters()
        return {name.split(".")[0] for name, parameter in named if parameter.requires_grad}

    assert trained() == {"projector", "language"}
    assert trained("freeze.language=true") == {"projector"}
    assert trained("freeze.vision=false", "freeze.projector=true") == {"vision", "language"}
    with pytest.raises(RequestError, match="freeze: expected a part to train"):
        trained("freeze.projector=true", "freeze.language=true")


def test_parts_are_read_from_folders_of_weights(tiny: Tiny, tmp_path: Path) -> None:
    made = build(tiny("seed=7"))
    made.vision.save_pretrained(tmp_path / "vision")  # type: ignore[operator]
    made.language.save_pretrained(tmp_path / "language")  # type: ignore[operator]
    recipe = tiny("vision.config={}", "language.config={}", f"vision.weights={tmp_path}/vision", f"language.weights={tmp_path}/language")

    read = build(recipe)

    for name in ("vision", "language"):
        for key, tensor in getattr(made, name).state_dict().items():
            assert torch.equal(getattr(read, name).state_dict()[key], tensor), key


def test_a_tower_s_own_preprocessing_is_used(tiny: Tiny, tmp_path: Path) -> None:
    build(tiny()).vision.save_pretrained(tmp_path / "vision")  # type: ignore[operator]
    (tmp_path / "vision" / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')

    found = tower.preprocess(tiny("vision.config={}", f"vision.weights={tmp_path}/vision", "pictures.std=[1, 1, 1]"))

    assert (found.size, found.mean, found.std, found.squash) == (16, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), False)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["vision.config={}"], 'vision: expected weights = FOLDER or config = {model_type = "clip_vision_model"'),
        (
            ["vision.config.model_type=llama"],
            "vision: expected model_type clip_vision_model or siglip_vision_model or open_clip or efficientnet_lite0, found llama",
        ),
        (["vision.config.model_type=nonesuch"], "vision.config: expected a configuration that transformers knows"),
        (["vision.weights=/nowhere"], "vision.weights /nowhere: expected a folder with config.json, found none"),
        (["vision.select_layer=-4"], "vision.select_layer: expected -3 to 2 for 2 layers, found -4"),
        (["language.config.vocab_size=10"], "language: expected vocab_size of at least the tokenizer's 330, found 10"),
        (["language.config.model_type=clip_vision_model"], "language: expected"),
        (["device=nonesuch"], "device nonesuch: expected a device of this machine"),
    ],
)
def test_parts_that_do_not_fit_are_told_in_one_line(tiny: Tiny, settings: list[str], told: str) -> None:
    with pytest.raises(RequestError) as caught:
        build(tiny(*settings))

    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
