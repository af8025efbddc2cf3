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
