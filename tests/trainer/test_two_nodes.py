"""Two nodes: network namespaces with a cable between them, torchrun's rendezvous over the cable. They train as one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.trainer.forked import Ranks
from trainer.recipe import Recipe, as_toml

ADDRESSES = ("10.203.7.1", "10.203.7.2")
CABLE, PORT, DEADLINE = "cable", 29407, 120


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Names of two namespaces that reach each other and nobody else; skips where none can be made."""
    names = [f"shardweave-{os.getpid()}-{number}" for number in range(len(ADDRESSES))]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", CABLE)
            ip("-n", name, "link", "set", CABLE, "up")
            ip("-n", name, "link", "set", "lo", "up")
        ip("netns", "exec", names[0], "true")
        yield names
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}".strip())
    finally:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def recipe(tiny: Callable[..., Recipe], colours: str, sums: str, tmp_path: Path) -> str:
    """The path of a recipe of two sources, whose batches two ranks share unevenly."""
    base = ["steps=4", "log.tensorboard=false", "checkpoint.every=2", "engine.timeout=60"]
    batches = ["sources.colours.batch_size=7", "sources.sums.batch_size=4", "sources.sums.loss_multiplier=0.5"]
    path = tmp_path / "two.toml"
    path.write_text(as_toml(tiny(*base, *batches, sources=[f"colours={colours}", f"sums={sums}"])))
    return str(path)


def start(node: str, number: int, root: Path, log: Path, *words: str) -> subprocess.Popen:
    """torchrun on a node; the first one is where they meet."""
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}", "--rdzv-id", "two"]
    own = ["--rdzv-conf", f"is_host={number == 0}", "--local-addr", ADDRESSES[number], "--max-restarts", "0"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meeting, *own]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": CABLE}
    command = ["ip", "netns", "exec", node, *torchrun, "-m", "trainer", "train", *words]
    with log.open("w") as told:
        return subprocess.Popen(command, cwd=root, env=environment, stdout=told, stderr=subprocess.STDOUT, start_new_session=True)


def test_two_nodes_train_as_one(nodes: list[str], recipe: str, root: Path, tmp_path: Path) -> None:
    logs = [tmp_path / f"{node}.log" for node in nodes]
    running = [start(node, number, root, logs[number], recipe, "--out", str(tmp_path / "two")) for number, node in enumerate(nodes)]
    try:
        with Ranks(root) as ranks:
            together = ranks.run("train", recipe, "--out", str(tmp_path / "one"), ranks=2)
        statuses = [process.wait(DEADLINE) for process in running]
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    assert statuses == [0, 0], "\n".join(log.read_text() for log in logs)
    assert [rank.status for rank in together] == [0, 0], together[0].stderr
    one, two = ([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("one", "two"))
    for name in ("step", "records", "tokens_supervised", "images"):
        assert [line[name] for line in two] == [line[name] for line in one]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-6)
    weights, again = (safetensors.torch.load_file(tmp_path / name / "trained.safetensors") for name in ("one", "two"))
    for name, tensor in weights.items():
        torch.testing.assert_close(again[name], tensor, msg=name)
