"""One record of a tar made elsewhere: its layout makes it from the sample's members."""

from __future__ import annotations

from collections.abc import Sequence

from schemas import Record, RecordError, Reject, ShardError
from shards import foreign_tar, layouts
from shards.index import Index
from shards.sample import Sample
from shards.sink import Buffer


class ForeignSample(Sample):
    """As a Sample; `member` knows the tar's own names, and the pictures may have to be decoded from what they stand in."""

    __slots__ = ("_files", "_layout")

    def __init__(self, index: Index, row: int, data: memoryview, layout: str) -> None:
        super().__init__(index, row, data)
        self._layout = layout
        self._files: Sequence[Buffer] = ()

    @property
    def record(self) -> Record:
        """The record, made when first asked for. Raises ShardError where its members make none."""
        if self._record is None:
            try:
                made = layouts.read(self._layout, self.key, *self._members())
            except (Reject, RecordError) as error:
                raise ShardError(self._index.shard, self.key, "record unreadable", f"a sample of layout {self._layout}", error) from error
            self._record, self._files = made.record, made.files
        return self._record

    def image(self, position: int) -> memoryview:
        """The bytes of the record's image at this position. Raises IndexError, and as `record`."""
        images = self.record.images
        return memoryview(self._files[range(len(images))[position]])

    def map(self, position: int) -> memoryview:
        """There is none. Raises IndexError."""
        raise IndexError(position)

    def _members(self) -> tuple[str, layouts.Members]:
        """The sample's key in the tar, and payloads by suffix."""
        key, found = "", {}
        for at in range(self._index.first_member[self._row], self._index.first_member[self._row + 1]):
            parted = foreign_tar.split(self._index.member_names[at])
            if parted is None:
                raise Reject("member", f"expected a name with a key, found {self._index.member_names[at]!r}"[:200])
            key, suffix = parted
            found[suffix] = self._member(at)
        return key, found
