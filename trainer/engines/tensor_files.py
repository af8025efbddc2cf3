"""Files of safetensors that the ranks write together: each tensor whole, under its name, in the file of one rank.

    weights.safetensors                  of one rank
    weights-00001-of-00008.safetensors   of the first of eight

A file is written as its tensors are put together, so a rank holds one or two of them at a time. Any number of ranks reads them again.
The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open

from schemas import RequestError
from shards import durable

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: what is known of it ahead, and how it is put together."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    whole: Callable[[], torch.Tensor]  # ranks may meet in it: all call it, in the same order

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def save(folder: Path, stem: str, entries: Sequence[Entry], rank: int, ranks: int) -> None:
    """Write this rank's share of the entries, durably. Called by all ranks, with the same entries."""
    mine = [entry.name for entry, owner in zip(entries, owners(entries, ranks), strict=True) if owner == rank]
    write(folder / _name(stem, rank, ranks), entries, set(mine))


def owners(entries: Sequence[Entry], ranks: int) -> list[int]:
    """The rank that writes each entry: the largest first, each to who has the fewest bytes. The same on all ranks."""
    found, held = [0] * len(entries), [0] * ranks
    for at in sorted(range(len(entries)), key=lambda at: -entries[at].size):
        found[at] = held.index(min(held))
        held[found[at]] += entries[at].size
    return found


def write(path: Path, entries: Iterable[Entry], mine: Container[str]) -> None:
    """Write the entries of these names into one file, durably, and take part in putting the others together."""
    ordered = sorted(entries, key=_place)
    with path.open("wb") as file, ThreadPoolExecutor(1) as writer:
        file.write(_header([entry for entry in ordered if entry.name in mine]))
        writing: Future[None] | None = None
        for entry in ordered:
            tensor = entry.whole()
            assert tensor.shape == entry.shape, entry.name
            if entry.name in mine:
                if writing is not None:
                    writing.result()
                writing = writer.submit(_append, file, tensor.detach().to("cpu", entry.dtype))  # meanwhile the next is put together
        if writing is not None:
            writing.result()
    durable.sync_folder(path)


def join(entries: Iterable[Entry]) -> None:
    """Take part in putting the entries together, where another rank writes them all."""
    for entry in sorted(entries, key=_place):
        entry.whole()


@contextlib.contextmanager
def opened(folder: Path, stem: str) -> Iterator[Mapping[str, torch.Tensor]]:
    """The tensors by name, each mapped when it is asked for: whoever keeps one copies it.

    Raises RequestError where a rank's file is missing, SafetensorError where one is damaged.
    """
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in listed(folder, stem)]
        yield _Mapped({name: file for file in files for name in file.keys()})  # noqa: SIM118 - it is no mapping


def listed(folder: Path, stem: str) -> list[Path]:
    """The files of all ranks. Raises RequestError where one is missing."""
    found = sorted(folder.glob(f"{stem}-*-of-*.safetensors"))
    expected = [folder / _name(stem, rank, len(found) or 1) for rank in range(len(found) or 1)]
    if found not in ([], expected) or not expected[0].is_file():
        told = ", ".join(path.name for path in found) or "none"
        raise RequestError(f"{folder}: expected {stem} of every rank, found {told}; all ranks need to see this folder")
    return expected


class _Mapped(Mapping[str, torch.Tensor]):
    def __init__(self, files: dict[str, Any]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _name(stem: str, rank: int, ranks: int) -> str:
    return f"{stem}.safetensors" if ranks == 1 else f"{stem}-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def _place(entry: Entry) -> tuple[int, str]:
    """Safetensors' own order: each begins at a multiple of its items' size."""
    return -entry.dtype.itemsize, entry.name


def _header(entries: Sequence[Entry]) -> bytes:
    """Its length in 8 bytes, little-endian, and the JSON, which spaces make a multiple of 8."""
    begins = itertools.accumulate((entry.size for entry in entries), initial=0)
    table = {
        entry.name: {"dtype": DTYPES[entry.dtype], "shape": entry.shape, "data_offsets": (begin, begin + entry.size)}
        for entry, begin in zip(entries, begins, strict=False)
    }
    data = json.dumps(table, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    return len(data).to_bytes(8, "little") + data


def _append(file: IO[bytes], tensor: torch.Tensor) -> None:
    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
