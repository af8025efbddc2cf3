"""Asking again, with a clock made of numbers."""

from __future__ import annotations

import pytest

from schemas import RequestError, StoreError
from shards import retry
from shards.retry import Passing, tried


class Clock:
    """Time that passes when somebody sleeps, and a second a try."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def failing(self, times: int) -> str:
        """What fails so many times."""
        self.now += 1
        if len(self.slept) < times:
            raise Passing("503 Slow Down")
        return "done"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.delenv("SHARDWEAVE_STORE_DEADLINE", raising=False)
    monkeypatch.setattr(retry, "time", clock)
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: high)  # the longest that jitter makes of it
    return clock


def test_what_succeeds_is_asked_once(clock: Clock) -> None:
    assert tried(lambda: clock.failing(0), "s3://b/x: read") == "done"
    assert clock.slept == []


def test_waits_double_up_to_ten_seconds(clock: Clock) -> None:
    assert tried(lambda: clock.failing(9), "s3://b/x: read") == "done"
    assert clock.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_the_last_try_ends_before_the_deadline(clock: Clock) -> None:
    with pytest.raises(StoreError, match=r"^s3://b/x: read: expected success within 120 s, found after 14 tries: 503 Slow Down$"):
        tried(lambda: clock.failing(1000), "s3://b/x: read")
    assert 75 < clock.now <= 120 - retry.REQUEST + 1


def test_a_wait_is_drawn_from_all_of_its_length(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: drawn.append((low, round(high, 1))) or 0.0)
    tried(lambda: clock.failing(3), "s3://b/x: read")
    assert drawn == [(0, 0.1), (0, 0.2), (0, 0.4)]


def test_what_will_not_get_better_is_not_asked_again(clock: Clock) -> None:
    def refused() -> None:
        raise StoreError("s3://b/x: read: the store said: 403 Forbidden")

    with pytest.raises(StoreError, match="403"):
        tried(refused, "s3://b/x: read")
    assert clock.slept == []


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_deadline_that_is_none_is_refused(clock: Clock, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SHARDWEAVE_STORE_DEADLINE", text)
    with pytest.raises(RequestError, match="SHARDWEAVE_STORE_DEADLINE: expected seconds above 0"):
        tried(lambda: clock.failing(1), "s3://b/x: read")
