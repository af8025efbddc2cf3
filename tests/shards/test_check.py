from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shards
from schemas import RequestError
from shards.__main__ import main
from shards.check import check
from tests.shards.damage import MEMBER, edited, reindexed
from tests.shards.records import several


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "shards", *map(str, arguments)], capture_output=True, text=True)


def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "place"))


def test_a_sound_place_is_sound(written: Path) -> None:
    for deep in (False, True):
        assert check(written, deep=deep) == (True, 7, 8, [])


def test_the_command_says_so_as_text_and_as_json(written: Path) -> None:
    done = command("check", written, "--deep")
    assert (done.returncode, done.stdout) == (0, "sound: 7 records, 8 pictures, every one decoded\n")

    done = command("check", written, "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"ok": True, "records": 7, "images": 8, "problems": []})


def test_what_is_found_is_listed_as_json(written: Path, tmp_path: Path) -> None:
    place = copy(written, tmp_path)
    flip(place / "000000-000.tar", 700, 1)

    done = command("check", place, "--deep", "--json")

    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert (found["ok"], found["records"], found["images"]) == (False, 7, 8)
    assert {frozenset(problem) for problem in found["problems"]} == {frozenset({"shard", "key", "what", "expected", "found"})}
    assert [(problem["shard"], problem["key"], problem["what"]) for problem in found["problems"]] == [
        ("000000-000.tar", None, "sha256"),
        ("000000-000.tar", "000000-00000000", "record altered"),
    ]


def flip(path: Path, position: int, bits: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ bits]))


FILES = ["000000-000.tar", "000000-001.tar", "000000-000.parquet", "000000-001.parquet", "rejects.parquet", "manifest.json"]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_byte_flipped_anywhere_is_found_and_named(written: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    place = tmp_path_factory.getbasetemp() / "flipped"
    if not place.exists():
        shutil.copytree(written, place)
    name = data.draw(st.sampled_from(FILES))
    position = data.draw(st.integers(0, (written / name).stat().st_size - 1))
    bits = data.draw(st.integers(1, 255))
    flip(place / name, position, bits)
    try:
        report = check(place, deep=True)
    finally:
        flip(place / name, position, bits)

    assert not report.ok
    assert name in {problem.shard for problem in report.problems}
    if name.endswith(".tar"):
        hit = [sample.key for sample in shards.open(written).shards[FILES.index(name)] if position in at(written, name, sample.key)]
        assert set(hit) <= {problem.key for problem in report.problems}
        assert len(hit) == (position < (written / name).stat().st_size - 1024)


def at(place: Path, name: str, key: str) -> range:
    """The bytes of a record, by the index as pyarrow reads it."""
    rows = pq.read_table((place / name).with_suffix(".parquet"), columns=["key", "offset", "length"]).to_pylist()
    return next(range(row["offset"], row["offset"] + row["length"]) for row in rows if row["key"] == key)


def grown(place: Path) -> None:
    with (place / "000000-000.tar").open("ab") as file:
        file.write(bytes(512))


def stranger(place: Path) -> None:
    shutil.copy(place / "000000-000.tar", place / "000009-000.tar")


def swapped(place: Path) -> None:
    for suffix in ("tar", "parquet"):
        (place / f"000000-000.{suffix}").rename(place / "x")
        (place / f"000000-001.{suffix}").rename(place / f"000000-000.{suffix}")
        (place / "x").rename(place / f"000000-001.{suffix}")


DAMAGE: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda place: os.truncate(place / "000000-001.tar", 2048), "000000-001.tar", "size"),
    (lambda place: os.truncate(place / "000000-001.tar", 0), "000000-001.tar", "size"),
    (lambda place: (place / "000000-001.tar").unlink(), "000000-001.tar", "missing"),
    (lambda place: (place / "000000-000.parquet").unlink(), "000000-000.parquet", "index unreadable"),
    (lambda place: os.truncate(place / "000000-000.parquet", 100), "000000-000.parquet", "index altered"),
    (lambda place: (place / "rejects.parquet").unlink(), "rejects.parquet", "rejects missing"),
    (lambda place: os.truncate(place / "manifest.json", 500), "manifest.json", "manifest altered"),
    (grown, "000000-000.tar", "size"),
    (stranger, "000009-000.tar", "stranger"),
    (swapped, "000000-000.tar", "sha256"),
]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("damage", "shard", "what"), DAMAGE, ids=[f"{what} {shard}" for _, shard, what in DAMAGE])
def test_each_damage_is_a_problem_that_names_its_file(
    written: Path, tmp_path: Path, damage: Callable[[Path], object], shard: str, what: str, deep: bool
) -> None:
    place = copy(written, tmp_path)
    damage(place)

    report = check(place, deep=deep)

    assert not report.ok
    assert (shard, what) in {(problem.shard, problem.what) for problem in report.problems}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"offset": -1}, "index offsets"),
        ({"length": 2**63 - 1}, "index offsets"),
        ({"offset": 512}, "record begins"),
        ({"members": [{**MEMBER, "offset": -10}]}, "index offsets"),
        ({"key": None}, "index columns"),
        ({"key": "000001-00000000"}, "keys of another unit"),
        ({"key": "000000-00000009"}, "keys"),
        ({"crc32": 0}, "record altered"),
        ({"images": []}, "images in the index"),
        ({"members": [{**MEMBER, "size": 0}]}, "record unreadable"),
    ],
    ids=str,
)
def test_an_index_that_hashes_right_and_is_wrong_is_found(written: Path, tmp_path: Path, change: dict[str, Any], what: str) -> None:
    place = copy(written, tmp_path)
    reindexed(place, change)

    report = check(place, deep=True)

    assert what in {problem.what for problem in report.problems}


