"""Real runs of real ranks, stopped hard and gone on with: the same records, the same loss, whatever the number of ranks and workers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.forked import Ended, Ranks
from trainer.recipe import Recipe, as_toml
from trainer.run import stop

Tiny = Callable[..., Recipe]
Train = Callable[..., list[Ended]]
STEPS = 12


@pytest.fixture(scope="module")
def ranks(root: Path) -> Iterator[Ranks]:
    with Ranks(root) as started:
        yield started


@pytest.fixture
def train(ranks: Ranks, tiny: Tiny, tmp_path: Path, colours: str, sums: str) -> Train:
    """train(out, "a.b=c", ..., ranks=1, killed=None, words=()): two sources, 12 steps, a checkpoint every 2."""
    base = [f"steps={STEPS}", "checkpoint.every=2", "log.tensorboard=false", "engine.timeout=30"]
    batches = ["sources.colours.batch_size=7", "sources.sums.batch_size=4", "sources.sums.loss_multiplier=0.5"]
    path = tmp_path / "two.toml"
    path.write_text(as_toml(tiny(*base, *batches, sources=[f"colours={colours}", f"sums={sums}"])))

    def run(out: Path, *settings: str, words: tuple[str, ...] = (), **how: object) -> list[Ended]:
        given = [word for setting in settings for word in ("--set", setting)]
        return ranks.run("train", str(path), "--out", str(out), *given, *words, **how)  # type: ignore[arg-type]

    return run


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def column(out: Path, name: str) -> list:
    return [line[name] for line in lines(out)]


def statuses(ended: list[Ended]) -> list[int]:
    return [rank.status for rank in ended]


def test_a_run_killed_twice_and_gone_on_with_at_other_ranks_and_workers_is_the_run(train: Train, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert statuses(train(whole, "loader.workers=0")) == [0]

    first = train(killed, "loader.workers=0", killed=(0, 5, "before"))
    second = train(killed, "loader.workers=2", ranks=2, killed=(1, 9, "before"))
    third = train(killed, "loader.workers=4", ranks=3)

    assert statuses(first) == [-9]
    assert statuses(second) == [1, -9]
    assert "error: rank 0: expected the other ranks' part, found that one has ended or hangs" in second[0].stderr
    assert statuses(third) == [0, 0, 0], third[0].stderr
    assert "goes on behind step 4" in second[0].stderr
    assert "goes on behind step 8" in third[0].stderr
    assert column(killed, "step") == list(range(STEPS))
    assert column(killed, "records") == column(whole, "records")
    assert column(killed, "loss") == pytest.approx(column(whole, "loss"), rel=2e-5)
    assert column(killed, "grad_norm") == pytest.approx(column(whole, "grad_norm"), rel=1e-4)


def test_under_a_mean_of_means_micro_batches_stay_unless_asked_and_other_ranks_are_told(train: Train, tmp_path: Path) -> None:
    settings = ("loss_norm=rank_mean", "sources.colours.micro_batch_size=4")
    train(tmp_path / "run", *settings, killed=(0, 5, "before"))

    [refused] = train(tmp_path / "run", *settings, "sources.colours.micro_batch_size=2")
    [asked] = train(tmp_path / "run", *settings, "sources.colours.micro_batch_size=2", words=("--resume",), killed=(0, 7, "asked"))
    both = train(tmp_path / "run", *settings, "sources.colours.micro_batch_size=2", ranks=2)

    assert refused.status == 2
    assert "found another sources.colours.micro_batch_size: was 4, is 2 (--resume goes on with what changed)" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert asked.status == stop.STATUS, asked.stderr
    assert "loss_norm" not in asked.stderr
    assert statuses(both) == [0, 0], both[0].stderr
    assert both[0].stderr.count("loss_norm rank_mean: a mean over 2 ranks is another than over 1") == 1


def test_ranks_that_srun_starts_are_the_ranks_of_torchrun(train: Train, tmp_path: Path) -> None:
    torchrun, srun = tmp_path / "torchrun", tmp_path / "srun"

    ended = [train(torchrun, "steps=3", ranks=2), train(srun, "steps=3", ranks=2, srun=True)]

    assert [statuses(ranks) for ranks in ended] == [[0, 0], [0, 0]], ended[1][0].stderr
    assert column(srun, "loss") == column(torchrun, "loss")
    assert (srun / "trained.safetensors").read_bytes() == (torchrun / "trained.safetensors").read_bytes()


def test_ranks_without_the_recipe_s_gpus_say_so_in_a_line(train: Train, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there are GPUs here")

    for count in (1, 2):
        ended = train(tmp_path / "run", "device=cuda", ranks=count)

        assert statuses(ended) == [2] * count
        for rank in ended:
            [line] = [line for line in rank.stderr.splitlines() if line.startswith("error")]
            assert line.startswith("error: device cuda: expected a device of this machine, found ")
            assert line.endswith("--set device=cpu runs without")
            assert "Traceback" not in rank.stderr
    assert not (tmp_path / "run").exists()


def test_at_the_same_number_of_ranks_it_is_the_run_to_the_last_bit(train: Train, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole)

    train(killed, killed=(0, 7, "before"))
    train(killed, "loader.workers=0")

    assert column(killed, "loss") == column(whole, "loss")
    assert (killed / "trained.safetensors").read_bytes() == (whole / "trained.safetensors").read_bytes()


def test_killed_while_it_saves_it_goes_on_from_the_checkpoint_before(train: Train, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole)

    assert statuses(train(killed, killed=(0, 7, "saving"))) == [-9]
    left = sorted(path.name for path in (killed / "checkpoints").iterdir())
    again = train(killed)

    assert left == [".step-00000008.part", "step-00000004", "step-00000006"]
    assert "goes on behind step 6" in again[0].stderr
    assert (killed / "trained.safetensors").read_bytes() == (whole / "trained.safetensors").read_bytes()
    assert sorted(path.name for path in (killed / "checkpoints").iterdir()) == ["step-00000010", "step-00000012"]


def test_killed_before_its_first_checkpoint_it_begins_again(train: Train, tmp_path: Path) -> None:
    assert statuses(train(tmp_path / "run", killed=(0, 1, "before"))) == [-9]

    assert statuses(train(tmp_path / "run")) == [0]
    assert column(tmp_path / "run", "step") == list(range(STEPS))


def test_a_run_that_is_done_is_not_gone_on_with_unless_it_gets_more_steps(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "run")

    [again] = train(tmp_path / "run")
    [more] = train(tmp_path / "run", "steps=14", words=("--resume",))

    assert again.status == 2
    assert "found a run whose 12 steps are done (--resume --set steps=N goes on with it)" in again.stderr
    assert more.status == 0
    assert "steps: was 12, is 14" in more.stderr
    assert column(tmp_path / "run", "step") == list(range(14))


def test_a_changed_recipe_is_refused_unless_it_is_asked_for(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "run", killed=(0, 5, "before"))

    [refused] = train(tmp_path / "run", "optimizer.lr=0.5")
    [asked] = train(tmp_path / "run", "optimizer.lr=0.002", words=("--resume",))

    assert refused.status == 2
    assert "found another optimizer.lr: was 0.01, is 0.5 (--resume goes on with what changed)" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert asked.status == 0
    assert "optimizer.lr: was 0.01, is 0.002" in asked.stderr


def test_resume_wants_a_checkpoint(train: Train, tmp_path: Path) -> None:
    [ended] = train(tmp_path / "run", words=("--resume",))

    assert ended.status == 2
    assert ended.stderr == f"error: --resume: expected a run with a checkpoint in {tmp_path}/run, found none\n"
    assert not (tmp_path / "run").exists()


def test_moved_data_is_gone_on_with_and_changed_data_is_refused(train: Train, tmp_path: Path, sums: str, colours: str) -> None:
    train(tmp_path / "run", killed=(0, 5, "before"))
    moved = shutil.copytree(sums, tmp_path / "moved")

    [refused] = train(tmp_path / "run", words=("--source", f"sums={colours}"))
    [going_on] = train(tmp_path / "run", words=("--source", f"sums={moved}"))

    assert refused.status == 2
    assert "source sums: expected the data that the run began with, fingerprint" in refused.stderr
    assert going_on.status == 0


def test_a_damaged_checkpoint_is_named(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "run", killed=(0, 5, "before"))
    weights = tmp_path / "run" / "checkpoints" / "step-00000004" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    [ended] = train(tmp_path / "run")

    assert ended.status == 1
    assert f"error: {weights}: checkpoint damaged: expected" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_two_runs_do_not_write_one_folder(train: Train, tmp_path: Path) -> None:
    import fcntl

    train(tmp_path / "run", killed=(0, 5, "before"))
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        [ended] = train(tmp_path / "run")

    assert ended.status == 2
    assert "expected a run that was stopped, found one that is going on" in ended.stderr


@pytest.mark.parametrize(
    "settings",
    [
        ("mixture.draw=one", "mixture.batch_size=6", "sources.colours.weight=3"),
        ("mixture.draw=one", "mixture.batch_size=6", "sources.colours.group=both", "sources.sums.group=both", "mixture.micro_batch_size=2"),
        ("mixture.draw=mixed", "mixture.batch_size=6", "mixture.group_steps=4", "mixture.micro_batch_size=2"),
        ("mixture.draw=mixed", "mixture.batch_size=5", "mixture.group_steps=1", "sources.colours.weight=2", "sources.sums.weight=1"),
        ("sources.colours.micro_batch_size=2", "sources.sums.micro_batch_size=1"),
    ],
    ids=["one", "one-group", "mixed-grouped", "mixed", "every-micro"],
)
def test_every_way_to_draw_gives_the_same_loss_on_two_ranks(train: Train, tmp_path: Path, settings: tuple[str, ...]) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"

    assert statuses(train(alone, "steps=6", *settings)) == [0]
    ended = train(both, "steps=6", *settings, ranks=2)

    assert statuses(ended) == [0, 0], ended[0].stderr
    assert column(both, "records") == column(alone, "records")
    assert column(both, "loss") == pytest.approx(column(alone, "loss"), rel=2e-5)
    assert column(both, "tokens_supervised") == column(alone, "tokens_supervised")


def test_more_ranks_than_records_train(train: Train, tmp_path: Path) -> None:
    few = ["steps=4", "sources.colours.batch_size=2", "sources.sums.batch_size=1"]

    train(tmp_path / "alone", *few)
    ended = train(tmp_path / "many", *few, ranks=4)

    assert statuses(ended) == [0] * 4, ended[0].stderr
    assert column(tmp_path / "many", "loss") == pytest.approx(column(tmp_path / "alone", "loss"), rel=2e-5)


def test_a_nan_ends_all_ranks_alike(train: Train, tmp_path: Path) -> None:
    ended = train(tmp_path / "run", "optimizer.lr=1e30", "optimizer.max_grad_norm=0", "steps=50", ranks=2)

    assert statuses(ended) == [1, 1]
    told = {next(line for line in rank.stderr.splitlines() if line.startswith("error")) for rank in ended}
    assert len(told) == 1
    assert told.pop().startswith(("error: loss: expected a finite number", "error: gradient: expected a finite norm"))


def test_a_dead_source_ends_every_rank_with_its_name(train: Train, tmp_path: Path, sums: str) -> None:
    dead = shutil.copytree(sums, tmp_path / "dead")
    for tar in dead.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))

    ended = train(tmp_path / "run", "bad_records.run=3", words=("--source", f"sums={dead}"), ranks=2)

    assert all(rank.status == 1 for rank in ended)
    assert any("error: sums 000000-" in rank.stderr and "expected fewer than 3 in a row" in rank.stderr for rank in ended)


def test_a_damaged_record_is_a_hole_on_whichever_rank(train: Train, tmp_path: Path, sums: str) -> None:
    hurt = shutil.copytree(sums, tmp_path / "hurt")
    [tar] = hurt.glob("*.tar")
    data = bytearray(tar.read_bytes())
    data[600] ^= 1  # in the first record's JSON
    tar.write_bytes(data)

    ended = train(tmp_path / "run", "steps=3", words=("--source", f"sums={hurt}"), ranks=2)

    assert statuses(ended) == [1, 0]  # rank 0 tells: it ran, and found problems
    assert "sums: 4 bad records skipped" in ended[0].stdout
    assert [line["bad_by_source"]["sums"] for line in lines(tmp_path / "run")] == [2, 1, 1]


@pytest.mark.slow
def test_under_torchrun_a_killed_rank_ends_the_others_and_the_run_goes_on(train: Train, tmp_path: Path, root: Path) -> None:
    train(tmp_path / "alone", "steps=4")
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), "3"]
    words = ["train", str(tmp_path / "two.toml"), "--out", str(tmp_path / "run"), "--set", "steps=4"]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    killed = subprocess.run([*command, *words], cwd=root, env=environment, capture_output=True, text=True, timeout=250)
    again = train(tmp_path / "run", "steps=4", ranks=2)

    assert killed.returncode == 1
    assert "Signal 9 (SIGKILL)" in killed.stderr
    assert statuses(again) == [0, 0]
    assert "goes on behind step 2" in again[0].stderr
    assert column(tmp_path / "run", "records") == column(tmp_path / "alone", "records")
    assert column(tmp_path / "run", "loss") == pytest.approx(column(tmp_path / "alone", "loss"), rel=2e-5)


DIES = """
import os, signal, sys
from trainer import __main__, loop

until, real = int(sys.argv[1]), loop._make

def make(step, *rest):
    if step.number == until and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    real(step, *rest)

loop._make = make
sys.exit(__main__.main(sys.argv[2:]))
"""
