"""How fast a data set was converted, from the times at which its units were committed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from shards import manifest
from shards.__main__ import main
from shards.manifest import ShardInfo
from shards.pace import Pace, pace, spoken, told
from shards.place import at

BEGAN = 1_700_000_000.0


@pytest.fixture
def paced(written: Path, tmp_path: Path):
    """paced(times): the pace of units of 100 records and 1,000 bytes each that were committed then."""

    def make(times: list[float]) -> Pace:
        folder = tmp_path / manifest.UNITS
        folder.mkdir()
        for unit, time in enumerate(times):
            (folder / f"{unit:06d}.json").touch()
            os.utime(folder / f"{unit:06d}.json", (BEGAN + time, BEGAN + time))
        (folder / "note.txt").touch()
        infos = [ShardInfo(f"{unit:06d}-{part:03d}.tar", 50, 0, 500, "", "") for unit in range(len(times)) for part in range(2)]
        return pace(at(tmp_path), msgspec.structs.replace(manifest.read(written), shards=infos))

    return make


def test_what_was_committed_counts_over_the_time_since_the_commit_before(paced) -> None:
    found = paced([0, 10, 20, 40])

    assert (found.units, found.seconds, found.pauses, found.problem) == (4, 40, [], None)
    assert found.mean == (7.5, 75)  # the first commit's records took nobody knows how long
    assert (found.step, found.records_per_second, found.bytes_per_second) == (20, [10, 5], [100, 50])


def test_an_interruption_is_left_out_and_said(paced) -> None:
    found = paced([0, 10, 20, 7220, 7230])

    assert (found.seconds, found.pauses, found.mean) == (30, [7200], (10, 100))
    assert list(found.records_per_second) == [10, 10, 10]
    assert told(found) == "converted at 10 records/s, 0.0001 MB/s over 30 s; 1 interruption, 2 h in all, left out"


def test_units_that_are_committed_together_count_together(paced) -> None:
    found = paced([0, 0.01, 0.02, 60, 60.01, 60.02])

    assert (found.seconds, list(found.records_per_second)) == (60, [5])


@pytest.mark.parametrize("times", [[5.0] * 4, [0, 0.3, 0.6], [1.0]])
def test_the_times_of_a_copy_are_told_and_not_drawn(paced, times: list[float]) -> None:
    found = paced(times)

    assert (found.mean, list(found.records_per_second), found.units) == (None, [], len(times))
    assert told(found).startswith("conversion rate unknown: all units were committed within a second")


def test_without_commits_there_is_no_pace(paced) -> None:
    assert told(paced([])) == "conversion rate unknown: there are no commits of units"


def test_stats_tell_it(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(written)]) == 0
    assert "conversion rate unknown" in capsys.readouterr().out
    assert main(["stats", str(written), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["conversion"]["units"] == 1


def test_times_are_spoken_plainly() -> None:
    said = {0.5: "0.5 s", 100: "100 s", 120: "2 min", 5400: "90 min", 7200: "2 h", 200_000: "2.31 days"}
    assert {seconds: spoken(seconds) for seconds in said} == said


def test_the_last_bin_is_what_is_left(paced) -> None:
    found = paced([0, 10, 20, 30, 33])

    assert (found.seconds, found.step) == (33, 10)
    assert [round(rate, 1) for rate in found.records_per_second] == [10, 10, 10, 33.3]
