from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import splitmix


def test_bits_are_those_of_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]

    assert splitmix.bits(1234567, np.arange(5)).tolist() == published


def test_keys_are_the_same_on_every_machine() -> None:
    assert splitmix.key() == 0
    assert splitmix.key(3, "captions", 7) == 14133397583642066181
    assert len({splitmix.key(*words) for words in [(1, 2), (2, 1), (1,), (1, 2, 0), ("1", 2), (-1, 2), (2**64 + 7, 2)]}) == 7


@given(st.integers(1, 500), st.integers(0, 2**64 - 1))
def test_a_permutation_serves_each_place_once(size: int, key: int) -> None:
    served = splitmix.permuted(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))

    assert sorted(served.tolist()) == list(range(size))
    assert sorted(splitmix.shuffled(key, size).tolist()) == list(range(size))


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=20), st.integers(0, 2**64 - 1))
def test_a_permutation_can_be_walked_back(sizes: list[int], key: int) -> None:
    size, keys = np.array(sizes), splitmix.bits(key, np.arange(len(sizes)))
    slots = (splitmix.bits(keys, np.arange(len(sizes))) % size.astype(np.uint64)).astype(np.int64)

    assert splitmix.unpermuted(splitmix.permuted(slots, size, keys), size, keys).tolist() == slots.tolist()


def test_permutations_of_several_sizes_are_found_together() -> None:
    sizes, keys = np.array([1, 5, 1000, 2**40]), np.array([1, 2, 3, 4], np.uint64)

    together = splitmix.permuted(np.array([0, 3, 17, 2**39]), sizes, keys)

    alone = [splitmix.permuted(np.array([slot]), sizes[n : n + 1], keys[n : n + 1])[0] for n, slot in enumerate([0, 3, 17, 2**39])]
    assert together.tolist() == alone
    assert (together < sizes).all()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_permutation_is_as_likely(size: int) -> None:
    trials = 24_000
    keys = splitmix.bits(11, np.arange(trials))
    columns = [splitmix.permuted(np.full(trials, slot), np.full(trials, size), keys) for slot in range(size)]

    found = Counter(zip(*(column.tolist() for column in columns), strict=True))

    expected = trials / [0, 1, 2, 6, 24][size]
    assert all(abs(count - expected) < 5 * expected**0.5 for count in found.values())
    assert len(found) * expected == trials


def test_every_pair_of_neighbours_is_as_likely() -> None:
    trials, size = 45_000, 10
    keys = splitmix.bits(12, np.arange(trials))
    first, second = (splitmix.permuted(np.full(trials, slot), np.full(trials, size), keys) for slot in (0, 1))

    pairs = Counter(zip(first.tolist(), second.tolist(), strict=True))

    assert len(pairs) == 90
    assert sum((count - 500) ** 2 / 500 for count in pairs.values()) < 150  # chi-square of 89 degrees: 150 is exceeded once in 20,000


def test_spread_is_a_permutation_whose_every_stretch_comes_from_everywhere() -> None:
    for key in range(5):
        order = np.argsort(splitmix.spread(key, 1024))
        assert sorted(order.tolist()) == list(range(1024))
        for first in range(0, 1024, 16):
            assert sorted((order[first : first + 16] // 64).tolist()) == list(range(16))
        unaligned = np.sort(order[5:69]) // 16
        assert (abs(unaligned - np.arange(64)) <= 3).all()


def test_spread_is_another_one_for_every_key() -> None:
    assert splitmix.spread(3, 5).tolist() == [6, 1, 4, 3, 7]
    assert len({tuple(splitmix.spread(key, 16).tolist()) for key in range(1000)}) > 950
    assert len(splitmix.spread(0, 0)) == 0
    assert splitmix.spread(0, 1).tolist() == [0]
