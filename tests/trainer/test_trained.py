from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch

from schemas import RequestError, ShardError
from trainer.engines import tensor_files
from trainer.engines.tensor_files import Entry
from trainer.use import trained

LAST = "checkpoints/step-00000100"


@pytest.fixture
def copied(ran: Path, tmp_path: Path) -> Path:
    """The run, to be damaged."""
    return Path(shutil.copytree(ran, tmp_path / "copied"))


def same(run: trained.Trained, file: Path) -> bool:
    saved = safetensors.torch.load_file(file)
    return all(torch.equal(run.model.get_parameter(name), tensor) for name, tensor in saved.items())


def test_a_run_that_has_ended_gives_its_last_weights(ran: Path) -> None:
    run = trained.load(ran)

    assert same(run, ran / "trained.safetensors")
    assert not run.model.training
    assert (run.name, run.recipe.steps, run.preprocess.size) == ("colours", 100, 16)


def test_a_step_gives_its_checkpoint(ran: Path) -> None:
    run = trained.load(ran, 50)

    assert same(run, ran / "checkpoints/step-00000050/weights.safetensors")
    assert not same(run, ran / "trained.safetensors")
    assert run.name == "colours-step-00000050"


def test_a_run_that_is_going_on_gives_its_newest_checkpoint(copied: Path) -> None:
    (copied / "trained.safetensors").unlink()

    assert same(trained.load(copied), copied / LAST / "weights.safetensors")


def test_a_checkpoint_of_several_ranks_gives_all_of_it(copied: Path) -> None:
    folder = copied / LAST
    whole = safetensors.torch.load_file(folder / "weights.safetensors")
    (folder / "weights.safetensors").unlink()
    state = json.loads((folder / "state.json").read_text())
    del state["files"]["weights.safetensors"]
    (folder / "state.json").write_text(json.dumps(state))
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape), partial(whole.__getitem__, name)) for name, tensor in whole.items()]
    for rank in range(3):
        tensor_files.save(folder, "weights", entries, rank, 3)

    assert same(trained.load(copied, 100), copied / "trained.safetensors")


def test_what_is_not_there_is_told(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"expected a checkpoint of step 7, found step-00000050, step-00000100"):
        trained.load(copied, 7)
    with pytest.raises(RequestError, match=r"expected a run folder with recipe.toml, found none"):
        trained.load(tmp_path / "nowhere")
    (copied / "trained.safetensors").unlink()
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(RequestError, match=r"expected trained.safetensors or a checkpoint, found a run that has come to neither"):
        trained.load(copied)


def test_a_damaged_checkpoint_is_named(copied: Path) -> None:
    file = copied / LAST / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(ShardError, match=r"weights.safetensors: checkpoint damaged: expected \d+ bytes, found \d+ bytes"):
        trained.load(copied, 100)


def test_weights_of_another_model_are_told_with_the_part_and_both_shapes(copied: Path) -> None:
    with pytest.raises(RequestError, match=r"trained.safetensors: language\.\S+: expected shape \(\d+, 48\), found \(\d+, 32\)"):
        trained.load(copied, settings=["language.config.hidden_size=48"])
    with pytest.raises(RequestError, match=r"trained.safetensors: language\.\S*layers.1\S+: expected one of the model's \d+ parameters"):
        trained.load(copied, settings=["language.config.num_hidden_layers=1"])
    with pytest.raises(RequestError, match=r"trained.safetensors: expected language\.\S*layers.2\S+ and \d+ more, found none"):
        trained.load(copied, settings=["language.config.num_hidden_layers=3"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_device_that_is_not_there_is_told_before_weights_are_read(ran: Path) -> None:
    with pytest.raises(RequestError, match=r"device cuda: expected a device of this machine, found .*; --set device=cpu runs without"):
        trained.load(ran, settings=["device=cuda"])
