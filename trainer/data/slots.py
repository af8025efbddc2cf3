"""Objects from one process to another: tensors through memory that both see, the rest as a pickle of our own.

A writer and a reader share a few slots, files without a name. What the reader takes out of a slot lies in it, uncopied, until the slot is
given back. Tensors are of the CPU.
"""

from __future__ import annotations

import io
import itertools
import mmap
import os
import pickle
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

ALIGNED = 64  # bytes: a line of the cache


class Slot:
    """One of them, in one of the processes."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._seen: mmap.mmap | None = None

    @classmethod
    def new(cls) -> Slot:
        """An empty one. Its file is handed on to the other process."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("slot"))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    def write(self, value: Any) -> tuple[bytes, list[int]]:
        """Put it in: what `read` wants to know. The slot grows where it has to."""
        buffers: list[memoryview] = []
        stream = io.BytesIO()
        _Pickler(stream, buffers).dump(value)
        sizes = [len(buffer) for buffer in buffers]
        *starts, end = _starts(sizes)
        if end > os.fstat(self.file).st_size:
            os.ftruncate(self.file, end)
        memory = self._memory()
        for start, buffer in zip(starts, buffers, strict=True):
            memory[start : start + len(buffer)] = buffer
        return stream.getvalue(), sizes

    def read(self, pickled: bytes, sizes: Sequence[int]) -> Any:
        """What was put in. Its tensors are there until the slot is written to again."""
        memory = self._memory()
        return pickle.loads(pickled, buffers=[memory[start : start + size] for start, size in zip(_starts(sizes), sizes, strict=False)])  # noqa: S301 - our own process wrote it

    def close(self) -> None:
        """The memory goes with the last tensor in it."""
        os.close(self.file)

    def _memory(self) -> memoryview:
        """All of it; a map of what it was before it grew stays with whoever has tensors there."""
        size = os.fstat(self.file).st_size
        if size and (self._seen is None or size > len(self._seen)):
            self._seen = mmap.mmap(self.file, size)
        return memoryview(self._seen or b"")


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where each buffer begins, and where the last one ends."""
    return list(itertools.accumulate((-(-size // ALIGNED) * ALIGNED for size in sizes), initial=0))


class _Pickler(pickle.Pickler):
    """Leaves the bytes of tensors to `buffers`."""

    def __init__(self, stream: io.BytesIO, buffers: list[memoryview]) -> None:
        super().__init__(stream, protocol=5, buffer_callback=lambda buffer: buffers.append(buffer.raw()))

    def reducer_override(self, obj: Any) -> Any:
        """torch's own way copies a tensor into the pickle."""
        if not isinstance(obj, torch.Tensor):
            return NotImplemented
        array = obj.contiguous().numpy()
        return _tensor, (array.shape, array.dtype.str, pickle.PickleBuffer(array.data))


def _tensor(shape: tuple[int, ...], dtype: str, memory: memoryview) -> torch.Tensor:
    return torch.from_numpy(np.ndarray(shape, dtype, memory))
