"""One record as it stands in a shard."""

from __future__ import annotations

import msgspec

from schemas import Record, ShardError
from schemas.record import decode
from shards.index import Index


class Sample:
    """One record and the payloads of its members, as views into its bytes: copy what must outlive it and its neighbours.

    Its bytes are those that were written; it is decoded when `record` is asked for.
    """

    __slots__ = ("_data", "_index", "_record", "_row")

    def __init__(self, index: Index, row: int, data: memoryview) -> None:
        self._index, self._row, self._data = index, row, data
        self._record: Record | None = None

    @property
    def key(self) -> str:
        """The record's key."""
        return self._index.keys[self._row]

    @property
    def record(self) -> Record:
        """The record, decoded when first asked for. Raises ShardError where its JSON is no record."""
        if self._record is None:
            try:
                self._record = decode(self._member(self._index.first_member[self._row + 1] - 1))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ShardError(self._index.shard, self.key, "record unreadable", "a record of format 1", error) from error
        return self._record

    def image(self, position: int) -> memoryview:
        """The bytes of the record's image at this position, as they were upstream. Raises IndexError."""
        first = self._index.first_image
        if not 0 <= position < first[self._row + 1] - first[self._row]:
            raise IndexError(f"{self.key}: image {position}: expected one below {first[self._row + 1] - first[self._row]}")
        return self._file(position)

    def map(self, position: int) -> memoryview:
        """The PNG bytes of the record's label map at this position. Raises IndexError."""
        if position < 0:
            raise IndexError(f"{self.key}: map {position}: expected one from 0")
        first = self._index.first_image
        return self._file(first[self._row + 1] - first[self._row] + position)

    def member(self, name: str) -> memoryview:
        """The payload of a member, by full name. Raises KeyError where the index knows none of this name."""
        for at in range(self._index.first_member[self._row], self._index.first_member[self._row + 1]):
            if self._index.member_names[at] == name:
                return self._member(at)
        raise KeyError(name)

    def _file(self, position: int) -> memoryview:
        """Pictures come first, then maps, the JSON last."""
        first = self._index.first_member
        at = first[self._row] + position
        if at >= first[self._row + 1] - 1:
            raise IndexError(f"{self.key}: member {position}: expected one below {first[self._row + 1] - 1 - first[self._row]}")
        return self._member(at)

    def _member(self, at: int) -> memoryview:
        found = self._index
        start = found.member_offsets[at] - found.offsets[self._row]
        return self._data[start : start + found.member_sizes[at]]
