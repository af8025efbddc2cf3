"""GGUF: one file with a model's settings, its tokenizer and its tensors, most of them in blocks of a few bits.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian; the blocks are those of
https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c. Read by hand because the library for it believes every count that a file
states; here no count reaches past the end of the file. Numpy alone: a tokenizer is read without torch.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from schemas import RequestError

T = TypeVar("T")
_TEXT, _LIST = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # as struct writes them
_DEEPEST = 4  # dimensions of a tensor
_BLOCK = 32  # values


class Tensor(NamedTuple):
    """One tensor as it is stored."""

    shape: tuple[int, ...]  # in the order of torch and numpy: the last changes fastest
    type: str  # F32, Q4_1, ...
    data: np.ndarray  # uint8


@dataclass(frozen=True)
class Gguf:
    """What a file says."""

    path: Path
    metadata: dict[str, Any]  # numbers, texts, lists of either, by key
    tensors: dict[str, Tensor]

    def stated(self, key: str, kind: type[T]) -> T:
        """A value of this type. Raises RequestError where the file does not state it, or states something else."""
        value = self.metadata.get(key)
        if not isinstance(value, kind):
            raise RequestError(f"{self.path}: {key}: expected {kind.__name__}, found {str(value)[:100]}")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts. Raises RequestError."""
        found = self.stated(key, list)
        if not all(isinstance(text, str) for text in found):
            raise RequestError(f"{self.path}: {key}: expected texts, found other values")
        return found


def read(path: Path) -> Gguf:
    """The file, its tensors not touched yet. Raises RequestError: not there, not GGUF, cut off, a type of tensor that is not known."""
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return _read(path, _Reader(data))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: expected a GGUF file, found {error}") from error


def values(tensor: Tensor) -> np.ndarray:
    """float32, in the tensor's shape."""
    kind = _TYPES[tensor.type]
    return kind.values(tensor.data.reshape(-1, kind.bytes)).reshape(tensor.shape)


class _Reader:
    """Reads on from `at`, and never past the end."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> memoryview:
        left = len(self.data) - self.at
        if count > left:
            raise ValueError(f"{left} bytes at byte {self.at} where {count} are stated")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]

    def text(self) -> str:
        return str(self.take(self.number("Q")), "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            return self.items(self.number("I"), self.number("Q"))
        if kind not in _NUMBERS:
            raise ValueError(f"a value of type {kind}")
        return self.number(_NUMBERS[kind])

    def items(self, kind: int, count: int) -> list[Any]:
        if kind in _NUMBERS:
            width = struct.calcsize(f"<{_NUMBERS[kind]}")
            return np.frombuffer(self.take(count * width), f"<{_NUMBERS[kind]}").tolist()
        if kind != _TEXT:
            raise ValueError(f"a list of type {kind}")
        return [self.text() for _ in range(count)]


def _read(path: Path, reader: _Reader) -> Gguf:
    magic, version = bytes(reader.take(4)), reader.number("I")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"{magic!r} and version {version}")
    tensors, pairs = reader.number("Q"), reader.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = reader.text()
        metadata[key] = reader.value(reader.number("I"))
    listed = [_listed(reader) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment {alignment}")
    begin = -(-reader.at // alignment) * alignment
    return Gguf(path, metadata, {name: _stored(reader, name, shape, kind, begin + offset) for name, shape, kind, offset in listed})


def _listed(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type, place behind the list of tensors."""
    name, depth = reader.text(), reader.number("I")
    if depth > _DEEPEST:
        raise ValueError(f"{name} with {depth} dimensions")
    shape = tuple(reader.number("Q") for _ in range(depth))[::-1]
    return name, shape, reader.number("I"), reader.number("Q")


def _stored(reader: _Reader, name: str, shape: tuple[int, ...], number: int, at: int) -> Tensor:
    known = {kind.number: (text, kind) for text, kind in _TYPES.items()}
    if number not in known:
        raise ValueError(f"{name} of type {number}, none of {', '.join(_TYPES)}")
    text, kind = known[number]
    if not shape or shape[-1] % kind.values_each or not math.prod(shape):
        raise ValueError(f"{name} of shape {shape} in blocks of {kind.values_each}")
    reader.at = min(at, len(reader.data))
    return Tensor(shape, text, np.frombuffer(reader.take(math.prod(shape) // kind.values_each * kind.bytes), np.uint8))


def _floats(letter: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda blocks_NB: blocks_NB.view(letter).astype(np.float32)


def _bf16(blocks_NB: np.ndarray) -> np.ndarray:
    return (blocks_NB.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _half(blocks_NB: np.ndarray, at: int) -> np.ndarray:
    """A number that each block has of its own, (N, 1)."""
    return np.ascontiguousarray(blocks_NB[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(blocks_NB: np.ndarray) -> np.ndarray:
    """The last 16 bytes of each block: the low halves, then the high ones."""
    packed = blocks_NB[:, -_BLOCK // 2 :]
    return np.concatenate([packed & 15, packed >> 4], 1)


def _fives(blocks_NB: np.ndarray, at: int) -> np.ndarray:
    """Nibbles with a fifth bit each, which stand together in four bytes at `at`."""
    fifth = np.unpackbits(np.ascontiguousarray(blocks_NB[:, at : at + 4]), axis=1, bitorder="little")
    return _nibbles(blocks_NB) | fifth << 4


def _scaled(numbers: Callable[[np.ndarray], np.ndarray], zero: int) -> Callable[[np.ndarray], np.ndarray]:
    """Whole numbers, less `zero`, times the block's scale."""
    return lambda blocks_NB: (numbers(blocks_NB).astype(np.float32) - zero) * _half(blocks_NB, 0)


def _shifted(numbers: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Whole numbers times the block's scale, and its least value added."""
    return lambda blocks_NB: numbers(blocks_NB).astype(np.float32) * _half(blocks_NB, 0) + _half(blocks_NB, 2)


class _Type(NamedTuple):
    number: int
    values_each: int  # of a block
    bytes: int
    values: Callable[[np.ndarray], np.ndarray]  # uint8 (blocks, bytes) to float32


_TYPES = {
    "F32": _Type(0, 1, 4, _floats("<f4")),
    "F16": _Type(1, 1, 2, _floats("<f2")),
    "Q4_0": _Type(2, _BLOCK, 18, _scaled(_nibbles, 8)),
    "Q4_1": _Type(3, _BLOCK, 20, _shifted(_nibbles)),
    "Q5_0": _Type(6, _BLOCK, 22, _scaled(lambda blocks_NB: _fives(blocks_NB, 2), 16)),
    "Q5_1": _Type(7, _BLOCK, 24, _shifted(lambda blocks_NB: _fives(blocks_NB, 4))),
    "Q8_0": _Type(8, _BLOCK, 34, _scaled(lambda blocks_NB: blocks_NB[:, 2:].view(np.int8), 0)),
    "BF16": _Type(30, 1, 2, _bf16),
}
