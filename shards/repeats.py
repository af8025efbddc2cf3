"""Repeats: pictures whose content an earlier one has, counted exactly, in memory that does not grow with their number.

More than TOGETHER hashes wait in a temporary file, apart by their last byte: equal ones meet, and a 256th of all is compared at a time.
"""

from __future__ import annotations

import tempfile
from array import array
from typing import IO

import numpy as np

TOGETHER = 1 << 15  # pictures in memory
BUCKETS = 256
_ROW = 3  # two halves of a hash, and the picture's size: 8 bytes each


class Repeats:
    """Use as a context manager: what waits in a file goes with it."""

    def __init__(self) -> None:
        self.number = 0
        self._rows, self._waiting = [np.empty((0, _ROW), np.uint64)], 0
        self._file: IO[bytes] | None = None
        self._parts = [array("q") for _ in range(BUCKETS)]  # offset and rows of what each bucket has in the file

    def __enter__(self) -> Repeats:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, xxh3: np.ndarray, sizes: np.ndarray) -> None:
        """xxh3: uint64 (p, 2), halves of the pictures' hashes; sizes: int (p,), their bytes. Raises OSError."""
        self._rows.append(np.column_stack([xxh3, sizes.astype(np.uint64)]))
        self._waiting += len(xxh3)
        self.number += len(xxh3)
        if self._waiting > TOGETHER:
            self._spill()

    def counts(self) -> dict[str, int]:
        """How many pictures are repeats, the bytes that they take, and how many others there are. Raises OSError."""
        if self._file is None:
            again, size = _again(np.concatenate(self._rows))
        else:
            self._spill()
            found = [_again(self._bucket(bucket)) for bucket in range(BUCKETS)]
            again, size = sum(number for number, _ in found), sum(size for _, size in found)
        return {"pictures": again, "bytes": size, "distinct": self.number - again}

    def _spill(self) -> None:
        self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - closed with this
        rows = np.concatenate(self._rows)
        bucket = (rows[:, 1] >> np.uint64(56)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket, minlength=BUCKETS)).tolist()
        at = self._file.seek(0, 2)
        self._file.write(rows[order].tobytes())
        for part, start, end in zip(self._parts, [0, *ends], ends, strict=False):
            part.extend((at + start * rows.itemsize * _ROW, end - start))
        self._rows, self._waiting = [np.empty((0, _ROW), np.uint64)], 0

    def _bucket(self, number: int) -> np.ndarray:
        """uint64 (rows, _ROW)."""
        assert self._file is not None
        data = bytearray()
        for offset, rows in zip(self._parts[number][::2], self._parts[number][1::2], strict=True):
            self._file.seek(offset)
            data += self._file.read(rows * _ROW * 8)
        return np.frombuffer(data, np.uint64).reshape(-1, _ROW)


def _again(rows: np.ndarray) -> tuple[int, int]:
    """How many rows' hashes stand in an earlier row, and their sizes together."""
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    again = rows[1:][(rows[1:, :2] == rows[:-1, :2]).all(1)]
    return len(again), int(again[:, 2].sum())
