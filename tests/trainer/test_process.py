"""A loader in a process of its own gives the steps of one in this process, and ends when this one does, whatever ends it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shards.budget import BudgetError
from trainer import assembly, loop
from trainer.data import reading
from trainer.data.batch import MicroBatch
from trainer.data.loader import StalledError, Step
from trainer.data.process import LoaderProcess, Request
from trainer.recipe import Recipe, as_toml
from trainer.run import stop

Tiny = Callable[..., Recipe]
DEADLINE = 120.0


@pytest.fixture
def two(tiny: Tiny, colours: str, sums: str) -> Recipe:
    """A mixture with pictures and without, of 12 steps."""
    batches = ["sources.colours.batch_size=7", "sources.sums.batch_size=4"]
    return tiny("steps=12", "log.tensorboard=false", *batches, sources=[f"colours={colours}", f"sums={sums}"])


def request_of(made: assembly.Assembly, skip: int = 0) -> Request:
    position = made.mixture.start()
    for _ in range(skip):
        position = made.mixture.step(position).next
    examples = made.examples
    return Request(recipe=made.recipe, preprocess=examples.preprocess, fit=examples.fit, position=position, rank=0, ranks=1)


def told(step: Step[list[MicroBatch]]) -> list[object]:
    """All of a step but how long it took."""
    counts = {name: dataclasses.replace(count, seconds_waiting=0.0) for name, count in step.counts.items()}
    parts = [(micro.sources, micro.batch.pictures) for micro in step.made]
    return [step.number, step.position, step.digest, counts, parts]


def tensors(step: Step[list[MicroBatch]]) -> list[torch.Tensor | None]:
    return [getattr(micro.batch, name) for micro in step.made for name in ("ids_BT", "labels_BT", "mask_BT", "pixels_NCHW")]


def reader_of(process: int) -> list[int]:
    """The readers that this process has begun and that live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if f"process.serve({process},".encode() in words:
            found.append(int(folder.name))
    return found


def gone(process: int) -> bool:
    """Whether its readers end, within the time that everything gets."""
    until = time.monotonic() + DEADLINE
    while reader_of(process) and time.monotonic() < until:
        time.sleep(0.05)
    return not reader_of(process)


def test_its_steps_are_those_of_threads_from_wherever_it_begins(two: Recipe) -> None:
    made = assembly.assemble(two)
    request = request_of(made, skip=3)

    with LoaderProcess(request) as apart, reading.loader(loop.feed(made), two, request.position, 0, 1) as here:
        for theirs, mine in zip(apart, here, strict=True):
            assert told(theirs) == told(mine)
            for one, other in zip(tensors(theirs), tensors(mine), strict=True):
                assert (one is None) == (other is None)
                assert one is None or other is None or torch.equal(one, other)
        assert next(apart, "no more") == "no more"
    assert gone(os.getpid())


def test_a_run_stopped_and_gone_on_with_is_the_run_of_threads(two: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text(as_toml(two))

    def train(out: str, process: str, *words: str) -> subprocess.Popen[str]:
        settings = ["--set", f"loader.process={process}", "--set", "checkpoint.every=1", *words]
        command = [sys.executable, "-m", "trainer", "train", str(path), "--out", str(tmp_path / out), *settings]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    whole = train("whole", "false")
    parts = train("parts", "true", "--set", "steps=100000", "--set", "schedule.kind=constant")
    log = tmp_path / "parts" / "log.jsonl"
    try:
        until = time.monotonic() + DEADLINE
        while not (log.exists() and log.read_text().count("\n") > 3) and time.monotonic() < until and parts.poll() is None:
            time.sleep(0.05)
        os.killpg(parts.pid, signal.SIGTERM)  # to the reader, too
        assert parts.wait(DEADLINE) == stop.STATUS, parts.communicate()[1]
        assert gone(parts.pid)
        assert whole.wait(DEADLINE) == 0, whole.communicate()[1]
    finally:
        for run in (whole, parts):
            run.kill()
            run.communicate()

    mine, theirs = ([json.loads(line) for line in (tmp_path / out / "log.jsonl").read_text().splitlines()] for out in ("whole", "parts"))
    assert [line["records"] for line in theirs[:12]] == [line["records"] for line in mine[: len(theirs)]]
    assert len(list((tmp_path / "parts" / "checkpoints").glob("step-*"))) == 2


def test_a_reader_that_is_killed_ends_the_run_in_a_line(two: Recipe) -> None:
    with LoaderProcess(request_of(assembly.assemble(two))) as apart:
        next(apart)
        [reader] = reader_of(os.getpid())
        os.kill(reader, signal.SIGKILL)

        with pytest.raises(StalledError, match=r"found that the process which reads has died \(status -9\): killed, or out of memory"):
            list(apart)
        with pytest.raises(StalledError):
            next(apart)


def test_a_reader_does_not_outlive_a_trainer_that_is_killed(two: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text(as_toml(two))
    settings = ["--set", "loader.process=true", "--set", "steps=100000", "--set", "checkpoint.every=0"]
    command = [sys.executable, "-m", "trainer", "train", str(path), "--out", str(tmp_path / "out"), *settings]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as trainer:
        until = time.monotonic() + DEADLINE
        while not reader_of(trainer.pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert reader_of(trainer.pid)
        trainer.kill()

    assert gone(trainer.pid)


@pytest.fixture
def damaged(colours: str, tmp_path: Path) -> str:
    """The colours, with a digit of each picture changed."""
    place = tmp_path / "damaged"
    shutil.copytree(colours, place)
    for path in place.glob("*.tar"):
        data = bytearray(path.read_bytes())
        at = -1
        while (at := data.find(b"\x89PNG", at + 1)) >= 0:
            data[at + 40] ^= 1
        path.write_bytes(data)
    return str(place)


def test_bad_records_are_told_here_and_too_many_are_too_many(tiny: Tiny, damaged: str, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tiny("steps=12", "bad_records.run=3", sources=[f"colours={damaged}"])

    with caplog.at_level("INFO"), LoaderProcess(request_of(assembly.assemble(recipe))) as apart, pytest.raises(BudgetError) as found:
        list(apart)

    assert "3" in str(found.value)
    assert any("crc32" in record.getMessage().lower() for record in caplog.records), [record.getMessage() for record in caplog.records]


def test_an_error_that_nobody_expects_says_where_it_was_raised(two: Recipe) -> None:
    broken = dataclasses.replace(request_of(assembly.assemble(two)), fit=int)

    with LoaderProcess(broken) as apart, pytest.raises(TypeError) as found:  # type: ignore[arg-type]
        next(apart)

    assert "trainer/data/examples.py" in "".join(found.value.__notes__)
