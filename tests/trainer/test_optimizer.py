from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from schemas import RequestError
from trainer import assembly, loop
from trainer import recipe as recipes
from trainer.engines import optimizer
from trainer.log import RunFolder
from trainer.recipe import Optimizer, ParameterGroup, Recipe

Tiny = Callable[..., Recipe]


class RMSNorm(nn.Module):
    """A norm that is no LayerNorm, as LLaMA's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


class Small(nn.Module):
    """The kinds of parameters that there are."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Linear(2, 2)
        self.layers = nn.ModuleList([nn.ModuleDict({"norm": RMSNorm(), "attn": nn.Linear(2, 2, bias=False)}) for _ in range(2)])
        self.gated_cross_attn_layer = nn.ModuleDict({"norm": nn.LayerNorm(2)})
        self.gated_cross_attn_layer.register_parameter("attn_gate", nn.Parameter(torch.zeros(1)))


def found(settings: Optimizer, model: nn.Module | None = None) -> dict[tuple[float, float], set[str]]:
    return {(group.lr, group.weight_decay): set(group.names) for group in optimizer.groups(model or Small(), settings)}


def plain(**changes: object) -> Optimizer:
    return Optimizer(lr=1.0, weight_decay=0.1, **changes)  # type: ignore[arg-type]


MATRICES = {"projector.weight", "layers.0.attn.weight", "layers.1.attn.weight"}
NORMS = {"layers.0.norm.weight", "layers.1.norm.weight", "gated_cross_attn_layer.norm.weight"}
BIASES = {"projector.bias", "gated_cross_attn_layer.norm.bias"}
GATE = {"gated_cross_attn_layer.attn_gate"}


@pytest.mark.parametrize(
    ("rule", "decaying"),
    [
        ("matrices", MATRICES),
        ("transformers", MATRICES | GATE),
        ("openflamingo", GATE | {"gated_cross_attn_layer.norm.weight", "gated_cross_attn_layer.norm.bias"}),
    ],
)
def test_what_decays_is_a_rule_by_name(rule: str, decaying: set[str]) -> None:
    everything = MATRICES | NORMS | BIASES | GATE

    assert found(plain(decay=rule)) == {(1.0, 0.1): decaying, (1.0, 0.0): everything - decaying}


def test_a_group_has_its_own_rate_and_the_rule_says_what_decays() -> None:
    groups = found(plain(groups=(ParameterGroup(match="projector", lr=0.5),)))

    assert groups[0.5, 0.1] == {"projector.weight"}
    assert groups[0.5, 0.0] == {"projector.bias"}
    assert groups[1.0, 0.1] == MATRICES - {"projector.weight"}


def test_a_groups_own_decay_is_for_all_that_it_fits_and_the_first_that_fits_counts() -> None:
    layers = ParameterGroup(match="layers.*", lr=0.25, weight_decay=0.3)
    groups = found(plain(groups=(ParameterGroup(match="layers.0", lr=0.5), layers, ParameterGroup(match="*.bias", weight_decay=0.2))))

    assert groups[0.5, 0.1] == {"layers.0.attn.weight"}
    assert groups[0.5, 0.0] == {"layers.0.norm.weight"}
    assert groups[0.25, 0.3] == {"layers.1.attn.weight", "layers.1.norm.weight"}
    assert groups[1.0, 0.2] == BIASES


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (
            ["proyector.*"],
            "optimizer.groups proyector.*: expected a pattern of the model's parameters, found none that it fits (nearest: projector)",
        ),
        (
            ["layers.2"],
            "optimizer.groups layers.2: expected a pattern of the model's parameters, found none that it fits (nearest: layers.",
        ),
        (["layer"], "(nearest: layers)"),
        (["layers", "layers.0"], "optimizer.groups layers.0: expected a parameter that is trained, found only what a group before has"),
        (
            ["gated_cross_attn_layer"],
            "optimizer.groups gated_cross_attn_layer: expected a parameter that is trained, found only frozen ones",
        ),
    ],
)
def test_a_pattern_that_fits_nothing_is_told_with_the_nearest_name(patterns: list[str], told: str) -> None:
    model = Small()
    model.gated_cross_attn_layer.requires_grad_(False)

    with pytest.raises(RequestError) as caught:
        optimizer.groups(model, plain(groups=tuple(ParameterGroup(match=pattern) for pattern in patterns)))

    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_schedule_is_a_factor_on_each_groups_own_rate() -> None:
    adam = optimizer.build(Small(), plain(groups=(ParameterGroup(match="projector", lr=0.5),)))

    for factor in (0.0, 0.5, 1.0):
        optimizer.set_lr(adam, factor)
        assert {group["lr"] for group in adam.param_groups} == {1.0 * factor, 0.5 * factor}


