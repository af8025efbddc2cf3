from __future__ import annotations

import logging
import pickle

import pytest

from schemas import RecordError, ShardError
from shards.budget import Budget, BudgetError

ALTERED = ShardError("000000-000.tar", "000000-00000007", "record altered", "crc32 00000001", "00000002")


def test_a_bad_record_is_logged_with_shard_and_key_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    budget = Budget(where="captions")

    with caplog.at_level(logging.WARNING):
        budget.good(9)
        budget.bad(ALTERED)
        budget.bad(RecordError("no_question", "turn 0: expected user, found text"), "000000-00000008")

    assert (budget.read, budget.skipped) == (11, 2)
    assert [entry.getMessage() for entry in caplog.records] == [
        "captions: skipped: 000000-000.tar 000000-00000007: record altered: expected crc32 00000001, found 00000002",
        "captions: skipped: 000000-00000008: no_question: turn 0: expected user, found text",
    ]


def test_a_run_of_failures_is_fatal() -> None:
    budget = Budget(run=3, where="captions")
    for _ in range(10):  # two in a row are put up with
        budget.bad(ALTERED)
        budget.bad(ALTERED)
        budget.good()
    budget.bad(ALTERED)
    budget.bad(ALTERED)

    with pytest.raises(BudgetError, match="captions 000000-00000007: bad records: expected fewer than 3 in a row, found 3, the last: 0000"):
        budget.bad(ALTERED)


def test_more_than_the_rate_among_the_last_records_is_fatal() -> None:
    budget = Budget(rate=0.02, last=100, where="captions")
    for _ in range(20):  # 2 of 100, for ever
        budget.good(49)
        budget.bad(ALTERED)

    budget.good(47)  # 3 of the last 100, counting back from the next
    with pytest.raises(BudgetError, match=r"bad records: expected at most 2 of 100 \(2.000%\), found 3 of 100, the last"):
        budget.bad(ALTERED)


def test_a_few_bad_records_at_the_start_are_no_rate_yet() -> None:
    budget = Budget(rate=0.01)

    for _ in range(31):
        budget.bad(ALTERED)


def test_a_rate_of_nothing_puts_up_with_nothing() -> None:
    with pytest.raises(BudgetError, match=r"at most 0 of 10,000 \(0.000%\), found 1 of 1"):
        Budget(rate=0).bad(ALTERED)


def test_the_error_travels_to_another_process() -> None:
    error = BudgetError("captions", None, "bad records", "few", "many")

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is BudgetError
    assert str(again) == str(error)


MISSING = ShardError("000000-001.tar", None, "shard missing", "20480 bytes", "no such file")
SIZES = {"000000-000.tar": 960, "000000-001.tar": 30, "000000-002.tar": 10}


def test_a_lost_shard_is_told_once_and_is_no_run_of_bad_records(caplog: pytest.LogCaptureFixture) -> None:
    budget = Budget(rate=0.03, run=2, last=100, where="captions", shards=SIZES)

    for _ in range(30):
        budget.bad(MISSING)
    budget.bad(ALTERED)

    assert (budget.read, budget.skipped, budget.lost) == (31, 31, {"000000-001.tar"})
    assert [entry.getMessage().split(": ")[1] for entry in caplog.records] == ["lost 30 records", "skipped"]


def test_lost_shards_are_fatal_when_they_hold_more_than_the_rate_of_the_source() -> None:
    budget = Budget(rate=0.03, where="captions", shards=SIZES)
    budget.bad(MISSING)

    for _ in range(2):  # whoever goes on all the same is told again
        with pytest.raises(BudgetError) as told:
            budget.bad(ShardError("000000-002.parquet", None, "index altered", "sha256 a", "b"))
        assert str(told.value) == (
            "captions: lost shards: expected at most 3.000% of 1,000 records, found 40 in 2, the last: "
            "000000-002.parquet: index altered: expected sha256 a, found b"
        )


def test_a_shard_of_another_source_is_a_bad_record_like_any_other() -> None:
    budget = Budget(run=2, shards=SIZES)
    other = ShardError("/data/9.tar", None, "tar damaged", "5 samples", "2")
    budget.bad(other)

    with pytest.raises(BudgetError, match="expected fewer than 2 in a row, found 2"):
        budget.bad(other)
