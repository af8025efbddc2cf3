"""Names by the million: sorted, and kept, in temporary files, so that memory does not grow with their number."""

from __future__ import annotations

import bisect
import itertools
import marshal
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T", str, tuple[str, int])
CHUNK = 1 << 17  # items that are sorted in memory
BLOCK = 1 << 10  # items that are read back at a time


def in_order(items: Iterable[T]) -> Iterator[T]:
    """What `sorted` gives, through a temporary file where items are many. All have been taken when this returns. Raises OSError."""
    rest = iter(items)
    chunk = sorted(itertools.islice(rest, CHUNK))
    if len(chunk) < CHUNK:
        return iter(chunk)
    runs: list[_Run] = []
    blocks = Blocks()
    while chunk:
        first = len(blocks)
        for start in range(0, len(chunk), BLOCK):
            blocks.append(chunk[start : start + BLOCK])
        runs.append(_Run(blocks, range(first, len(blocks))))
        chunk = sorted(itertools.islice(rest, CHUNK))
    return _merged(runs)


def _merged(runs: list[_Run]) -> Iterator[Any]:
    """The items of sorted runs, in order. What lies up to the first end of a block is sorted at once: sorting merges what is sorted."""
    while runs := [run for run in runs if run.filled()]:
        last = min(run.items[-1] for run in runs)
        yield from sorted(itertools.chain.from_iterable([run.take(last) for run in runs]))


class _Run:
    """Sorted blocks, of which one is in memory."""

    def __init__(self, blocks: Blocks, numbers: range) -> None:
        self.blocks, self.items = blocks, []
        self._left = iter(numbers)

    def filled(self) -> bool:
        """Whether there is anything left."""
        if not self.items and (number := next(self._left, None)) is not None:
            self.items = self.blocks[number]
        return bool(self.items)

    def take(self, last: Any) -> list[Any]:
        """What is not above this."""
        at = bisect.bisect_right(self.items, last)
        taken, self.items = self.items[:at], self.items[at:]
        return taken


class Blocks:
    """Lists of strings and numbers in a temporary file that nobody else sees, and that is gone with this."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, block: list[Any]) -> None:
        """Keep a list. Raises OSError."""
        data = memoryview(marshal.dumps(block, 2))
        end = self._ends[-1]
        while data:
            written = os.pwrite(self._file, data, end)
            data, end = data[written:], end + written
        self._ends.append(end)

    def __getitem__(self, number: int) -> list[Any]:
        start, end = self._ends[number], self._ends[number + 1]
        return marshal.loads(os.pread(self._file, end - start, start))  # noqa: S302 - what `append` wrote


class Names:
    """Names in the order in which they come: of ten million, a tenth of a megabyte is in memory."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._last: list[str] = []
        self._full: Blocks | None = None
        self.extend(names)

    def append(self, name: str) -> None:
        """Keep one more. Raises OSError."""
        self.extend((name,))

    def extend(self, names: Iterable[str]) -> None:
        """Keep these, too. Raises OSError."""
        rest = iter(names)
        while more := list(itertools.islice(rest, BLOCK - len(self._last))):
            self._last += more
            if len(self._last) == BLOCK:
                self._full = self._full or Blocks()
                self._full.append(self._last)
                self._last = []

    def __len__(self) -> int:
        return self._blocks * BLOCK + len(self._last)

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(self._block(number) for number in range(self._blocks + 1))

    def part(self, start: int, stop: int) -> list[str]:
        """Those from `start` to before `stop`, or fewer where there are fewer."""
        first = start // BLOCK
        blocks = (self._block(number) for number in range(first, min(-(-stop // BLOCK), self._blocks + 1)))
        return list(itertools.islice(itertools.chain.from_iterable(blocks), start - first * BLOCK, stop - first * BLOCK))

    def parts(self, size: int) -> Iterator[list[str]]:
        """All of them, so many at a time."""
        rest = iter(self)
        while part := list(itertools.islice(rest, size)):
            yield part

    @property
    def _blocks(self) -> int:
        return 0 if self._full is None else len(self._full)

    def _block(self, number: int) -> list[str]:
        return self._last if self._full is None or number == len(self._full) else self._full[number]