def test_a_group_without_a_rate_of_more_than_nothing_stays_as_it_was(tiny: Tiny) -> None:
    recipe = tiny("steps=3", 'optimizer.groups=[{match = "projector", lr = 0}, {match = "language.lm_head", lr = 0.1}]')
    made = assembly.assemble(recipe)
    before = {name: parameter.detach().clone() for name, parameter in made.model.named_parameters() if parameter.requires_grad}

    with RunFolder(recipe) as folder:
        loop.train(made, folder)

    changed = {name for name, parameter in before.items() if not torch.equal(parameter, made.model.get_parameter(name))}
    assert {name for name in before if name not in changed} == {name for name in before if name.startswith("projector.")}
    line = json.loads((Path(recipe.out or "") / "log.jsonl").read_text().splitlines()[0])
    assert line["lr"] == 0.01


def test_groups_are_written_into_the_run_folder_and_read_back(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny('optimizer.groups=[{match = "projector", lr = 2e-5}, {match = "*.bias", weight_decay = 0.1}]')
    (tmp_path / "again.toml").write_text(recipes.as_toml(recipe))

    again = recipes.load(str(tmp_path / "again.toml"))

    assert again == recipe
    assert again.optimizer.groups[1] == ParameterGroup(match="*.bias", weight_decay=0.1)
    assert recipes.differences(tiny(), recipe)["optimizer.groups.0.lr"] == "was none, is 2e-05"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('groups = [{match = "a", lrr = 1}]', "optimizer.groups.0.lrr: unknown key (did you mean lr?)"),
        ("groups = [{lr = 1}]", "optimizer.groups.0.match: expected a value, found none"),
        ('groups = [{match = "a", lr = -1}]', "optimizer.groups.0: lr: expected at least 0, found -1"),
        (
            'decay = "matrix"',
            "optimizer.decay: expected one of matrices, transformers, openflamingo, found 'matrix' (did you mean matrices?)",
        ),
    ],
)
def test_a_wrong_group_is_told_by_its_key(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"[optimizer]\n{text}")

    with pytest.raises(RequestError) as caught:
        recipes.load(str(path))

    assert told in str(caught.value)


def trained(recipe: Recipe) -> set[str]:
    return {name for name, parameter in assembly.assemble(recipe).model.named_parameters() if parameter.requires_grad}


def test_what_fits_a_pattern_is_frozen_and_thawed(tiny: Tiny) -> None:
    everything = trained(tiny())

    without = trained(tiny('freeze.match=["language.model.layers.0", "*.bias"]'))
    head = trained(tiny("freeze.language=true", 'freeze.thaw=["language.lm_head"]'))

    assert everything - without == {name for name in everything if ".layers.0." in name or name.endswith(".bias")}
    assert head == {name for name in everything if name.startswith("projector.")} | {"language.lm_head.weight"}


def test_a_pattern_that_freezes_nothing_is_told(tiny: Tiny) -> None:
    with pytest.raises(RequestError, match=r"^freeze\.match language\.modle\.\*: expected .* \(nearest: language\.model\)$"):
        assembly.assemble(tiny('freeze.match=["language.modle.*"]'))
