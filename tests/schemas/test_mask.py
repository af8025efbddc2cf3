"""pycocotools is the oracle; areas of a 3 x 3 are counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schemas import Mask
from schemas.mask import MaskRefused, area, bitmap, from_bitmap, from_compressed, from_polygons, from_runs, runs

coco: Any = pycocotools.mask
RING = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], np.uint8)
bitmaps = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1))


def test_a_ring_by_hand() -> None:
    mask = from_bitmap(RING)

    assert mask.size == [3, 3]
    assert runs(mask).tolist() == [0, 4, 1, 4]
    assert area(mask) == 8
    assert (bitmap(mask) == RING).all()


def test_runs_go_down_the_columns_and_begin_with_zeros() -> None:
    mask = from_runs([1, 2, 6], [3, 3])

    assert bitmap(mask).tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert area(mask) == 2


@pytest.mark.parametrize(("lengths", "pixels"), [([9], 0), ([0, 9], 9), ([4, 1, 4], 1), ([0, 1, 1, 1, 1, 1, 1, 1, 1, 1], 5)])
def test_areas_of_a_three_by_three(lengths: list[int], pixels: int) -> None:
    assert area(from_runs(lengths, [3, 3])) == pixels


def test_height_and_width_are_not_mixed_up() -> None:
    pixels = np.zeros((2, 5), np.uint8)
    pixels[0, 3] = 1

    assert from_bitmap(pixels).size == [2, 5]
    assert runs(from_bitmap(pixels)).tolist() == [6, 1, 3]
    assert bitmap(from_bitmap(pixels))[0].tolist() == [0, 0, 0, 1, 0]


@given(bitmaps)
def test_any_bitmap_comes_back_as_pycocotools_would_have_it(pixels: np.ndarray) -> None:
    mask = from_bitmap(pixels)
    oracle = coco.encode(np.asfortranarray(pixels))

    assert mask.counts.encode() == oracle["counts"]
    assert (bitmap(mask) == pixels).all()
    assert area(mask) == coco.area(oracle) == pixels.sum()
    assert (coco.decode({"size": mask.size, "counts": mask.counts}) == pixels).all()
    assert from_runs(runs(mask).tolist(), mask.size) == mask
    assert from_compressed(mask.size, mask.counts) == mask


@given(st.lists(st.lists(st.tuples(st.floats(-5, 35), st.floats(-5, 35)), min_size=3, max_size=6), min_size=1, max_size=3))
@settings(max_examples=60)
def test_polygons_are_rasterised_as_pycocotools_does(points: list[list[tuple[float, float]]]) -> None:
    polygons = [[number for point in polygon for number in point] for polygon in points]
    oracle = coco.merge(coco.frPyObjects(polygons, 20, 30))

    mask = from_polygons(polygons, width=30, height=20)

    assert mask.counts.encode() == oracle["counts"]
    assert area(mask) == coco.area(oracle)


def test_a_square_polygon_by_hand() -> None:
    assert bitmap(from_polygons([[1, 1, 3, 1, 3, 3, 1, 3]], 4, 4)).tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12))
@settings(max_examples=300)
def test_a_string_is_either_refused_or_what_pycocotools_reads(counts: str) -> None:
    mask = Mask([3, 3], counts)
    try:
        found = bitmap(mask)
    except MaskRefused:
        return

    assert (coco.decode({"size": [3, 3], "counts": counts}) == found).all()


def _number(value: int) -> str:
    """A number in the format's own way: 5 bits a character, least first, the last one's bit 4 its sign."""
    text = ""
    while True:
        bits, value = value & 0x1F, value >> 5
        more = not ((value == 0 and not bits & 0x10) or (value == -1 and bits & 0x10))
        text += chr(48 + bits + 0x20 * more)
        if not more:
            return text


def test_the_number_format_by_hand() -> None:
    assert runs(from_compressed([3, 3], _number(4) + _number(1) + _number(4))).tolist() == [4, 1, 4]
    # the fourth number is the difference to the second
    assert runs(from_compressed([3, 3], _number(0) + _number(3) + _number(4) + _number(-1))).tolist() == [0, 3, 4, 2]


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param("", id="empty"),
        pytest.param(_number(4) + chr(48 + 0x21), id="cut inside a number"),
        pytest.param(_number(-1) + _number(10), id="negative"),
        pytest.param(_number(4) + _number(1), id="too few pixels"),
        pytest.param(_number(4) + _number(1) + _number(5), id="too many pixels"),
        pytest.param(chr(48 + 0x20) * 9 + "0", id="a number of many characters"),
        pytest.param(_number(2**40), id="a number of 41 bits"),
        pytest.param(_number(0) + _number(3) + _number(4) + _number(-4), id="negative by difference"),
        pytest.param("4\u00e9", id="not ASCII"),
        pytest.param("4\n", id="below the alphabet"),
        pytest.param("4p", id="above the alphabet"),
    ],
)
def test_a_hostile_string_is_refused(counts: str) -> None:
    with pytest.raises(MaskRefused) as caught:
        runs(Mask([3, 3], counts))

    assert caught.value.reason == "mask_runs"


def test_runs_whose_sum_wraps_around_are_refused() -> None:
    # Lengths grow by 2**34 - 1 every other number, until they add up to more than int64 holds: the sum then comes out as anything.
    lengths = [0, 0] + [2**34 - 1] * 70_000

    with pytest.raises(MaskRefused):
        runs(Mask([3, 3], "".join(map(_number, lengths))))


@pytest.mark.parametrize("size", [[], [3], [3, 3, 1], [0, 9], [-3, -3], [1 << 20, 1 << 20]])
def test_a_size_that_is_none_is_refused(size: list[int]) -> None:
    with pytest.raises(MaskRefused) as caught:
        runs(Mask(size, "9"))

    assert caught.value.reason == "mask_size"


@pytest.mark.parametrize("lengths", [[], [8], [10], [-1, 10], [4, 6]])
def test_count_lists_that_do_not_fill_the_size_are_refused(lengths: list[int]) -> None:
    with pytest.raises(MaskRefused) as caught:
        from_runs(lengths, [3, 3])

    assert caught.value.reason == "mask_runs"


@pytest.mark.parametrize(
    "polygons",
    [[], [[]], [[1, 1, 2, 2]], [[1, 1, 2, 2, 3, 3, 4]], [[1, 1, 2, float("nan"), 3, 3]], [[0, 0, 1e9, 0, 1e9, 1e9]]],
)
def test_polygons_that_are_none_are_refused(polygons: list[list[float]]) -> None:
    with pytest.raises(MaskRefused) as caught:
        from_polygons(polygons, 4, 4)

    assert caught.value.reason == "mask_polygon"
