"""Real ranks under every engine: one curve, stopped and gone on with at will, and nobody waits for a rank without pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import shards
from schemas.record import record, text_part, turn
from tests.trainer.forked import Ended, Ranks
from trainer.recipe import Recipe, as_toml
from trainer.run import stop

Tiny = Callable[..., Recipe]
Train = Callable[..., list[Ended]]
STEPS = 30
ENGINES = {
    "ddp": ("engine.kind=ddp",),
    "fsdp": ("engine.kind=fsdp",),
    "zero1": ("engine.deepspeed.zero_optimization.stage=1",),
    "zero2": ("engine.deepspeed.zero_optimization.stage=2",),
    "zero3": ("engine.deepspeed.zero_optimization.stage=3",),
}
FLAMINGO = (
    'vision.config={model_type="open_clip", width=32, head_width=16, layers=2, patch_size=8, image_size=16}',
    'tokenizer.add=["<|endofchunk|>", "<image>", "<PAD>"]',
    "vision.select_layer=-1",
    "model.family=flamingo",
    "template=flamingo",
    "freeze.language=true",
    "flamingo.depth=1",
    "flamingo.latents=3",
    "flamingo.heads=2",
    "flamingo.head_width=8",
)


@pytest.fixture(scope="module")
def ranks(root: Path) -> Iterator[Ranks]:
    with Ranks(root, "trainer.engines.fsdp", "trainer.engines.deepspeed", "tests.trainer.halves") as started:
        yield started


@pytest.fixture
def train(ranks: Ranks, tiny: Tiny, tmp_path: Path, colours: str, sums: str) -> Train:
    """train(out, "a.b=c", ..., ranks=1, killed=None, words=()): pictures and text, 30 steps; a rank holds 4 records at once."""
    batches = ["sources.colours.batch_size=7", "sources.sums.batch_size=4", "sources.sums.loss_multiplier=0.5"]
    micro = ["sources.colours.micro_batch_size=4", "sources.sums.micro_batch_size=2"]
    base = [f"steps={STEPS}", "log.tensorboard=false", "engine.timeout=30", "optimizer.weight_decay=0.1", "schedule.warmup_steps=3"]
    path = tmp_path / "two.toml"
    path.write_text(as_toml(tiny(*base, *batches, *micro, sources=[f"colours={colours}", f"sums={sums}"])))

    def run(out: Path, *settings: str, words: Sequence[str] = (), **how: Any) -> list[Ended]:
        given = [word for setting in settings for word in ("--set", setting)]
        return ranks.run("train", str(path), "--out", str(out), *given, *words, **how)

    return run


def column(out: Path, name: str) -> list:
    return [json.loads(line)[name] for line in (out / "log.jsonl").read_text().splitlines()]


def statuses(ended: list[Ended]) -> list[int]:
    return [rank.status for rank in ended]


def told(ended: list[Ended]) -> str:
    return "\n".join(rank.stderr[-3000:] for rank in ended)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of one rank, by name, made when they are first asked for."""
    return {}


