"""Repeats: counted exactly, whether they wait in memory or in a file."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from shards import repeats
from shards.repeats import Repeats

PICTURE = st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2**63]), st.integers(1, 2**40))


@given(st.lists(st.lists(PICTURE, max_size=9), max_size=6), st.sampled_from([0, 1, 5, 1000]))
def test_counts_are_those_of_a_set(shards: list[list[tuple[int, int, int]]], together: int) -> None:
    size = {(high, low): 7 + high for high in range(4) for low in (0, 1, 2**63)}  # equal content has equal size
    with pytest.MonkeyPatch.context() as patch, Repeats() as found:
        patch.setattr(repeats, "TOGETHER", together)
        for shard in shards:
            hashes = np.array([(high, low) for high, low, _ in shard], np.uint64).reshape(-1, 2)
            found.add(hashes, np.array([size[high, low] for high, low, _ in shard], np.int64))
        counted = found.counts()

    all = [(high, low) for shard in shards for high, low, _ in shard]
    seen: set[tuple[int, int]] = set()
    again = [one for one in all if one in seen or seen.add(one)]
    assert counted == {"pictures": len(again), "bytes": sum(size[one] for one in again), "distinct": len(seen)}
