"""The scratch folder of a worker that writes to object storage: its own, whoever else tidies up."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shards import scratch

STORE: Any = SimpleNamespace(folder=None)  # a place on object storage


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where scratch folders lie."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_gone_afterwards(temporary: Path) -> None:
    with scratch.scratch(STORE) as folder:
        (folder / "x.tar").write_bytes(b"x")
        with scratch.tidied(STORE):
            pass
        assert list(temporary.iterdir()) == [folder]
        assert (folder / "x.tar").exists()
    assert not list(temporary.iterdir())


def test_what_a_killed_worker_left_goes(temporary: Path) -> None:
    (temporary / "shardweave-scratch-left").mkdir()
    with scratch.scratch(STORE) as folder:
        assert list(temporary.iterdir()) == [folder]


def test_a_folder_that_was_just_made_is_nobody_s_leftover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker tidies up after the folder was made, before it is locked."""
    locked = scratch._locked

    def late(folder: Path) -> int | None:
        monkeypatch.setattr(scratch, "_locked", locked)
        scratch._remove_leftovers()
        return locked(folder)

    monkeypatch.setattr(scratch, "_locked", late)
    with scratch.scratch(STORE) as folder:
        (folder / "x.tar").write_bytes(b"x")
        scratch._remove_leftovers()
        assert (folder / "x.tar").exists()
