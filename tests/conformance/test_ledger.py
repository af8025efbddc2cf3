"""The ledger of the reference outputs, on a folder made here."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conformance import goldens


@pytest.fixture
def llava(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of LLaVA's: a README, two lines, two tables and one beside them, a picture, and a file for later."""
    monkeypatch.setattr(goldens, "ROOT", tmp_path)
    monkeypatch.setattr(goldens, "_compared", defaultdict(dict))
    folder = tmp_path / "llava"
    (folder / "images").mkdir(parents=True)
    (folder / "README.md").write_text("what every field means")
    (folder / "rows.jsonl").write_text('{"case_id": "a"}\n{"case_id": "b"}\n')
    (folder / "orders.json").write_text(json.dumps({"seed": 1, "cases": [{"order": [1]}, {"order": [2]}], "errors": [{"order": []}]}))
    (folder / "images" / "one.jpg").write_bytes(b"jpeg")
    (folder / "anyres_1.json").write_text("{}")
    return folder


def test_files_and_cases_that_nobody_compares_are_missing(llava: Path) -> None:
    assert goldens.missing("llava") == ["llava/images/one.jpg", "llava/orders.json", "llava/rows.jsonl"]

    goldens.compared(llava / "rows.jsonl", "a", goldens.DEFAULT)
    goldens.compared(llava / "orders.json", "cases")
    assert goldens.missing("llava") == ["llava/images/one.jpg", "llava/orders.json: errors/0", "llava/rows.jsonl: b"]

    goldens.compared(llava / "rows.jsonl", mode=goldens.COMPAT)
    goldens.compared(llava / "orders.json", "errors/0")
    goldens.compared(llava / "images" / "one.jpg")
    assert goldens.missing("llava") == []


def test_the_summary_counts_what_was_compared_in_which_mode(llava: Path) -> None:
    goldens.compared(llava / "rows.jsonl", "a", goldens.DEFAULT)
    goldens.compared(llava / "rows.jsonl", mode=goldens.COMPAT)

    assert list(goldens.summary()) == [
        "llava: 3 files, 6 cases, 1 in mode default, 2 in mode compat: 2 files or cases NOT compared",
        "llava/anyres_*: 1 files for later: tiled pictures, of LLaVA 1.6, are not built yet",
    ]


def test_tables_are_found_by_name(llava: Path) -> None:
    assert goldens.tables(llava / "orders.json", "cases/") == {"cases/0": {"order": [1]}, "cases/1": {"order": [2]}}
    assert list(goldens.tables(llava / "rows.jsonl")) == ["a", "b"]
    assert goldens.tables(llava / "nothing.json") == {}
