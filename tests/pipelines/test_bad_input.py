"""Every source and every kind of bad input, by the real commands: one clear line, exit status 2, or 1 where the run went through; what
was read is written or rejected, and nothing is left behind that keeps the mended input from being converted."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.__main__ import main
from tests.pipelines.upstreams import ITEMS, UPSTREAMS, made

LISTED = ("coco", "llava", "visual_genome")  # one JSON of all rows


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The line with which this command is refused, exit status 2."""
    status, out, err = told(capsys, *arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert "Traceback" not in err
    return err


def one_file(source: str, path: Path) -> Path:
    """The annotation file that is spoilt: of a folder, one of them."""
    return {"grand": path / "sa_1.json", "laion": path / "00000.parquet"}.get(source, path)


def converted(capsys: pytest.CaptureFixture[str], source: str, arguments: list[str], out: Path) -> tuple[int, dict[str, dict[str, int]]]:
    """Exit status, and the counts, which add up."""
    status, told_, _ = told(capsys, "convert", source, *arguments, "--out", out, "--workers", 1, "--json")
    found = json.loads(told_)
    assert found["totals"]["read"] == found["totals"]["written"] + found["totals"]["rejected"]
    assert found["totals"]["rejected"] == sum(found["rejected"].values())
    return status, found


@pytest.mark.parametrize("source", UPSTREAMS)
def test_a_whole_input_is_converted_without_a_word(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, arguments = made(source, tmp_path / source)

    status, found = converted(capsys, source, arguments, tmp_path / "out")

    assert (status, found["totals"]) == (0, {"read": ITEMS, "written": ITEMS, "rejected": 0, "images": ITEMS})
    assert told(capsys, "check", source, *arguments)[0] == 0


@pytest.mark.parametrize("source", UPSTREAMS)
def test_a_wrong_path_is_named(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, arguments = made(source, tmp_path / source)
    wrong = [argument.replace(str(path), f"{path}.gone") for argument in arguments]

    for verb, more in (("check", []), ("convert", ["--out", str(tmp_path / "out")])):
        assert f"{path}.gone" in refused(capsys, verb, source, *wrong, *more)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", UPSTREAMS)
@pytest.mark.parametrize("source", UPSTREAMS)
def test_another_sources_file_is_refused(source: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if source == other:
        return
    path, arguments = made(source, tmp_path / source)
    theirs, _ = made(other, tmp_path / other)

    line = refused(capsys, "convert", source, *[a.replace(str(path), str(theirs)) for a in arguments], "--out", tmp_path / "out")

    assert str(theirs) in line
    assert "expected" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", UPSTREAMS)
def test_a_file_cut_in_the_middle_is_said(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, arguments = made(source, tmp_path / source)
    file = one_file(source, path)
    whole = file.read_bytes()
    cut = len(whole) * 2 // 3 + 5
    file.write_bytes(whole[:cut])

    if source in (*LISTED, "laion"):
        line = refused(capsys, "convert", source, *arguments, "--out", tmp_path / "out")
        assert str(file) in line
        assert source == "laion" or re.search(r" line 1, byte \d+: ", line)
        assert not (tmp_path / "out").exists()
    else:  # a line, or a file of many: it alone is lost
        status, found = converted(capsys, source, arguments, tmp_path / "out")
        assert (status, found["totals"]["written"], found["rejected"]) == (1, ITEMS - 1, {"json": 1})


@pytest.mark.parametrize("source", [*LISTED, "mmc4", "grand"])
def test_a_trailing_comma_costs_no_more_than_its_row(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, arguments = made(source, tmp_path / source)
    file = one_file(source, path)
    whole = file.read_text()
    if source in LISTED:
        file.write_text(re.sub(r"\](\}?)$", r",]\1", whole))  # behind the last row
        expected = (0, {})
    else:
        first, *rest = whole.splitlines(keepends=True)
        file.write_text("".join([*rest, re.sub(r"\}(\n?)$", r",}\1", first)]))
        expected = (1, {"json": 1})

    status, found = converted(capsys, source, arguments, tmp_path / "out")

    assert (status, found["rejected"]) == expected


FIELDS = {
    "coco": ("file_name", "caption"),
    "grand": ("objects", "dense_caption"),
    "llava": ("image", "conversations"),
    "mmc4": ("text_list", "image_info"),
    "visual_genome": ("regions",),
}


@pytest.mark.parametrize(("source", "field"), [(source, field) for source, fields in FIELDS.items() for field in fields])
def test_a_field_of_an_unknown_type_and_one_that_stands_twice_are_counted(
    source: str, field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, arguments = made(source, tmp_path / source)
    file = one_file(source, path)
    whole = file.read_text()
    value = re.search(rf'"{field}": ', whole)
    assert value is not None
    before, behind = whole[: value.end()], whole[value.end() :]
    first, end = json.JSONDecoder().raw_decode(behind)
    odd = f"{before}[[0.5]]{behind[end:]}"
    twice = f'{before}{json.dumps(first)}, "{field}": {behind}'
    for text, reason in ((odd, "schema"), (twice, "repeated_field")):
        file.write_text(text)
        out = tmp_path / reason
        status, found = converted(capsys, source, arguments, out)
        counted = [reasons for name, reasons in found.items() if name == "rejected" or name.endswith("_dropped")]
        assert {reason: 1} in counted, found
        assert status == (1 if found["rejected"] else 0)


@pytest.mark.parametrize("source", UPSTREAMS)
def test_nothing_at_all_is_refused(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, arguments = made(source, tmp_path / source)
    file = one_file(source, path)
    for empty in (b"", b"[]", b'{"images": []}', b"{}"):
        for one in path.glob("*.json") if source == "grand" else [file]:
            one.write_bytes(empty)
        status, _, err = told(capsys, "convert", source, *arguments, "--out", tmp_path / f"out{len(empty)}")
        assert status in (1, 2)
        assert len(err.splitlines()) == 1
        assert "expected" in err or "no record was written" in err


@pytest.mark.parametrize("source", UPSTREAMS)
def test_an_output_that_holds_another_run_is_left_alone_and_mended_input_goes_elsewhere(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, arguments = made(source, tmp_path / source)
    assert converted(capsys, source, arguments, tmp_path / "out")[0] == 0
    before = (tmp_path / "out/manifest.json").read_bytes()

    line = refused(capsys, "convert", source, *arguments, "--out", tmp_path / "out", "--limit", 1)

    assert "another options" in line
    assert (tmp_path / "out/manifest.json").read_bytes() == before


@pytest.mark.parametrize("command", [["pipelines", "list"], ["shards", "check", "nowhere"]], ids=" ".join)
def test_ctrl_c_while_a_command_is_still_importing_is_one_line(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin"},
    ) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == "importing\n"
            run.send_signal(signal.SIGINT)
            _, err = run.communicate(timeout=30)
        finally:
            run.kill()
    assert (run.returncode, err) == (130, "error: interrupted\n")


def test_ctrl_c_is_left_to_programs_that_only_import_us() -> None:
    says = "import signal, pipelines, shards; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", says], capture_output=True, text=True, timeout=60).stdout == "True\n"
