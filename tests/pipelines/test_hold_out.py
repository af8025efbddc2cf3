"""Hold-out: a record's side is a function of its key alone, and the two sides are everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

import shards
from pipelines.__main__ import main
from pipelines.hold_out import side
from shards.check import check
from shards.manifest import committed

ROWS = 200
keys = st.builds("{:06d}-{:08d}".format, st.integers(0, 999_999), st.integers(0, 99_999_999))
rates = st.floats(0.001, 0.999)


def test_sides_of_known_keys() -> None:
    """XXH3-64 of the key, as a share of 2**64."""
    for key, share in KNOWN.items():
        assert abs(xxhash.xxh3_64_intdigest(key.encode()) / 2**64 - share) < 1e-6
        assert side(key, share + 1e-6) == "held-out"
        assert side(key, share - 1e-6) == "train"


KNOWN = {"000000-00000000": 0.4465127767, "000000-00000001": 0.3276880804, "000063-00000017": 0.9955018089}


@given(keys, rates, rates)
def test_what_is_held_out_at_one_rate_is_held_out_at_a_higher_one(key: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert side(key, low) == "train" or side(key, high) == "held-out"


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_share_that_is_held_out_is_about_the_rate(rate: float) -> None:
    """Within four standard deviations of 20,000 draws."""
    held = sum(side(f"{n // 100:06d}-{n % 100:08d}", rate) == "held-out" for n in range(20_000))
    assert abs(held - 20_000 * rate) < 4 * (20_000 * rate * (1 - rate)) ** 0.5


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """200 LLaVA rows of text, the seventh and the hundredth of which are no records."""
    rows: list[Any] = [{"id": n, "conversations": [{"from": "human", "value": f"What is {n}?"}]} for n in range(ROWS)]
    rows[7]["conversations"], rows[100]["conversations"] = [], "?"
    path = tmp_path_factory.mktemp("upstream") / "rows.json"
    path.write_text(json.dumps(rows))
    return ["llava", "--annotations", str(path)]


def converted(upstream: list[str], out: Path, *more: object) -> dict[str, Any]:
    given = ["convert", *upstream, "--out", str(out), "--max-reject-rate", "0.02", "--workers", "1", *map(str, more)]
    assert main(given) == 0
    assert check(out, deep=True).problems == []
    return json.loads((out / "manifest.json").read_bytes())


def written(out: Path) -> list[str]:
    return [sample.record.key for sample in shards.open(out)]


def texts(out: Path) -> set[str]:
    return {sample.record.turns[0].text() for sample in shards.open(out)}


def test_the_two_sides_have_nothing_in_common_and_are_everything(upstream: list[str], tmp_path: Path) -> None:
    whole = converted(upstream, tmp_path / "whole")
    train = converted(upstream, tmp_path / "train", "--hold-out", 0.25)
    held = converted(upstream, tmp_path / "held", "--hold-out", 0.25, "--split", "held-out", "--workers", 2)

    assert not texts(tmp_path / "train") & texts(tmp_path / "held")
    assert sorted(written(tmp_path / "train") + written(tmp_path / "held")) == written(tmp_path / "whole")
    assert all(side(key, 0.25) == "train" for key in written(tmp_path / "train"))
    assert 0.1 * ROWS < held["totals"]["written"] < 0.4 * ROWS
    assert (train["options"]["hold_out"], train["options"]["split"]) == (0.25, "train")
    assert (held["options"]["hold_out"], held["options"]["split"]) == (0.25, "held-out")
    assert not {"hold_out", "split"} & set(whole["options"])


def test_the_sides_manifests_add_up(upstream: list[str], tmp_path: Path) -> None:
    """Each side rejects by name what is bad of its own, and counts the other side whole, its bad rows included, as the other side."""
    train = converted(upstream, tmp_path / "train", "--hold-out", 0.25)
    held = converted(upstream, tmp_path / "held", "--hold-out", 0.25, "--split", "held-out")

    for found in (train, held):
        assert found["totals"]["read"] == ROWS == found["totals"]["written"] + found["totals"]["rejected"]
        assert found["totals"]["rejected"] == sum(found["rejected"].values())
    bad = [dict(found["rejected"]) for found in (train, held)]
    of_held, of_train = bad[0].pop("split_held_out"), bad[1].pop("split_train")
    assert of_held + of_train == ROWS
    assert of_held == held["totals"]["written"] + sum(bad[1].values())
    assert of_train == train["totals"]["written"] + sum(bad[0].values())
    assert {reason: sum(one.get(reason, 0) for one in bad) for reason in {*bad[0], *bad[1]}} == {"no_turns": 1, "schema": 1}


def test_every_row_of_the_other_side_stands_in_the_ledger(upstream: list[str], tmp_path: Path) -> None:
    converted(upstream, tmp_path / "held", "--hold-out", 0.05, "--split", "held-out")

    rejects = pq.read_table(tmp_path / "held/rejects.parquet").to_pylist()
    assert {(row["file"], row["row"]) for row in rejects} | {("rows.json", n) for n in rows_of(tmp_path / "held")} == {
        ("rows.json", n) for n in range(ROWS)
    }
    assert [row["key"] for row in rejects] == sorted(row["key"] for row in rejects)
    assert not set(written(tmp_path / "held")) & {row["key"] for row in rejects}
    units = committed(tmp_path / "held")
    assert sum(len(unit.runs) for unit in units.values()) < 2 * len(units)  # and takes little room in the commits


def rows_of(out: Path) -> list[int]:
    return [int(text.removeprefix("What is ").removesuffix("?")) for text in texts(out)]


def test_the_other_sides_pictures_are_not_asked_for(tmp_path: Path) -> None:
    """They are not there: on the side that does not have them nobody notices."""
    rows = [{"id": n, "image": f"{n}.jpg", "conversations": [{"from": "human", "value": "<image>?"}]} for n in range(64)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "images").mkdir()
    given = ["convert", "llava", "--annotations", str(tmp_path / "rows.json"), "--images", str(tmp_path / "images"), "--hold-out", "0.5"]

    assert main([*given, "--out", str(tmp_path / "out"), "--workers", "1"]) == 1
    found = json.loads((tmp_path / "out/manifest.json").read_bytes())["rejected"]
    assert found["image_missing"] + found["split_held_out"] == 64
    assert found["split_held_out"] == sum(side(f"{n:06d}-00000000", 0.5) == "held-out" for n in range(64))


def test_a_side_that_was_interrupted_goes_on_to_the_same_bytes(upstream: list[str], tmp_path: Path) -> None:
    converted(upstream, tmp_path / "whole", "--hold-out", 0.25, "--split", "held-out")
    converted(upstream, tmp_path / "cut", "--hold-out", 0.25, "--split", "held-out")
    (tmp_path / "cut/manifest.json").unlink()
    for unit in range(0, 50, 3):
        (tmp_path / f"cut/_units/{unit:06d}.json").unlink()

    converted(upstream, tmp_path / "cut", "--hold-out", 0.25, "--split", "held-out", "--workers", 2)

    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def files(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_one_side_is_not_gone_on_with_as_the_other(upstream: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted(upstream, tmp_path / "out", "--hold-out", 0.25)
    capsys.readouterr()

    assert main(["convert", *upstream, "--out", str(tmp_path / "out"), "--hold-out", "0.25", "--split", "held-out"]) == 2
    assert "expected split 'train' to go on, found 'held-out'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--hold-out", "0"], "--hold-out: expected a share above 0 and below 1, found 0.0"),
        (["--hold-out", "1"], "--hold-out: expected a share above 0 and below 1, found 1.0"),
        (["--hold-out", "-0.1"], "--hold-out: expected a share above 0 and below 1, found -0.1"),
        (["--hold-out", "nan"], "--hold-out: expected a share above 0 and below 1, found nan"),
        (["--hold-out", "a tenth"], "--hold-out: invalid float value: 'a tenth'"),
        (["--split", "held-out"], "--split held-out: expected --hold-out beside it, found none"),
        (["--hold-out", "0.1", "--split", "test"], "--split: invalid choice: 'test'"),
    ],
    ids=" ".join,
)
def test_a_split_that_can_not_be_is_one_line(
    upstream: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    try:
        status = main(["convert", *upstream, "--out", str(tmp_path / "out"), *flags])
    except SystemExit as error:
        status = int(str(error.code))
    out, err = capsys.readouterr()
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert says in err
    assert not (tmp_path / "out").exists()


def test_a_run_by_the_real_command(upstream: list[str], tmp_path: Path) -> None:
    given = [sys.executable, "-m", "pipelines", "convert", *upstream, "--out", str(tmp_path / "out")]
    flags = "--hold-out 0.01 --split held-out --workers 2"
    done = subprocess.run([*given, *flags.split()], capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.splitlines()[0]
        == f"read 200 = written {len(written(tmp_path / 'out'))} + rejected {200 - len(written(tmp_path / 'out'))}"
    )
    assert f"  rejected: split_train {200 - len(written(tmp_path / 'out'))}" in done.stdout.splitlines()


def test_what_is_on_a_side_does_not_depend_on_a_shuffle(upstream: list[str], tmp_path: Path) -> None:
    converted(upstream, tmp_path / "plain", "--hold-out", 0.25)
    converted(upstream, tmp_path / "mixed", "--hold-out", 0.25, "--shuffle", 7)

    assert texts(tmp_path / "mixed") == texts(tmp_path / "plain")
    assert [sample.record.turns[0].text() for sample in shards.open(tmp_path / "mixed")] != sorted(texts(tmp_path / "plain"))


def test_a_record_that_comes_twice_is_on_one_side_alone_where_duplicates_are_dropped(tmp_path: Path) -> None:
    rows = [{"id": n, "conversations": [{"from": "human", "value": f"What is {n % 50}?"}]} for n in range(ROWS)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    given = ["llava", "--annotations", str(tmp_path / "rows.json"), "--duplicates", "records", "--hold-out", "0.5"]

    train = converted(given, tmp_path / "train")
    held = converted(given, tmp_path / "held", "--split", "held-out")

    assert not texts(tmp_path / "train") & texts(tmp_path / "held")
    assert train["totals"]["written"] + held["totals"]["written"] == 50
    assert train["rejected"]["duplicate_record"] + held["rejected"]["duplicate_record"] == ROWS - 50
