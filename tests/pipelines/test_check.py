"""Counts of a small tree, made by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import main

FILES = ["coco/1.jpg", "coco/2.jpg", "ocr/7.png", "gqa/9.jpg", "ocr/unused.jpg", "unused.txt"]
ROWS: list[str | list[str] | None] = [
    "coco/1.jpg",
    "coco/1.jpg",  # again
    "./coco/2.jpg",  # another way to write it
    ["coco/1.jpg", "coco/2.jpg"],
    None,  # text
    "ocr/7.jpg",  # there as .png
    "vg/1.jpg",
    "vg/2.jpg",
    "./vg/2.jpg",  # the same missing one
    "top.jpg",
    "../outside.jpg",
    "gqa/9.jpg",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"x")
    said = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    rows = [{"id": n, "conversations": said, **({} if image is None else {"image": image})} for n, image in enumerate(ROWS)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def counted(tree: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, Any]:
    arguments = ["check", "llava", "--annotations", str(tree / "rows.json"), "--images", str(tree / "images"), "--json", *more]
    status = main(arguments)
    return status, json.loads(capsys.readouterr().out)


def test_every_count_by_hand(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = counted(tree, capsys)

    assert found["records"] == 12
    assert found["image_references"] == 12
    # there: coco/1, coco/2, gqa/9; ocr/7 as .png; nowhere: vg/1, vg/2, top, ../outside
    assert found["images"] == {"distinct": 8, "present": 3, "missing": 4, "other_suffix": 1}
    assert found["missing_by_folder"] == {"vg": 2, ".": 1, "..": 1}
    assert found["unreferenced_files"] == 2
    assert found["examples"] == {
        "missing": ["vg/1.jpg", "vg/2.jpg", "top.jpg", "../outside.jpg"],
        "other_suffix": ["ocr/7.jpg -> ocr/7.png"],
        "unreferenced": ["ocr/unused.jpg", "unused.txt"],
    }


def test_a_file_that_is_named_itself_and_is_another_names_twin_counts_for_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(b"x")
    rows = [{"id": n, "image": name, "conversations": [{"from": "human", "value": "?"}]} for n, name in enumerate(["1.jpg", "1.png"])]
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    _, found = counted(tmp_path, capsys)

    assert found["images"] == {"distinct": 2, "present": 1, "missing": 0, "other_suffix": 1}
    assert found["unreferenced_files"] == 0


@pytest.mark.parametrize(("allowed", "status"), [("0.05", 1), ("0.49", 1), ("0.5", 0), ("1", 0)])
def test_the_exit_status_is_1_over_the_allowance(tree: Path, capsys: pytest.CaptureFixture[str], allowed: str, status: int) -> None:
    assert counted(tree, capsys, "--max-reject-rate", allowed)[0] == status


def test_nothing_is_written(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tree.rglob("*"))

    counted(tree, capsys)

    assert sorted(tree.rglob("*")) == before


def test_people_read_the_same_counts(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "llava", "--annotations", str(tree / "rows.json"), "--images", str(tree / "images")])

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines[:6]] == [
        ["12", "records"],
        ["12", "image"],
        ["8", "distinct"],
        ["3", "present"],
        ["4", "missing"],
        ["1", "there"],
    ]
    assert lines[4][2:] == ["(vg", "2,", ".", "1,", "..", "1)"]


def test_a_file_name_that_is_no_utf8_is_escaped(tree: Path) -> None:
    with open(os.fsencode(tree / "images") + b"/\xff.jpg", "wb") as file:
        file.write(b"x")
    arguments = ["check", "llava", "--annotations", str(tree / "rows.json"), "--images", str(tree / "images"), "--max-reject-rate", "1"]

    for more in ([], ["--json"]):
        done = subprocess.run([sys.executable, "-m", "pipelines", *arguments, *more], capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\udcff.jpg" in done.stdout
