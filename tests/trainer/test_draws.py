from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from schemas import Choice, Record, Turn
from trainer.draws import record_at, turns_at


def epoch(seed: int, source: str, number: int, records: int = 50) -> list[int]:
    return [record_at(seed, source, draw, records) for draw in range(number * records, (number + 1) * records)]


def test_an_epoch_serves_every_record_once() -> None:
    assert sorted(epoch(0, "a", 0)) == list(range(50))
    assert sorted(epoch(0, "a", 7)) == list(range(50))


def test_the_order_differs_by_epoch_seed_and_source_and_by_nothing_else() -> None:
    orders = [epoch(0, "a", 0), epoch(0, "a", 1), epoch(1, "a", 0), epoch(0, "b", 0)]

    assert len({tuple(order) for order in orders}) == 4
    assert epoch(0, "a", 0) == orders[0]


def test_the_order_is_the_same_on_every_machine() -> None:
    assert [record_at(3, "captions", draw, 5) for draw in range(10)] == [4, 0, 2, 1, 3, 3, 0, 1, 4, 2]


def test_turns_and_choices_are_as_likely_as_each_other(told: Callable[..., Record], said: Callable[..., Turn]) -> None:
    choices = [Choice([said("text", "b")]), Choice([said("text", "c")])]
    record = told(("text", "a"), choices=choices)

    served = Counter(turns_at(0, "x", draw, record)[0].text() for draw in range(3000))

    assert all(900 < served[text] < 1100 for text in "abc")
    assert turns_at(0, "x", 5, record) == turns_at(0, "x", 5, record)
