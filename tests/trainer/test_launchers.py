"""DeepSpeed's own launcher, as it is: it starts the ranks, and puts --local_rank in front of the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.recipe import Recipe, as_toml

pytestmark = pytest.mark.slow


def test_the_deepspeed_launcher_starts_the_ranks(tiny: Callable[..., Recipe], root: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "tiny.toml", tmp_path / "run"
    path.write_text(as_toml(tiny("steps=3", "sources.colours.batch_size=4", "log.tensorboard=false", "engine.timeout=60")))
    launcher = Path(sys.executable).with_name("deepspeed")
    options = ["--num_gpus", "2", "--master_port", str(20000 + os.getpid() % 10000), "--module", "trainer"]
    words = ["train", str(path), "--out", str(out), "--set", "engine.deepspeed.zero_optimization.stage=2", "--json"]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}

    ended = subprocess.run([str(launcher), *options, *words], cwd=root, env=environment, capture_output=True, text=True, timeout=200)

    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "--local_rank=1" in ended.stdout + ended.stderr
    assert [json.loads(line)["images"] for line in (out / "log.jsonl").read_text().splitlines()] == [4, 4, 4]
    assert (out / "trained.safetensors").is_file()
