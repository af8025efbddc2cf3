"""Distributions: exact whatever comes in whatever pieces, and bins that hold every number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import values
from shards.values import Bin, Values


def of(*pieces: list[float]) -> Values:
    made = Values()
    for piece in pieces:
        made.add(np.array(piece))
    return made


def test_counts_mean_and_quantiles_by_hand() -> None:
    made = of([1, 3], [3, np.nan, 5])

    assert (len(made), made.mean, made.counts()) == (4, 3.0, {1.0: 1, 3.0: 2, 5.0: 1})
    assert [made.quantile(share) for share in (0, 0.1, 0.5, 0.9, 1)] == pytest.approx([1, 1.6, 3, 4.4, 5])


def test_nothing_has_no_bins() -> None:
    assert (len(of([np.nan])), of().bins()) == (0, [])


@pytest.mark.parametrize(
    ("numbers", "bins"),
    [
        ([2, 2, 4], [Bin(2, 3, 2), Bin(3, 4, 0), Bin(4, 5, 1)]),
        ([7], [Bin(7, 8, 1)]),
        ([0, 1, 1, 100], [Bin(0, 1, 1), Bin(1, 2, 2), *(Bin(2**n, 2 ** (n + 1), int(n == 6)) for n in range(1, 7))]),
        ([0.25, 0.25, 0.3], [Bin(0.25, 0.255, 2), *(Bin(0.25 + n * 0.005, 0.255 + n * 0.005, int(n == 10)) for n in range(1, 11))]),
    ],
)
def test_bins_by_hand(numbers: list[float], bins: list[Bin]) -> None:
    found = of(numbers).bins()

    assert [bin.number for bin in found] == [bin.number for bin in bins]
    assert np.allclose([bin[:2] for bin in found], [bin[:2] for bin in bins])


numbers = st.one_of(
    st.lists(st.integers(0, 2_000_000).map(float), min_size=1), st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=1)
)


@given(numbers, st.integers(1, 5))
def test_any_numbers_are_counted_as_numpy_counts_them(given: list[float], size: int) -> None:
    made = of(*(given[at : at + size] for at in range(0, len(given), size)))

    assert made.quantile(0.3) == pytest.approx(np.percentile(given, 30), abs=1e-6)
    bins = made.bins()
    assert sum(bin.number for bin in bins) == len(given)
    assert 1 <= len(bins) <= 30
    assert all(bin.low < bin.high for bin in bins)


def test_many_numbers_take_no_more_room_than_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "WAITING", 100)
    made = Values()
    for _ in range(50):
        made.add(np.arange(30))

    assert sum(len(values) for values, _ in made._new) <= 130
    assert (len(made), made.mean) == (1500, 14.5)
