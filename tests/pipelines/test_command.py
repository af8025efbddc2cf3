from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.discover import sources


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit status and the one line on stderr; nothing on stdout."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as error:
        status = int(str(error.code))
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return status, err


def test_the_six_sources_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(sources())
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(("wrong", "near"), [("lava", "llava"), ("visualgenome", "visual_genome"), ("mmc5", "mmc4")])
def test_an_unknown_source_names_its_neighbour(capsys: pytest.CaptureFixture[str], wrong: str, near: str) -> None:
    for verb in ("check", "convert"):
        status, line = told(capsys, verb, wrong)
        assert status == 2
        assert f"did you mean {near}?" in line


def test_a_helper_module_is_no_source(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("stores", "../llava", "__main__", ""):
        assert told(capsys, "check", name)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["chek"], "chek"),
        (["check"], "SOURCE"),
        (["convert", "llava", "--annotations", "x"], "--out"),
        (["convert", "llava", "--out", "x"], "--annotations"),
        (["convert", "llava", "--annotations", "x", "--out", "y", "--anotations", "z"], "--anotations"),
        (["convert", "llava", "--annotations", "x", "--out", "y", "--workers", "0"], "--workers"),
        (["convert", "llava", "--annotations", "x", "--out", "y", "--workers", "two"], "--workers"),
        (["convert", "llava", "--annotations", "x", "--out", "y", "--shard-bytes", "12"], "--shard-bytes"),
        (["convert", "llava", "--annotations", "x", "--out", "y", "--shard-bytes", "1GX"], "--shard-bytes"),
        (["convert", "llava", "--annotations", "x", "--out", "y", "--verify", "pixels"], "--verify"),
        (["convert", "llava", "--annotations", "x", "--out", "y", "--executor", "slurm"], "--executor"),
        (["convert", "llava", "--annotations", "x", "--out", "y", "--max-reject-rate", "nan"], "--max-reject-rate"),
        (["convert", "llava", "--annotations", "x", "--out", "y", "--max-reject-rate", "2"], "--max-reject-rate"),
        (["convert", "--out", "x", "llava"], "--annotations"),
        (["check", "--json", "llava"], "--annotations"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_one_line_that_names_it(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    status, line = told(capsys, *arguments)

    assert status == 2
    assert says in line


def test_options_may_stand_before_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.json").write_text('[{"id": 1, "conversations": [{"from": "human", "value": "?"}]}]')

    assert main(["check", "--json", "llava", "--annotations", str(tmp_path / "rows.json")]) == 0
    assert '"records": 1' in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["list", "check", "convert"])
def test_help_of_every_command_shows_an_example(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])

    assert caught.value.code == 0
    assert f"python -m pipelines {verb}" in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.parametrize("name", ["coco", "grand", "laion", "llava", "mmc4", "visual_genome"])
@pytest.mark.parametrize("verb", ["check", "convert"])
def test_help_of_every_source_shows_its_flags_and_an_example(capsys: pytest.CaptureFixture[str], verb: str, name: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, name, "--help"])

    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--images" in text or name == "laion"
    example = text.split("examples:")[1].split()
    assert example[:5] == ["python", "-m", "pipelines", verb, name]
    flags = [word for word in example if word.startswith("--")]
    assert flags, "an example that works has the required flags"
    assert all(flag in text.split("examples:")[0] for flag in flags)


def test_a_wrong_path_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, line = told(capsys, "convert", "llava", "--annotations", tmp_path / "gone.json", "--out", tmp_path / "out")
    assert status == 2
    assert "gone.json" in line

    (tmp_path / "rows.json").write_text('[{"id": 1, "image": "1.jpg", "conversations": [{"from": "human", "value": "?"}]}]')
    arguments = ["--annotations", tmp_path / "rows.json", "--images", tmp_path / "gone"]
    for verb, more in (("check", []), ("convert", ["--out", tmp_path / "out"])):
        status, line = told(capsys, verb, "llava", *arguments, *more)
        assert status == 2
        assert "gone: expected a directory" in line
    assert not (tmp_path / "out").exists()


def test_an_empty_list_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.json").write_text("[]")

    status, line = told(capsys, "convert", "llava", "--annotations", tmp_path / "rows.json", "--out", tmp_path / "out")

    assert status == 2
    assert "rows.json" in line


def test_no_permission_is_one_line(tmp_path: Path) -> None:
    powerless = ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else []  # root that may not pass over file modes
    if powerless and not shutil.which("setpriv"):
        pytest.skip("root passes over file modes, and there is no setpriv")
    (tmp_path / "rows.json").write_text('[{"id": 1, "conversations": [{"from": "human", "value": "?"}]}]')
    (tmp_path / "locked.json").touch(0o200)
    (tmp_path / "locked").mkdir(0o555)
    for rows, out in (("rows.json", "locked/out"), ("locked.json", "out")):
        arguments = [sys.executable, "-m", "pipelines", "convert", "llava", "--annotations", tmp_path / rows, "--out", tmp_path / out]
        done = subprocess.run([*powerless, *map(str, arguments)], capture_output=True, text=True)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
        assert "Permission denied" in done.stderr
        assert "locked" in done.stderr
