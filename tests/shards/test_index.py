"""The index that waits for its tar's hash: packed, it gives the same bytes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
from hypothesis import given

from shards.index import Entry, IndexBuilder

TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
SIZE = st.integers(0, 2**31 - 1)
IMAGES = st.lists(st.tuples(SIZE, SIZE, SIZE, st.none() | st.floats(-1, 1)), max_size=3)
MEMBERS = st.lists(st.tuples(TEXT, SIZE, SIZE), max_size=3)
ENTRY = st.builds(Entry, TEXT, SIZE, SIZE, MEMBERS, IMAGES, SIZE, SIZE, TEXT, st.none() | TEXT)


@given(st.lists(ENTRY, max_size=8))
def test_packed_rows_give_the_bytes_that_they_would_have_given(rows: list[Entry]) -> None:
    builder = IndexBuilder(rows)
    crc32 = list(range(len(rows)))
    xxh3 = [number.to_bytes(16, "big") for number in range(sum(len(row.images) for row in rows))]

    with TemporaryDirectory() as folder:
        packed = builder.pack(crc32, xxh3, Path(folder))
        with packed.file:
            assert packed.records == len(rows)
            assert packed.encode(1024, "ab" * 32) == builder.encode(crc32, xxh3, 1024, "ab" * 32)
