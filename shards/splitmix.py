"""Random bits and permutations as pure functions of integers, on whole arrays: splitmix64.

Not numpy's generators, whose streams may change from version to version. The generator is the one of Steele, Lea and Flood, "Fast
splittable pseudorandom number generators" (2014), with the constants of https://prng.di.unimi.it/splitmix64.c.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_ROUNDS = 6  # of the Feistel network: with four, the orders of five things are not about equally likely


def key(*words: int | str) -> int:
    """One number below 2**64 from several: other words, or the same in another order, give an unrelated one."""
    found = 0
    for word in words:
        number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") if isinstance(word, str) else word
        found = _next(found ^ (number & _MASK))
    return found


def _next(seed: int) -> int:
    """bits(seed, 0), for one number faster than numpy."""
    mixed = (seed + GOLDEN) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


def bits(key: int | np.ndarray, counters: np.ndarray) -> np.ndarray:
    """uint64 of the counters' shape: the numbers that splitmix64 gives at these steps after it was seeded with the key (or keys)."""
    start = key if isinstance(key, np.ndarray) else np.uint64(key)
    mixed = start + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def shuffled(key: int, count: int) -> np.ndarray:
    """int64 (count,): a permutation of range(count)."""
    return np.argsort(bits(key, np.arange(count)), kind="stable")


def spread(key: int, count: int) -> np.ndarray:
    """int64 (count,), all different: sorted by it, every stretch of things takes evenly from everywhere in range(count).

    Van der Corput's sequence: bits reversed, so that neighbours fall far apart. In its tree of halves the two halves of every node change
    places or not, as the key says (Owen, "Randomly permuted (t,m,s)-nets", 1995).
    """
    number, levels = np.arange(count), max(count - 1, 0).bit_length()
    swapped = (bits(key, np.arange(2**levels)) >> np.uint64(63)).astype(np.int64)
    found = np.zeros(count, np.int64)
    for level in range(levels):
        node = 2**level + (number & (2**level - 1))
        found = 2 * found + ((number >> level & 1) ^ swapped[node])
    return found


def permuted(slots: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """int64: where each slot goes in the permutation of range(size) that its key picks. No permutation is ever held.

    A Feistel network over a rectangle of about sqrt(size) by sqrt(size), walked on from where it leaves range(size) (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002). All arrays are of one shape; slots < sizes.
    """
    return _walked(_crossed, slots, sizes, keys)


def unpermuted(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """int64: the slot that `permuted` puts into each place."""
    return _walked(_uncrossed, places, sizes, keys)


Step = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _walked(step: Step, slots: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Step on until everything is inside of its range(size)."""
    found, size, seed = slots.astype(np.uint64), sizes.astype(np.uint64), keys.astype(np.uint64)
    width = np.maximum(np.ceil(np.sqrt(sizes)), 1).astype(np.uint64)
    height = (size + width - np.uint64(1)) // width
    todo = np.arange(len(found))
    while len(todo):
        found[todo] = step(found[todo], width[todo], height[todo], seed[todo])
        todo = todo[found[todo] >= size[todo]]
    return found.astype(np.int64)


def _crossed(cells: np.ndarray, width: np.ndarray, height: np.ndarray, keys: np.ndarray) -> np.ndarray:
    rows, columns = np.divmod(cells, width)
    for _ in range(_ROUNDS):
        keys = keys + np.uint64(GOLDEN)
        rows = (rows + _hashed(keys, columns)) % height
        columns = (columns + _hashed(~keys, rows)) % width
    return rows * width + columns


def _uncrossed(cells: np.ndarray, width: np.ndarray, height: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The rounds of `_crossed`, backwards."""
    rows, columns = np.divmod(cells, width)
    keys = keys + np.uint64(_ROUNDS * GOLDEN & _MASK)
    for _ in range(_ROUNDS):
        columns = (columns + width - _hashed(~keys, rows) % width) % width
        rows = (rows + height - _hashed(keys, columns) % height) % height
        keys = keys - np.uint64(GOLDEN)
    return rows * width + columns


def _hashed(keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """32 bits: less than `bits` mixes, and enough for a round."""
    mixed = (keys ^ numbers) * np.uint64(0xBF58476D1CE4E5B9)
    return ((mixed ^ (mixed >> np.uint64(32))) * np.uint64(0x94D049BB133111EB)) >> np.uint64(32)
