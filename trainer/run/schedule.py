"""The learning rate of a step, as a share of the recipe's lr."""

from __future__ import annotations

import math

from trainer.recipe import Schedule


def factor(step: int, steps: int, schedule: Schedule) -> float:
    """In force at optimizer step `step`, counted from 0: step 0 of a warmup uses 0, as transformers' schedules do."""
    warmup = warmup_steps(steps, schedule)
    if step < warmup:
        return step / warmup
    if schedule.kind == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule.kind == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def warmup_steps(steps: int, schedule: Schedule) -> int:
    """The steps that warm up: as many as stated, or the stated share of all, rounded up."""
    return schedule.warmup_steps or math.ceil(schedule.warmup_ratio * steps)
