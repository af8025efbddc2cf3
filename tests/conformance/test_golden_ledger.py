"""Runs behind all tests over reference outputs: nothing that lies there was read by nobody."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance import goldens


@pytest.mark.parametrize("system", goldens.SYSTEMS)
def test_every_golden_is_compared(system: str, why_incomplete: Callable[[], str]) -> None:
    if not (goldens.ROOT / system).is_dir():
        pytest.skip(f"no reference outputs at {goldens.ROOT / system}")
    left = goldens.missing(system)
    if left and (why := why_incomplete()):
        pytest.skip(f"{len(left)} files or cases of {system} not compared: {why}")

    assert not left, f"no test compares these of {system}:\n" + "\n".join(left)
