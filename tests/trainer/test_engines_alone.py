"""What needs no second rank: precision, launchers, configurations, what a run says when it can not go on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas import RequestError
from trainer import assembly, loop
from trainer.data.batch import Batch
from trainer.data.loader import Loader
from trainer.engines import ds_config, launch, start
from trainer.engines.single import Single
from trainer.log import RunFolder
from trainer.recipe import Recipe
from trainer.run import checkpoint

Tiny = Callable[..., Recipe]


def run(recipe: Recipe) -> list[dict]:
    made = assembly.assemble(recipe)
    with RunFolder(recipe) as folder:
        loop.train(made, folder)
    return [json.loads(line) for line in (folder.path / "log.jsonl").read_text().splitlines()]


def step(recipe: Recipe) -> tuple[Single, list[Any]]:
    """An engine, and the micro-batches of its first step."""
    made = assembly.assemble(recipe)
    engine = start.build(made.model, recipe)
    with Loader(loop.feed(made), made.mixture.start(), stop=1, workers=0) as loader:
        return engine, next(loader).made  # type: ignore[return-value]


def accumulated(engine: Single, made: Sequence[Any]) -> dict[str, torch.Tensor]:
    for micro in made:
        engine.accumulate(micro.batch, torch.ones(len(micro.sources), 1), last=True)
    return {name: parameter.grad for name, parameter in engine.trained.items() if parameter.grad is not None}


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_in_16_bits_the_weights_stay_float32_and_the_loss_is_about_the_same(tiny: Tiny, tmp_path: Path, dtype: str) -> None:
    wide = run(tiny("steps=6"))
    recipe = tiny("steps=6", f"precision.dtype={dtype}", f"out={tmp_path}/narrow")
    made = assembly.assemble(recipe)

    narrow = run(recipe)

    assert all(parameter.dtype == torch.float32 for parameter in made.model.parameters())
    assert [line["loss"] for line in narrow] == pytest.approx([line["loss"] for line in wide], rel=0.03)
    assert [line["loss"] for line in narrow] != [line["loss"] for line in wide]


def test_a_float16_gradient_that_overflows_halves_the_scale_and_updates_nothing(tiny: Tiny, tmp_path: Path) -> None:
    engine, made = step(tiny("precision.dtype=fp16"))
    engine.scale.value = 2.0**127
    before = {entry.name: entry.whole().clone() for entry in engine.weights()}

    accumulated(engine, made)
    norm = engine.update(1.0)
    engine.save(tmp_path)
    other, _ = step(tiny("precision.dtype=fp16"))
    other.load(tmp_path)

    assert norm is None
    assert all(torch.equal(before[entry.name], entry.whole()) for entry in engine.weights())
    assert engine.scale.value == other.scale.value == 2.0**126


def test_what_is_loaded_is_a_copy_and_no_file_stays_mapped(tiny: Tiny, tmp_path: Path) -> None:
    engine, made = step(tiny())
    accumulated(engine, made)
    engine.update(1.0)
    engine.save(tmp_path)
    other, _ = step(tiny("seed=1"))

    other.load(tmp_path)

    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    for name, parameter in engine.trained.items():
        assert torch.equal(other.trained[name], parameter)
        loaded, own = other.adam.state[other.trained[name]], engine.adam.state[parameter]
        assert loaded.keys() == own.keys()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in own.items())


def test_a_scale_grows_when_nothing_overflows(tiny: Tiny) -> None:
    engine, _ = step(tiny("precision.dtype=fp16"))
    for _ in range(2000):
        engine.scale.kept()

    assert (engine.scale.value, engine.scale.updates) == (2.0**17, 0)


def test_layers_computed_again_give_the_same_gradients(tiny: Tiny) -> None:
    kept = accumulated(*step(tiny()))
    again = accumulated(*step(tiny("engine.activation_checkpointing=true")))

    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient)


def test_attentions_give_the_same_loss_and_one_that_is_not_there_is_named(tiny: Tiny, tmp_path: Path) -> None:
    eager, sdpa = (run(tiny("steps=2", f"precision.attention={kind}", f"out={tmp_path}/{kind}")) for kind in ("eager", "sdpa"))

    assert [line["loss"] for line in eager] == pytest.approx([line["loss"] for line in sdpa], rel=1e-5)
    with pytest.raises(RequestError, match=r"precision\.attention: expected one that vision has here, found flash_attention_2"):
        step(tiny("precision.attention=flash_attention_2"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("sources.colours.batch_size=8",), r"expected 8 rows of \d+ tokens to fit, .* try --set sources\.colours\.micro_batch_size=4"),
        (("mixture.draw=mixed", "mixture.batch_size=6"), r"expected 6 rows .* try --set mixture\.micro_batch_size=3"),
        (("sources.colours.batch_size=1",), r"expected 1 rows .* try --set engine\.activation_checkpointing=true, or fsdp"),
    ],
)
def test_out_of_memory_says_what_to_try(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], told: str) -> None:
    def full(_engine: Single, batch: Batch, *_: Any, **__: Any) -> torch.Tensor:
        return torch.empty(2**62, dtype=torch.int8)  # the allocator's own words

    monkeypatch.setattr(Single, "accumulate", full)
    with pytest.raises(RequestError, match=f"cpu: out of memory: {told}"):
        run(tiny(*settings))


def test_a_checkpoint_that_can_not_be_written_is_told_after_the_first_step(tiny: Tiny) -> None:
    recipe = tiny("steps=5")
    made = assembly.assemble(recipe)

    with RunFolder(recipe) as folder:
        (folder.path / checkpoint.FOLDER).write_text("in the way")
        with pytest.raises(RequestError, match=r"checkpoints/\.trial\.part: expected to write a checkpoint, found"):
            loop.train(made, folder)

    assert len((folder.path / "log.jsonl").read_text().splitlines()) == 1


def test_a_trial_leaves_nothing_and_changes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    tried, untried = (run(tiny("steps=4", f"checkpoint.trial={trial}", f"out={tmp_path}/{trial}")) for trial in ("true", "false"))

    assert [line["loss"] for line in tried] == [line["loss"] for line in untried]
    assert [path.name for path in (tmp_path / "true" / "checkpoints").iterdir()] == ["step-00000004"]


def test_sigterm_ends_a_run_behind_its_step_and_the_handler_with_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, real = tiny("steps=6", "checkpoint.every=0"), loop._make
    made, before = assembly.assemble(recipe), signal.getsignal(signal.SIGTERM)

    def asked(coming: Any, *rest: Any) -> None:
        if coming.number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        real(coming, *rest)

    monkeypatch.setattr(loop, "_make", asked)
    with RunFolder(recipe) as folder:
        result = loop.train(made, folder)

    assert result["stopped"] == 3
    assert [path.name for path in checkpoint.found(folder.path)] == ["step-00000003"]
    assert not (folder.path / "trained.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) == before


SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "4011",
    "SLURM_JOB_NODELIST": "gpu[003-006,9],login1",
}


def test_srun_s_variables_become_torchrun_s() -> None:
    environ = dict(SRUN)

    assert launch.place(environ) == (5, 8, 1)
    assert {key: environ[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("gpu003", "24011")


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"} | SRUN, (2, 4, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 1, 0)),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, (0, 1, 0)),
    ],
    ids=["nobody", "torchrun-in-a-job", "one-task", "a-step-of-one-task"],
)
def test_a_place_is_torchrun_s_or_srun_s_or_alone(environ: dict[str, str], place: tuple[int, int, int]) -> None:
    assert launch.place(dict(environ)) == place


@pytest.mark.parametrize(
    ("nodes", "host"), [("node7", "node7"), ("a,b", "a"), ("n[01-03],m1", "n01"), ("rack[2,4]node[10-12]", "rack2node10")]
)
def test_the_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert launch.first_host(nodes) == host


KNOWN = {"stage", "offload_optimizer", "reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"}


def test_auto_is_filled_from_the_recipe(tiny: Tiny) -> None:
    zero = dict.fromkeys(sorted(KNOWN - {"stage", "offload_optimizer"}), "auto") | {"stage": 3}
    table, notes = ds_config.fitted(
        {"zero_optimization": zero, "gradient_clipping": "auto", "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}},
        tiny("precision.dtype=bf16", "optimizer.max_grad_norm=0.5"),
        100,
        KNOWN,
    )

    assert notes == []
    assert table["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 10_000,
        "stage3_prefetch_bucket_size": 9_000,
        "stage3_param_persistence_threshold": 1_000,
    }
    assert table["gradient_clipping"] == 0.5
    assert (table["bf16"], table["fp16"]) == ({"enabled": True}, {"enabled": False})
    assert (table["train_micro_batch_size_per_gpu"], table["gradient_accumulation_steps"]) == (1, 1)


@pytest.mark.parametrize(
    ("stated", "note"),
    [
        ({"gradient_cliping": 1}, "gradient_cliping: without effect; DeepSpeed knows no such key (did you mean gradient_clipping?)"),
        ({"offload_optimizer": {}}, "offload_optimizer: without effect where it stands; DeepSpeed looks for it in zero_optimization"),
        (
            {"zero_optimization": {"stage": 2, "gradient_clipping": 1}},
            "zero_optimization.gradient_clipping: without effect where it stands; DeepSpeed looks for it outside",
        ),
        ({"train_batch_size": 256}, "train_batch_size: without effect; the sources' batch_size says it"),
        ({"gradient_clipping": 0.3}, "gradient_clipping: 0.3 is in force, not the recipe's optimizer.max_grad_norm 1.0"),
        ({"fp16": {"enabled": True}}, "fp16.enabled: true is in force, not the recipe's precision.dtype fp32"),
    ],
)
def test_what_has_no_effect_or_is_not_the_recipe_s_costs_a_line(tiny: Tiny, stated: dict[str, Any], note: str) -> None:
    assert ds_config.fitted({"zero_optimization": {"stage": 2}} | stated, tiny(), 8, KNOWN).notes == [note]


def test_a_configuration_is_json_or_yaml_or_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("zero_optimization:\n  stage: 2\n  reduce_bucket_size: 5e8\n")
    (tmp_path / "a.json").write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}}')
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")

    expected = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 500_000_000}}
    assert ds_config.read(str(tmp_path / "a.yaml")) == ds_config.read(str(tmp_path / "a.json")) == ds_config.read(expected) == expected
    assert ds_config.read(None) == {"zero_optimization": {"stage": 2}}
    for name, found in (
        ("gone.json", "No such file"),
        ("bad.json", "expected JSON or YAML"),
        ("list.json", "expected a table, found list"),
    ):
        with pytest.raises(RequestError, match=found):
            ds_config.read(str(tmp_path / name))


def test_float16_and_bfloat16_at_once_are_refused(tiny: Tiny) -> None:
    with pytest.raises(RequestError, match="expected bf16 or fp16, found both enabled"):
        ds_config.fitted({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, tiny(), 8, KNOWN)


def test_ranks_are_needed_for_an_engine_of_ranks(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(RequestError, match=r"engine\.kind fsdp: expected to be started by torchrun, deepspeed or srun"),
        start.started(tiny("engine.kind=fsdp")),
    ):
        pass
