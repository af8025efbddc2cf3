from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from tensorboard.backend.event_processing import event_accumulator

from schemas import RequestError
from trainer.log import RunFolder
from trainer.recipe import Recipe, as_toml
from trainer.run import boards, plot

Tiny = Callable[..., Recipe]


def test_a_line_s_numbers_have_one_name_each() -> None:
    line = {"step": 3, "loss": 1.5, "records": "00ff", "lr": None, "loss_by_source": {"a": 2.0, "b": math.nan}, "held_out": {"a": 1.0}}

    assert boards.numbers(line) == {"step": 3.0, "loss": 1.5, "loss_by_source/a": 2.0, "held_out/a": 1.0}


def test_a_run_s_losses_are_drawn(ran: Path) -> None:
    with Pillow.open(ran / "loss.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 600


def test_a_line_of_the_plot_is_a_source_s_loss(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1.0, "loss_by_source": {"a": 1 / (step + 1)}} for step in range(200)]
    lines[100]["held_out"] = {"a": 0.5, "b": None}
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 200, "lo')  # the last is being written

    read = list(plot._lines(log))

    curve = plot._curves((line.step, line.loss_by_source) for line in read)["a"]
    assert curve.tolist() == [[step, 1 / (step + 1)] for step in range(200)]
    assert plot._curves((line.step, line.held_out) for line in read)["a"].tolist() == [[100, 0.5]]
    np.testing.assert_allclose(plot._smoothed(curve)[:6, 1], [np.mean(curve[max(0, n - 3) : n + 1, 1]) for n in range(6)])
    plot.draw(log, tmp_path / "loss.svg")
    assert "a, held out: 0.500" in (tmp_path / "loss.svg").read_text() or "<path" in (tmp_path / "loss.svg").read_text()


def test_tensorboard_gets_every_tenth_step_the_last_and_what_was_held_out(tiny: Tiny) -> None:
    lines = [{"step": step, "loss": float(step), "loss_by_source": {"a": 1.0}} for step in range(25)]
    lines[13]["held_out"] = {"a": 0.5}

    with RunFolder(tiny("steps=25")) as folder:
        for line in lines:
            folder.step(line)

    board = event_accumulator.EventAccumulator(str(folder.path)).Reload()
    assert [(point.step, point.value) for point in board.Scalars("loss")] == [(0, 0), (10, 10), (13, 13), (20, 20), (24, 24)]
    assert [(point.step, point.value) for point in board.Scalars("held_out/a")] == [(13, 0.5)]
    assert (folder.path / "log.jsonl").read_text().count("\n") == 25


def test_a_run_that_has_not_begun_has_nothing_to_draw(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("")

    plot.draw(tmp_path / "log.jsonl", tmp_path / "loss.png")

    assert not (tmp_path / "loss.png").exists()


def test_a_recipe_that_wants_wandb_is_told_where_it_is_missing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(RequestError, match=r"log.wandb: expected wandb, found it not installed: pip install 'shardweave\[wandb\]'"):
        RunFolder(tiny("log.wandb=true"))


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_writes_offline_and_is_told_no_secret(tiny: Tiny, tmp_path: Path, root: Path) -> None:
    path = tmp_path / "wandb.toml"
    path.write_text(as_toml(tiny("steps=3", "log.wandb=true", "log.project=ours", "log.tensorboard=false")))
    secret = "never-to-be-written-down"
    environment = {**os.environ, "WANDB_MODE": "offline", "AWS_SECRET_ACCESS_KEY": secret, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    arguments = ["-m", "trainer", "train", str(path), "--endpoint", "http://127.0.0.1:1", "--json"]

    done = subprocess.run([sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=240)

    assert done.returncode == 0, done.stderr
    written = [file for file in (tmp_path / "run" / "wandb").rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in written)
    kept = b"".join(file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert secret.encode() not in kept
    assert b"loss_by_source/colours" in kept
