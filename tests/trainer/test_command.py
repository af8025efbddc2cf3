from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import shards
from schemas.record import record, text_part, turn
from trainer import __main__ as command
from trainer.recipe import Recipe, as_toml


@pytest.fixture
def path(tiny: Callable[..., Recipe], tmp_path: Path) -> str:
    """A recipe file of the colours."""
    file = tmp_path / "colours.toml"
    file.write_text(as_toml(tiny("steps=2")))
    return str(file)


def test_train_tells_its_result_as_json(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = command.main(["train", path, "--out", str(tmp_path / "other"), "--blank", "2", "--json"])

    result = json.loads(capsys.readouterr().out)
    assert status == 0
    assert result["out"] == str(tmp_path / "other")
    assert result["steps"] == 2
    assert result["blank"]["records"] == 2


def test_tokens_gives_one_line_a_record(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = command.main(["tokens", path, "--records", "3", "--json"])

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == 0
    assert [line["key"] for line in lines] == ["000000-00000000", "000000-00000001", "000000-00000002"]
    for line in lines:
        assert set(line) >= {"source", "key", "input_ids", "labels", "images", "text"}
        assert line["source"] == "colours"
        assert line["input_ids"].count(-200) == 1
        assert line["images"] == [0]
        assert len(line["labels"]) == len(line["input_ids"])
        assert line["labels"][-1] == line["input_ids"][-1]
    assert lines[0]["text"].endswith("USER: <image>\nWhich colour? ASSISTANT: red</s>")


def test_tokens_marks_what_is_trained_for_a_reader(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["tokens", path, "--records", "1"]) == 0

    assert "Which colour? ASSISTANT:⟦ red</s>⟧" in capsys.readouterr().out


def test_tokens_needs_no_weights_and_no_torch(path: str, root: Path) -> None:
    code = f"import sys; from trainer.__main__ import main; s = main(['tokens', {path!r}, '--json']); sys.exit(s or 'torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False).returncode == 0


def test_a_record_the_template_refuses_is_told_and_the_others_are_shown(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [turn("user", [text_part("a")]), turn("assistant", [text_part("b")])]
    shards.write(tmp_path / "mixed", [(record("x", turns=turns), [], []) for turns in (good[:1] * 2, good)])

    status = command.main(["tokens", path, "--source", f"colours={tmp_path}/mixed", "--json"])

    out, err = capsys.readouterr()
    assert status == 1
    assert [json.loads(line)["key"] for line in out.splitlines()] == ["000000-00000001"]
    assert err == "colours 000000-00000000: template: expected user and assistant turns alternating, found user, user\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "nonesuch"], "error: recipe nonesuch: expected a file or one of"),
        (["train", "tiny-demo"], "error: sources: expected at least one, found none; give --source NAME=PLACE"),
        (["tokens", "PATH", "--set", "stepz=1"], "error: PATH: stepz: unknown key (did you mean steps?)"),
        (["tokens", "PATH", "--source", "colour=/x"], "error: --source colour: expected one of the recipe's sources, colours"),
        (["tokens", "PATH", "--source", "colours=/nowhere"], "error: /nowhere"),
        (["tokenizer", "--from", "/nowhere", "--out", "/x"], "error: /nowhere"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(path: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = command.main([argument.replace("PATH", path) for argument in arguments])

    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith(told.replace("PATH", path))
    assert err.count("\n") == 1


def test_a_source_with_nothing_to_train_on_is_told_with_its_record(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = [turn("user", [text_part("a")]), turn("assistant", [text_part("b")], train=False)]
    trains = [*silent[:1], turn("assistant", [text_part("b")])]
    shards.write(tmp_path / "silent", [(record("silent", turns=silent), [], [])] * 3)
    shards.write(tmp_path / "mostly", [(record("silent", turns=turns), [], []) for turns in (silent, silent, trains)])
    arguments = ["train", path, "--out", str(tmp_path / "other"), "--source", f"colours={tmp_path}/silent"]

    assert command.main(arguments) == 2
    expected = (
        "error: sources.colours: expected records with something to train on, found none in its first 3: 000000-00000000: nothing that"
    )
    assert capsys.readouterr().err.startswith(expected)
    assert not (tmp_path / "other").exists()
    assert command.main([*arguments[:-1], f"colours={tmp_path}/mostly"]) == 0


def test_tokenizer_learns_from_shards(colours: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tokenizer", "--from", colours, "--vocab", "300", "--out", str(tmp_path / "words"), "--json"]

    assert command.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["vocabulary"] <= 300
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: --out {tmp_path}/words: expected no tokenizer.json")


def test_an_interrupt_is_one_line_and_status_130(path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.recipe.load", interrupted)

    assert command.main(["tokens", path]) == 130
    assert capsys.readouterr().err == "error: interrupted: what is done is kept, the same command goes on\n"


@pytest.mark.parametrize("name", ["train", "tokens", "tokenizer", "generate", "evaluate", "export"])
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([name, "--help"])

    assert f"examples:\n  python -m trainer {'tokenizer' if name == 'train' else name}" in capsys.readouterr().out


def test_scaled_decoding_is_off_where_an_original_is_to_be_met(tiny: Callable[..., Recipe]) -> None:
    from trainer import assembly

    assert assembly.preprocess(tiny()).dct_scaling
    assert not assembly.preprocess(tiny("compat=llava")).dct_scaling
    assert not assembly.preprocess(tiny("loader.dct_scaling=false")).dct_scaling