@pytest.fixture
def baseline(train: Train, alone: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one rank that accumulates."""
    if "llava" not in alone:
        out = tmp_path_factory.mktemp("alone") / "run"
        ended = train(out, "loader.workers=0")
        assert statuses(ended) == [0], told(ended)
        alone["llava"] = out
    return alone["llava"]


@pytest.mark.parametrize("name", ENGINES)
def test_two_ranks_stopped_in_the_middle_and_gone_on_with_have_the_curve_of_one(
    train: Train, baseline: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "run"

    first = train(out, *ENGINES[name], ranks=2, killed=(1, 14, "asked"))
    saved = shared_out(out / "checkpoints" / "step-00000015")
    second = train(out, *ENGINES[name], ranks=2)

    assert statuses(first) == [stop.STATUS] * 2, told(first)
    assert statuses(second) == [0, 0], told(second)
    assert "goes on behind step 15" in second[0].stderr
    assert column(out, "records") == column(baseline, "records")
    assert column(out, "loss") == pytest.approx(column(baseline, "loss"), rel=1e-4)
    assert column(out, "grad_norm") == pytest.approx(column(baseline, "grad_norm"), rel=1e-3)
    whole, made = (safetensors.torch.load_file(run / "trained.safetensors") for run in (baseline, out))
    assert {key: tensor.shape for key, tensor in made.items()} == {key: tensor.shape for key, tensor in whole.items()}
    assert sorted(saved) == sorted([*whole, *(f"{key}:{own}" for key in whole for own in ("step", "exp_avg", "exp_avg_sq"))])


def shared_out(checkpoint: Path) -> list[str]:
    """The names of the tensors in its files, of which each of two ranks wrote about half."""
    names = []
    for stem in ("weights", "optimizer"):
        halves = [safetensors.torch.load_file(checkpoint / f"{stem}-{part}-of-00002.safetensors") for part in ("00001", "00002")]
        first, second = (sum(tensor.nbytes for tensor in half.values()) for half in halves)
        assert first == pytest.approx(second, rel=0.1)
        names += [name for half in halves for name in half]
    return names


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero2"])
def test_a_rank_that_is_killed_while_it_saves_leaves_no_checkpoint_of_that_name(train: Train, tmp_path: Path, name: str) -> None:
    settings = (*ENGINES[name], "steps=4", "checkpoint.every=2")

    killed = train(tmp_path / "run", *settings, ranks=2, killed=(1, 3, "saving"))
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    again = train(tmp_path / "run", *settings, ranks=2)

    assert statuses(killed) == [1, -9], told(killed)
    assert "expected the other ranks' part, found that one has ended" in killed[0].stderr
    assert left == [".step-00000004.part", "step-00000002"]
    assert statuses(again) == [0, 0], told(again)
    assert "goes on behind step 2" in again[0].stderr


def test_a_damaged_file_of_one_rank_is_named(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "run", *ENGINES["fsdp"], ranks=2, killed=(0, 1, "asked"))
    half = tmp_path / "run" / "checkpoints" / "step-00000002" / "optimizer-00002-of-00002.safetensors"
    half.write_bytes(half.read_bytes()[:-1])

    cut = train(tmp_path / "run")
    half.unlink()
    missing = train(tmp_path / "run")

    assert statuses(cut) == statuses(missing) == [1]
    assert f"error: {half}: checkpoint damaged: expected" in cut[0].stderr
    assert f"error: {half}: checkpoint damaged: expected" in missing[0].stderr
    assert "found no such file" in missing[0].stderr


def test_a_run_goes_from_engine_to_engine_and_stays_the_run(train: Train, baseline: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    order = ["fsdp", "zero2", "zero3", "ddp", "zero1"]

    for number, name in enumerate(order):
        ended = train(out, *ENGINES[name], ranks=2, killed=(0, 5 * number + 4, "asked"))
        assert statuses(ended) == [stop.STATUS] * 2, told(ended)
    last = train(out)

    assert statuses(last) == [0], told(last)
    assert "goes on behind step 25" in last[0].stderr
    assert column(out, "loss") == pytest.approx(column(baseline, "loss"), rel=1e-4)


@pytest.mark.parametrize("family", ["llava", "flamingo"])
@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero3"])
def test_a_rank_without_pictures_keeps_nobody_waiting(train: Train, tmp_path: Path, name: str, family: str) -> None:
    one_each = ["steps=3", "sources.colours.batch_size=1", "sources.sums.batch_size=1", "sources.sums.min_images=0"]
    settings = [*one_each, *(FLAMINGO if family == "flamingo" else ()), "engine.activation_checkpointing=true"]

    single = train(tmp_path / "single", *settings)
    both = train(tmp_path / "both", *settings, *ENGINES[name], ranks=2)

    assert statuses(single) == [0], told(single)
    assert statuses(both) == [0, 0], told(both)
    assert column(tmp_path / "both", "images") == [1, 1, 1]
    assert column(tmp_path / "both", "loss") == pytest.approx(column(tmp_path / "single", "loss"), rel=1e-4)
    assert column(tmp_path / "both", "grad_norm") == pytest.approx(column(tmp_path / "single", "grad_norm"), rel=1e-3)


@pytest.mark.parametrize("name", ENGINES)
def test_a_nan_ends_all_ranks_alike(train: Train, tmp_path: Path, name: str) -> None:
    ended = train(tmp_path / "run", *ENGINES[name], "optimizer.lr=1e30", "optimizer.max_grad_norm=0", "schedule.warmup_steps=0", ranks=2)

    assert statuses(ended) == [1, 1], told(ended)
    lines = {next(line for line in rank.stderr.splitlines() if line.startswith("error")) for rank in ended}
    assert len(lines) == 1
    assert lines.pop().startswith(("error: loss: expected a finite number", "error: gradient: expected a finite norm"))


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero3"])
def test_steps_with_nothing_to_train_on_are_skipped_by_all_ranks(train: Train, tmp_path: Path, name: str) -> None:
    spoken = [[turn("user", [text_part("a")]), turn("assistant", [text_part("b")], train=number == 3)] for number in range(4)]
    shards.write(tmp_path / "quiet", ((record("quiet", turns=turns), [], []) for turns in spoken))
    words = [word for source in ("colours", "sums") for word in ("--source", f"{source}={tmp_path / 'quiet'}")]
    one_each = ["steps=4", "sources.colours.batch_size=1", "sources.sums.batch_size=1"]

    single = train(tmp_path / "single", *one_each, words=words)
    both = train(tmp_path / "both", *ENGINES[name], *one_each, words=words, ranks=2)

    assert statuses(single) == [0], told(single)
    assert statuses(both) == [0, 0], told(both)
    assert column(tmp_path / "single", "updated").count(False) in (2, 3)
    assert column(tmp_path / "both", "updated") == column(tmp_path / "single", "updated")


SCALED = ("precision.dtype=fp16", "engine.deepspeed.fp16.initial_scale_power=24", "engine.deepspeed.fp16.hysteresis=3")


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero2", "zero3"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_in_16_bits_the_curve_is_about_that_of_32_and_what_is_saved_is_float32(
    train: Train, baseline: Path, tmp_path: Path, name: str, dtype: str
) -> None:
    out = tmp_path / "run"
    fitting = ("engine.deepspeed.fp16.initial_scale_power=8",) if (name, dtype) in (("zero2", "fp16"), ("zero3", "fp16")) else ()
    settings = (*ENGINES[name], f"precision.dtype={dtype}", *fitting)

    first = train(out, *settings, ranks=2, killed=(1, 4, "asked"))
    second = train(out, *settings, ranks=2, killed=(1, 9, "asked"))

    assert statuses(first) == statuses(second) == [stop.STATUS] * 2, told(first) + told(second)
    assert column(out, "loss") == pytest.approx(column(baseline, "loss")[:10], rel=0.05)
    assert column(out, "loss") != column(baseline, "loss")[:10]
    saved = out / "checkpoints" / "step-00000010"
    for file in saved.glob("*.safetensors"):
        assert {tensor.dtype for tensor in safetensors.torch.load_file(file).values()} == {torch.float32}
    assert (saved / "scale.json").is_file() == (dtype == "fp16")


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_deepspeed_s_loss_scale_goes_on_where_it_stood(train: Train, tmp_path: Path, name: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    train(whole, *ENGINES[name], *SCALED, ranks=2, killed=(0, 13, "asked"))
    for number in (1, 13):  # behind two of the three overflows that it takes to halve the scale
        ended = train(cut, *ENGINES[name], *SCALED, ranks=2, killed=(0, number, "asked"))
        assert statuses(ended) == [stop.STATUS] * 2, told(ended)

    updated = column(whole, "updated")
    assert updated[:3] == [False] * 3
    assert updated[-1]
    assert column(cut, "updated") == updated
    assert column(cut, "loss") == pytest.approx(column(whole, "loss"), rel=1e-3)
    scales = [json.loads((run / "checkpoints" / "step-00000014" / "scale.json").read_text()) for run in (whole, cut)]
    assert scales[0] == scales[1]
    assert scales[0]["value"] < 2.0**24


def test_deepspeed_at_its_smallest_scale_ends_all_ranks_alike(train: Train, tmp_path: Path) -> None:
    smallest = ("engine.deepspeed.fp16.min_loss_scale=1048576", "engine.deepspeed.fp16.initial_scale_power=20")

    ended = train(tmp_path / "run", *ENGINES["zero2"], "precision.dtype=fp16", *smallest, "engine.deepspeed.fp16.hysteresis=1", ranks=2)

    assert statuses(ended) == [1, 1], told(ended)
    assert all("error: gradient: expected a finite norm, found none at the smallest loss scale" in rank.stderr for rank in ended)


LLAVA_ZERO2 = {
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {
        "stage": 2,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
    },
}
ZERO3 = {
    "stage": 3,
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
}
LLAVA_ZERO3 = LLAVA_ZERO2 | {
    "zero_optimization": LLAVA_ZERO2["zero_optimization"] | ZERO3 | {"stage3_gather_16bit_weights_on_model_save": True}  # type: ignore[operator]
}
HOST = {"device": "cpu", "pin_memory": True}
LLAVA_ZERO3_OFFLOAD = LLAVA_ZERO3 | {
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": LLAVA_ZERO2["zero_optimization"]  # type: ignore[operator]
    | ZERO3
    | {"offload_optimizer": HOST, "offload_param": HOST, "gather_16bit_weights_on_model_save": True},
    "gradient_clipping": "auto",
    "steps_per_print": 1e5,
    "wall_clock_breakdown": False,
}
COGVLM2 = """
zero_optimization:
  stage: 2
  contiguous_gradients: true
  overlap_comm: true
  allgather_partitions: true
  reduce_scatter: true
  allgather_bucket_size: 5e8
  reduce_bucket_size: 5e8
offload_optimizer:
  device: cpu
  pin_memory: true
gradient_clipping: 1.0
train_micro_batch_size_per_gpu: 1
bf16:
  enabled: true
"""
FILES = {
    "zero2.json": (json.dumps(LLAVA_ZERO2), []),
    "zero3.json": (json.dumps(LLAVA_ZERO3), []),
    "zero3_offload.json": (
        json.dumps(LLAVA_ZERO3_OFFLOAD),
        [
            "optimizer: without effect; the recipe's [optimizer] says it",
            "scheduler: without effect; the recipe's [schedule] says it",
            "bf16.enabled: true is in force, not the recipe's precision.dtype fp32",
        ],
    ),
    "ds_config.yaml": (
        COGVLM2,
        [
            "offload_optimizer: without effect where it stands; DeepSpeed looks for it in zero_optimization",
            "train_micro_batch_size_per_gpu: without effect; the sources' micro_batch_size says it",
            "bf16.enabled: true is in force, not the recipe's precision.dtype fp32",
        ],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_configurations_of_others_run_as_they_are_and_what_has_no_effect_is_told(
    train: Train, baseline: Path, tmp_path: Path, name: str
) -> None:
    text, notes = FILES[name]
    (tmp_path / name).write_text(text)

    first = train(tmp_path / "run", f"engine.deepspeed={tmp_path / name}", ranks=2, killed=(0, 2, "asked"))
    second = train(tmp_path / "run", f"engine.deepspeed={tmp_path / name}", ranks=2, killed=(0, 4, "asked"))

    assert statuses(first) == statuses(second) == [stop.STATUS] * 2, told(first) + told(second)
    said = [line.partition("deepspeed: ")[2] for line in first[0].stderr.splitlines() if "deepspeed: " in line]
    assert said == notes
    assert "deepspeed: " not in first[1].stderr
    exact = 1e-4 if name in ("zero2.json", "zero3.json") else 0.03  # bfloat16
    assert column(tmp_path / "run", "loss") == pytest.approx(column(baseline, "loss")[:5], rel=exact)
