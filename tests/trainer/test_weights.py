from __future__ import annotations

import base64
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from schemas import RequestError
from trainer.parts import language, tower
from trainer.recipe import LanguageModel, TokenizerChoice, VisionTower
from trainer.text import tokenizer
from trainer.weights import files


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_a_pickle_that_runs_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.bin").write_bytes(pickle.dumps({"weight": Evil()}))
    torch.save({"weight": Evil()}, tmp_path / "b.pt")

    for name in ("a.bin", "b.pt"):
        with pytest.raises(RequestError, match="expected weights, found a pickle of other things, which is never run"):
            files.read(tmp_path / name)
    assert "run" not in capsys.readouterr().out


def test_the_files_of_a_folder_are_one_table(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))

    assert set(files.read(tmp_path)) == {"a", "b"}
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(RequestError, match=r"expected model-2.safetensors, which model.safetensors.index.json lists"):
        files.read(tmp_path)


def test_a_training_checkpoint_of_openflamingo_is_its_model(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "model_state_dict": {"module.perceiver.latents": torch.ones(1)}}, tmp_path / "checkpoint_1.pt")

    assert set(files.read(tmp_path / "checkpoint_1.pt")) == {"perceiver.latents"}


@pytest.mark.parametrize("part", ["language", "vision"])
def test_code_that_comes_with_weights_is_never_run(tmp_path: Path, part: str) -> None:
    auto = {"AutoConfig": "configuration_other_gpt.OtherConfig", "AutoModelForCausalLM": "other_gpt.OtherGPT"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other_gpt", "auto_map": auto, "d_model": 2048}))
    (tmp_path / "configuration_other_gpt.py").write_text("raise SystemExit('run')")

    told = (
        f"{part}.weights {tmp_path}: expected a model that transformers knows, found other_gpt: code that comes with weights is never run"
    )
    with pytest.raises(RequestError, match=re.escape(told)):
        language.shape(LanguageModel(weights=str(tmp_path))) if part == "language" else tower.config(VisionTower(weights=str(tmp_path)))


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 3)
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 20)

    for tensors, told in (
        ({"weight": torch.zeros(3, 2)}, "f: expected bias and 0 more, found none"),
        ({"weight": torch.zeros(2, 2)}, r"f: weight: expected shape \(3, 2\), found \(2, 2\)"),
        ({"gamma": torch.zeros(2)}, "f: gamma: expected one of the model's 2 parameters"),
    ):
        with pytest.raises(RequestError, match=told):
            files.load(layer, tensors, "f")
    with pytest.raises(RequestError, match=r"broken.safetensors: expected weights, found"):
        files.read(tmp_path / "broken.safetensors")


def test_a_tiktoken_file_is_read_as_qwen_reads_it(tmp_path: Path) -> None:
    tokens = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell", b"hello", b" hello"]
    (tmp_path / "qwen.tiktoken").write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))

    made = tokenizer.load(TokenizerChoice(path=str(tmp_path)))

    assert made.encode("hello hello help", first=True)[0] == [259, 260, 32, 256, 108, 112]
    assert (made.eos, made.specials["<|im_start|>"], made.specials["<|extra_0|>"], made.bos) == (261, 262, 264, None)
    (tmp_path / "qwen.tiktoken").write_text("aGU= 0\n")
    with pytest.raises(RequestError, match="expected every byte, and ranks from 0 without a gap"):
        tokenizer.load(TokenizerChoice(path=str(tmp_path)))
