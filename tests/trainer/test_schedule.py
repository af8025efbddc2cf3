from __future__ import annotations

import pytest

from trainer.recipe import Schedule
from trainer.run.schedule import factor


def test_warmup_rises_from_nothing_and_the_cosine_falls_to_nothing() -> None:
    schedule = Schedule(warmup_steps=2)

    factors = [factor(step, 6, schedule) for step in range(7)]

    assert factors == pytest.approx([0.0, 0.5, 1.0, 0.8535533905932737, 0.5, 0.14644660940672624, 0.0])


def test_a_ratio_is_of_all_steps_and_rounded_up() -> None:
    schedule = Schedule(kind="constant", warmup_ratio=0.03)

    assert [factor(step, 101, schedule) for step in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_without_warmup_the_first_step_has_the_whole_rate() -> None:
    assert factor(0, 10, Schedule()) == 1.0
    assert factor(9, 10, Schedule(kind="constant")) == 1.0
