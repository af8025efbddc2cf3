from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from schemas import RequestError
from trainer import __main__, assembly
from trainer import recipe as recipes
from trainer.data import sources
from trainer.recipe import Recipe, as_toml
from trainer.run import plan

Tiny = Callable[..., Recipe]
EVERY = ("sources.colours.batch_size=4",)  # all the records that there are


def parameters(recipe: Recipe) -> tuple[int, int]:
    """All, and those that are trained, of the model itself."""
    every = [(parameter.numel(), parameter.requires_grad) for parameter in assembly.assemble(recipe).model.parameters()]
    return sum(count for count, _ in every), sum(count for count, trained in every if trained)


def test_a_plan_counts_the_parameters_of_the_model_that_is_built(tiny: Tiny) -> None:
    recipe = tiny('freeze.match=["language.model.layers.0"]', "optimizer.weight_decay=0.1")
    model = assembly.assemble(recipe).model

    made = plan.of_recipe(recipe)

    by_part = {name: [p for q, p in model.named_parameters() if q.startswith(f"{name}.")] for name in ("vision", "projector", "language")}
    for part in made.parts:
        assert part.trained == sum(p.numel() for p in by_part[part.name] if p.requires_grad)
        assert part.frozen == sum(p.numel() for p in by_part[part.name] if not p.requires_grad)
    assert [part.name for part in made.parts] == ["vision", "projector", "language"]
    assert {(group.lr, group.weight_decay) for group in made.groups} == {(0.01, 0.1), (0.01, 0.0)}
    assert sum(group.parameters for group in made.groups) == parameters(recipe)[1]


def test_the_tokens_of_a_step_are_those_of_the_records(tiny: Tiny) -> None:
    recipe = tiny(*EVERY)
    made = assembly.assemble(recipe)
    batches = [made.examples("colours", draw, sample).rendered for draw, sample in enumerate(sources.first(made.data["colours"], None))]

    step = plan.of_recipe(recipe).step

    patches = (16 // 8) ** 2
    assert step.records == {"colours": 4}
    assert step.positions == sum(len(rendered.ids) - 1 + patches for rendered in batches)
    assert step.supervised == sum(label != -100 for rendered in batches for label in rendered.labels)
    assert step.pictures == 4


def test_without_shards_it_is_told_how_many_there_can_be(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    path.write_text(as_toml(tiny("sources.colours.batch_size=6")).replace("shards = ", "# "))
    made = plan.of_recipe(recipes.load(str(path)))

    assert made.step == plan.Step({"colours": 6.0}, 6.0 * (256 + 4 - 1), None, None)
    assert "at most 1,554 positions" in plan.told(made)


@pytest.mark.parametrize(
    ("settings", "ranks", "expected"),
    [
        ((), 1, lambda whole, trained: (4 * whole, 4 * trained, 8 * trained)),
        (("precision.dtype=bf16",), 1, lambda whole, trained: (4 * whole, 4 * trained, 8 * trained)),
        ((), 4, lambda whole, trained: (4 * whole, 8 * trained, 8 * trained)),
        (("engine.kind=fsdp",), 4, lambda whole, trained: (whole, trained, 2 * trained)),
        (("engine.kind=deepspeed", "precision.dtype=bf16"), 4, lambda whole, trained: (2 * whole, trained // 2, 3 * trained)),
        (
            ("engine.kind=deepspeed", "engine.deepspeed={zero_optimization = {stage = 3}}"),
            4,
            lambda whole, trained: (whole, trained, 2 * trained),
        ),
        (
            ("engine.kind=deepspeed", "engine.deepspeed={zero_optimization = {stage = 1}}"),
            4,
            lambda whole, trained: (4 * whole, 4 * trained, 2 * trained),
        ),
    ],
)
def test_the_memory_of_a_rank_follows_from_the_engine(tiny: Tiny, settings: tuple[str, ...], ranks: int, expected: Callable) -> None:
    made = plan.of_recipe(tiny(*settings), ranks)

    held = made.memory
    assert (held.weights, held.gradients, held.optimizer) == expected(*parameters(tiny()))
    assert held.total == held.weights + held.gradients + held.optimizer + held.gathered
    assert bool(held.gathered) == ("engine.kind=fsdp" in settings)


LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


@pytest.fixture
def downloaded(tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what llava15-7b-pretrain names: configurations and a tokenizer, and no weights."""
    for name, config in (("vicuna-7b-v1.5", LLAMA_7B), ("clip-vit-large-patch14-336", CLIP_L)):
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "config.json").write_text(json.dumps(config))
    shutil.copytree(words, tmp_path / "weights" / "vicuna-7b-v1.5", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_plan_needs_no_weights_and_then_says_which_are_missing(downloaded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = __main__.main(["train", "llava15-7b-pretrain", "--plan", "--ranks", "8", "--json"])

    told = capsys.readouterr()
    made = json.loads(told.out)
    counts = {part["name"]: (part["trained"], part["frozen"]) for part in made["parts"]}
    assert counts == {"vision": (0, 303_507_456), "projector": (20_979_712, 0), "language": (0, 6_738_415_616)}
    assert made["step"]["positions"] == 256 * (2048 + 576 - 1)
    assert made["groups"] == [{"lr": 0.001, "weight_decay": 0.0, "tensors": 4, "parameters": 20_979_712}]
    assert (made["steps"], made["warmup"], made["ranks"]) == (2181, 66, 8)
    assert made["memory"]["weights"] == 4 * 7_062_902_784 // 8
    assert status == 2
    assert told.err.count("\n") == 1
    assert "vision.weights weights/clip-vit-large-patch14-336: expected model*.safetensors" in told.err
    assert "hf download lmsys/vicuna-7b-v1.5 --local-dir weights/vicuna-7b-v1.5" in told.err


def test_what_is_missing_is_told_all_at_once_and_nothing_is_written(
    tmp_path: Path, colours: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    status = __main__.main(["train", "llava15-7b-finetune", "--source", f"instruct={colours}", "--out", "run"])

    told = capsys.readouterr().err
    assert status == 2
    assert told.startswith("error: tokenizer.path weights/vicuna-7b-v1.5: expected a file or folder, found none; get it with: hf download")
    assert "vision.weights weights/clip-vit-large-patch14-336: expected a file or folder, found none" in told
    assert "projector.weights runs/llava15-7b-pretrain/trained.safetensors: expected a file or folder, found none" in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_plan_is_told_before_a_run_and_alone_if_asked(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(as_toml(tiny("steps=1", "checkpoint.every=0", *EVERY)))

    assert __main__.main(["train", str(path), "--plan"]) == 0
    alone = capsys.readouterr()
    assert not (tmp_path / "run").exists()
    assert __main__.main(["train", str(path)]) == 0
    before = capsys.readouterr()

    assert alone.out == plan.told(plan.of_recipe(tiny("steps=1", "checkpoint.every=0", *EVERY))) + "\n"
    assert before.err.startswith(alone.out)
    assert "1 steps" in before.out


def test_a_group_that_fits_nothing_is_told_by_the_plan(tiny: Tiny) -> None:
    with pytest.raises(RequestError, match=r"^optimizer\.groups projecter: .*nearest: projector"):
        plan.of_recipe(tiny('optimizer.groups=[{match = "projecter"}]'))


def test_a_plan_is_made_of_no_memory(tiny: Tiny) -> None:
    recipe = tiny()
    words = assembly.assemble(recipe).tokenizer

    assert {parameter.device for parameter in plan.shape(recipe, words.size, words.specials).parameters()} == {torch.device("meta")}
