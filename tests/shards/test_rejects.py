"""The reject ledger and the commits that it is made from: neighbours that were refused alike take the room of one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ShardError
from shards import manifest, rejects
from shards.manifest import RejectRow, RejectRun, Unit

rows = st.lists(
    st.builds(
        lambda file, row, unit, index, reason, detail: RejectRow(file, row, f"{unit:06d}-{index:08d}", reason, detail),
        st.sampled_from(["a.json", "b.json"]),
        st.integers(0, 3),
        st.integers(0, 1),
        st.integers(0, 3),
        st.sampled_from(["split_train", "json"]),
        st.sampled_from(["", "expected"]),
    ),
    max_size=12,
)


@given(rows, st.integers(0, 12))
def test_runs_are_the_rows_again(found: list[RejectRow], times: int) -> None:
    found += [RejectRow("c.json", 9 + n, f"000007-{n:08d}", "split_train", "") for n in range(times)]

    runs = manifest.runs(found)

    assert [row for run in runs for row in run.rows()] == found
    assert sum(run.times for run in runs) == len(found)
    assert len(runs) <= len(found) - max(0, times - 1)


def test_neighbours_refused_alike_are_one_run() -> None:
    found = [RejectRow("a.json", n, f"000001-{n - 3:08d}", "split_train", "") for n in range(3, 1003)]
    found.append(RejectRow("a.json", 1003, "000001-00001000", "json", "expected"))

    assert manifest.runs(found) == [
        RejectRun("a.json", 3, "000001-00000000", "split_train", "", 1000),
        RejectRun("a.json", 1003, "000001-00001000", "json", "expected", 1),
    ]


def test_a_gap_in_file_row_or_key_ends_a_run() -> None:
    first = RejectRow("a.json", 0, "000000-00000000", "split_train", "")
    others = [
        RejectRow("b.json", 1, "000000-00000001", "split_train", ""),
        RejectRow("a.json", 2, "000000-00000001", "split_train", ""),
        RejectRow("a.json", 1, "000000-00000002", "split_train", ""),
        RejectRow("a.json", 1, "000001-00000001", "split_train", ""),
        RejectRow("a.json", 1, "elsewhere", "split_train", ""),
    ]

    assert all(len(manifest.runs([first, other])) == 2 for other in others)


def commit(*runs: object, read: int) -> bytes:
    return (
        f'{{"unit": 0, "run": "x", "read": {read}, "written": 0, "images": 0, "rejects": [{", ".join(map(str, runs))}], '
        '"dropped": {}, "shards": [], "suffixes": []}'
    ).encode()


def test_a_commit_of_single_rows_is_read_as_well() -> None:
    """As they were written before there were runs."""
    unit = manifest.decode_unit("_units/000000.json", commit('["a.json", 0, "000000-00000000", "json", ""]', read=1))

    assert unit.rejects == [RejectRow("a.json", 0, "000000-00000000", "json", "")]
    assert unit.refused() == 1


@pytest.mark.parametrize(
    ("run", "read"),
    [
        ('["a.json", 0, "000000-00000000", "json", "", 3]', 2),
        ('["a.json", 0, "000000-00000000", "json", "", 0]', 0),
        ('["a.json", 0, "000000-00000000", "json", "", -1]', 1),
        ('["a.json", 0, "elsewhere", "json", "", 2]', 2),
    ],
)
def test_a_run_that_does_not_add_up_is_a_damaged_commit(run: str, read: int) -> None:
    with pytest.raises(ShardError):
        manifest.decode_unit("_units/000000.json", commit(run, read=read))


def test_the_ledger_of_a_split_is_small_and_in_groups() -> None:
    run = RejectRun("rows.json", 0, "000000-00000000", "split_train", "", 3 * rejects.GROUP // 2)

    data = rejects.encode([run])

    table = rejects.decode(data)
    assert table.num_rows == run.times
    assert table["key"][run.times - 1].as_py() == f"000000-{run.times - 1:08d}"
    assert len(data) < 2 * run.times
    assert rejects.decode(rejects.encode(run.rows())) == table


def test_an_empty_ledger_has_its_columns() -> None:
    table = rejects.decode(rejects.encode([]))

    assert (table.num_rows, table.column_names) == (0, ["file", "row", "key", "reason", "detail"])


def test_units_hold_their_rejects_one_by_one() -> None:
    found = [RejectRow("a.json", n, f"000000-{n:08d}", "json", "") for n in range(5)]
    unit = Unit(0, "run", 5, 0, 0, manifest.runs(found), {}, [], [])

    assert (unit.rejects, unit.refused(), len(unit.runs)) == (found, 5, 1)
