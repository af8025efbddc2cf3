"""The matrix is as good as its judge and its harm."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.bench.faults import Run, judged
from tests.bench.harm import cut_at_a_record, cut_inside_a_record, files, flip_header, flip_payload, middle
from tests.bench.peers import protocol
from tests.bench.readers import Done
from tests.bench.workload import Workload

WANTED = dict.fromkeys(["a 01", "b 02", "c 03"])
SMALL = Workload("test", 16, 16, 2.0, 24, 16 << 10)


def ended(code: int | None, served: str, errors: str = "") -> Run:
    return Run(Done(code, json.dumps({"error": "ShardError: x" if code else None}), errors), served.split(", ") if served else [])


@pytest.mark.parametrize(
    ("runs", "cell"),
    [
        ([ended(0, "a 01, c 03, b 02")], "unharmed"),
        ([ended(-9, "a 01"), ended(0, "b 02, c 03")], "unharmed"),
        ([ended(0, "a 01, b 02")], "**silent: 1 lost**"),
        ([ended(0, "a 01, b ff, c 03")], "**silent: 1 lost, 1 altered**"),
        ([ended(-9, "a 01"), ended(0, "a 01, b 02, c 03")], "**silent: 1 repeated**"),
        ([ended(0, "a 01, b 02", errors="skipped: c: crc32")], "noticed (named 1), 2 served"),
        ([ended(1, "a 01")], "noticed (ShardError), 1 served"),
        ([ended(1, "a ff")], "noticed (ShardError), 0 served, **1 altered**"),
        ([ended(None, "a 01, b 02, c 03")], "**hung**"),
    ],
)
def test_a_cell_says_what_was_lost_and_whether_anybody_noticed(runs: list[Run], cell: str) -> None:
    assert judged(runs, WANTED) == cell


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """24 small records in several shards."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return SMALL.folder()


def test_a_tar_cut_at_a_record_ends_before_it_as_tars_may(place: Path) -> None:
    whole = list(protocol.tar_records(files(place)[1]))
    cut_at_a_record(place)
    left = list(protocol.tar_records(files(place)[1]))
    assert 0 < len(left) < len(whole)
    assert left == whole[: len(left)]


def test_a_tar_cut_inside_a_record_has_half_of_it(place: Path) -> None:
    cut_inside_a_record(place)
    with tarfile.open(files(place)[1]) as tar:
        assert tar.getnames()[-1].endswith(".0.jpg")


def test_a_bit_of_a_header_ends_the_tar_for_a_reader_that_trusts_it(place: Path) -> None:
    whole = list(protocol.tar_records(files(place)[1]))
    flip_header(place)
    assert list(protocol.tar_records(files(place)[1])) == whole[: len(whole) // 2]


def test_a_bit_of_a_payload_changes_one_picture(place: Path) -> None:
    path = files(place)[1]
    whole, at = list(protocol.tar_records(path)), middle(path)
    flip_payload(place)
    changed = list(protocol.tar_records(path))
    assert at.begin < at.payload < at.inside
    assert [one != other for one, other in zip(whole, changed, strict=True)].count(True) == 1
