"""The loss of a step is the weighted sum that the recipe states: its gradient against plain torch's, to 1e-6 in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch

from tests.trainer import gradients
from tests.trainer.gradients import Gradient
from trainer import model
from trainer.recipe import Recipe, as_toml

Tiny = Callable[..., Recipe]
STEP = ("steps=1", "log.tensorboard=false", "checkpoint.every=0", "loader.workers=0", "engine.timeout=30", "freeze.vision=false")
BATCHES = ("sources.colours.batch_size=7", "sources.sums.batch_size=4")
WEIGHTS = ("sources.colours.loss_multiplier=1.5", "sources.sums.loss_multiplier=0.2")


@pytest.fixture
def two(tiny: Tiny, colours: str, sums: str) -> Callable[..., Recipe]:
    """two("a.b=c", ...): a step of two sources, 7 records with pictures times 1.5 and 4 without times 0.2."""
    return lambda *settings: tiny(*STEP, *BATCHES, *WEIGHTS, *settings, sources=[f"colours={colours}", f"sums={sums}"])


def same(found: Gradient, expected: Gradient) -> None:
    assert found.keys() == expected.keys()
    assert sum(float(gradient.abs().max()) > 1e-3 for gradient in expected.values()) > 20
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-6 * max(1.0, float(gradient.abs().max())), name


def test_two_sources_give_the_gradient_of_the_weighted_sum(two: Callable[..., Recipe]) -> None:
    same(gradients.of_the_loop(two()), gradients.by_hand(two()))


def test_micro_batches_change_nothing(two: Callable[..., Recipe]) -> None:
    small = two("sources.colours.micro_batch_size=2", "sources.sums.micro_batch_size=3")

    same(gradients.of_the_loop(small), gradients.by_hand(two()))


def test_nor_do_two_ranks_with_micro_batches(two: Callable[..., Recipe], root: Path, tmp_path: Path) -> None:
    recipe = two("sources.colours.micro_batch_size=2", "sources.sums.micro_batch_size=1")
    path, out = tmp_path / "two.toml", tmp_path / "gradient.safetensors"
    path.write_text(as_toml(recipe))
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    command = [sys.executable, gradients.__file__, str(path), str(out)]
    subprocess.run(command, cwd=root, env=environment, check=True, timeout=90, stdout=subprocess.DEVNULL)

    same(safetensors.torch.load_file(out), gradients.by_hand(two()))


def test_what_lies_behind_the_tower_s_chosen_layer_is_not_trained(two: Callable[..., Recipe]) -> None:
    """Nothing gives it a gradient, and two ranks would wait for one."""
    recipe = two("vision.select_layer=-2")

    built = model.build(recipe, 400).get_submodule("vision")

    names = {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    assert any("layers.0" in name for name in names)
    assert not any("layers.1" in name or "post_layernorm" in name for name in names)
