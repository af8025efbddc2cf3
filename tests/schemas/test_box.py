from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.box import BoxRefused, fit, from_xywh


def test_xywh_is_corner_and_extent() -> None:
    assert from_xywh([10, 20, 5, 2.5]) == [10, 20, 15, 22.5]


def test_a_box_inside_is_kept_as_floats() -> None:
    box, clipped = fit([0, 0, 4, 2], 4, 2)

    assert (box, clipped) == ([0.0, 0.0, 4.0, 2.0], False)
    assert all(type(value) is float for value in box)


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ([-0.9, 0, 3, 2], [0, 0, 3, 2]),
        ([0, -0.5, 3, 2], [0, 0, 3, 2]),
        ([1, 0, 4.99, 2], [1, 0, 4, 2]),
        ([1, 0, 4, 2.5], [1, 0, 4, 2]),
    ],
)
def test_less_than_a_pixel_outside_is_clipped(box: list[float], inside: list[float]) -> None:
    assert fit(box, 4, 2) == (inside, True)


@pytest.mark.parametrize("box", [[-1, 0, 3, 2], [0, -1, 3, 2], [1, 0, 5, 2], [1, 0, 4, 3], [0, 0, 1e30, 2], [100, 100, 101, 101]])
def test_a_pixel_or_more_outside_is_refused(box: list[float]) -> None:
    with pytest.raises(BoxRefused) as caught:
        fit(box, 4, 2)

    assert caught.value.reason == "box_outside"


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(position: int, value: float) -> None:
    box: list[float] = [0, 0, 4, 2]
    box[position] = value

    with pytest.raises(BoxRefused) as caught:
        fit(box, 4, 2)

    assert caught.value.reason == "box_not_finite"


@pytest.mark.parametrize("box", [[1, 1, 1, 2], [1, 1, 2, 1], [3, 0, 1, 2], [4.2, 0, 4.8, 2], [-0.5, 0, -0.1, 2], [0, 2, 1, 2.5]])
def test_a_box_without_area_inside_is_refused(box: list[float]) -> None:
    with pytest.raises(BoxRefused) as caught:
        fit(box, 4, 2)

    assert caught.value.reason == "box_empty"


@given(st.lists(st.floats(-3, 12), min_size=4, max_size=4), st.integers(1, 10), st.integers(1, 10))
def test_what_is_kept_has_an_area_inside_of_the_image(box: list[float], width: int, height: int) -> None:
    try:
        x0, y0, x1, y1 = fit(box, width, height)[0]
    except BoxRefused:
        return

    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert all(abs(new - old) < 1 for new, old in zip((x0, y0, x1, y1), box, strict=True))