def test_a_key_that_stands_in_two_shards_is_found(written: Path, tmp_path: Path) -> None:
    place = copy(written, tmp_path)
    for suffix in ("tar", "parquet"):
        shutil.copy(place / f"000000-000.{suffix}", place / f"000000-001.{suffix}")
    edited(place, lambda found: found["shards"].__setitem__(1, {**found["shards"][0], "name": "000000-001.tar"}))

    report = check(place, deep=True)

    assert ("000000-001.tar", "000000-00000000", "keys") in {(problem.shard, problem.key, problem.what) for problem in report.problems}


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("totals", "read"), 10, "read = written + rejected"),
        (("totals", "images"), 9, "images of all shards"),
        (("totals", "written"), 8, "records of all shards"),
        (("rejected", "language"), 2, "rejected by reason"),
        (("fingerprint",), "0" * 64, "fingerprint"),
        (("rejects", "rows"), 3, "rejects rows"),
    ],
)
def test_sums_that_do_not_add_up_are_found_though_every_hash_is_right(
    written: Path, tmp_path: Path, path: tuple[str, ...], value: object, what: str
) -> None:
    place = copy(written, tmp_path)

    def change(found: dict[str, Any]) -> None:
        for step in path[:-1]:
            found = found[step]
        found[path[-1]] = value

    edited(place, change)

    assert what in {problem.what for problem in check(place).problems}


def test_a_picture_that_was_stored_broken_is_found_by_deep_alone(tmp_path: Path) -> None:
    good, bad = several(2)
    data = bytearray(bad.files[0])
    data[2:4] = b"\xff\xd9"  # an end of image right after its start: a header reader may pass it, a decoder can not
    shards.write(tmp_path, [good, bad._replace(files=[bytes(data)])])

    assert check(tmp_path).ok
    report = check(tmp_path, deep=True)
    assert [(problem.key, problem.what) for problem in report.problems] == [("000000-00000001", "image 0")]


def test_no_data_set_is_a_wrong_request(tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        check(tmp_path / "nowhere")

    done = command("check", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "manifest.json" in done.stderr


@pytest.mark.parametrize("name", ["check", "show", "stats"])
def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])

    assert caught.value.code == 0
    assert f"python -m shards {name} " in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.parametrize("arguments", [[], ["chek", "x"], ["check"], ["check", "x", "--depp"], ["show", "x", "--at", "one"]])
def test_a_wrong_command_line_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    told = capsys.readouterr()
    assert (caught.value.code, told.out) == (2, "")
    assert len(told.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--at", "6"], 0), (["--at", "-1"], 0), (["--at", "7"], 2), (["--key", "000000-00000005"], 0), (["--key", "nobody"], 2), ([], 0)],
)
def test_show_finds_a_record_or_says_that_there_is_none(
    written: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int
) -> None:
    assert main(["show", str(written), *arguments]) == status

    told = capsys.readouterr()
    assert bool(told.out) == (status == 0)
    assert len(told.err.splitlines()) == (status == 2)


def test_stats_count_by_hand(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(written), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["totals"] == {"read": 9, "written": 7, "rejected": 2, "images": 8}
    assert found["families"]["rejected"] == {"language": 1, "text_unicode": 1}
    assert found["sources"]["made"]["records"] == 7
    assert found["sources"]["made"]["images_per_record"] == {"1": 6, "2": 1}
    # One picture of everything() has the bytes of one of the others.
    assert found["repeated_pictures"]["pictures"] == 1
    assert found["repeated_pictures"]["distinct"] == 7
