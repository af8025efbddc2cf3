from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from schemas import RequestError
from trainer.parts import tower
from trainer.recipe import Recipe, VisionTower

Tiny = Callable[..., Recipe]

OPEN_CLIP = {"model_type": "open_clip", "width": 32, "head_width": 16, "layers": 2, "patch_size": 8, "image_size": 16}


def test_open_clip_s_patches_are_taken_before_its_last_norm() -> None:
    torch.manual_seed(0)
    choice = VisionTower(config=OPEN_CLIP, select_layer=-1)
    made = tower.build(choice)
    seen: list[torch.Tensor] = []
    visual: Any = made.visual
    visual.transformer.register_forward_hook(lambda *call: seen.append(call[2]))
    pixels_NCHW = torch.randn(2, 3, 16, 16)
    visual(pixels_NCHW)
    with torch.no_grad():
        visual.ln_post.weight.mul_(3)

    patches_NPW = tower.patches(made, pixels_NCHW, choice)

    torch.testing.assert_close(patches_NPW, seen[0][:, 1:])
    assert patches_NPW.shape == (2, tower.patch_count(made, choice), tower.width(made))


def test_a_layer_of_open_clip_s_is_named_as_one_of_transformers() -> None:
    torch.manual_seed(0)
    made = tower.build(VisionTower(config=OPEN_CLIP, select_layer=-2))
    pixels_NCHW = torch.randn(1, 3, 16, 16)

    last, second, first = (tower.patches(made, pixels_NCHW, VisionTower(select_layer=layer)) for layer in (-1, -2, 1))

    assert torch.equal(second, first)
    assert not torch.equal(second, last)


def test_open_clip_s_names_have_their_own_pixels(tiny: Tiny) -> None:
    made = tower.preprocess(tiny("vision.config={}", "vision.open_clip=ViT-L-14", "vision.weights=openai"))
    siglip = tower.preprocess(tiny("vision.config={}", "vision.open_clip=ViT-B-16-SigLIP", "vision.weights=webli"))

    assert (made.size, made.mean, made.squash) == (224, tower.CLIP_MEAN, False)
    assert (siglip.size, siglip.mean, siglip.squash) == (224, tower.HALF, True)


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"open_clip": "ViT-L-15"}, r"vision.open_clip: expected a name that open_clip knows, found ViT-L-15 \(did you mean ViT-"),
        (
            {"open_clip": "ViT-L-14", "weights": "/nowhere.pt"},
            "vision.weights /nowhere.pt: expected a file or one of ViT-L-14's tags, openai",
        ),
        ({"config": {**OPEN_CLIP, "depth": 3}}, "vision.config: expected open_clip's CLIPVisionCfg"),
        ({"config": OPEN_CLIP, "select_layer": 0}, "vision.select_layer: expected -2 to 2 for 2 layers, found 0"),
        ({"config": {"model_type": "clip_vision_model"}, "post_norm": True}, "vision.post_norm: expected select_layer = -1 with it"),
    ],
)
def test_a_tower_that_there_is_not_is_told(choice: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        tower.build(VisionTower(**choice))
