"""Hold-out: on which side of a split a record falls, decided by its key alone.

XXH3-64 of the key's characters, as a share of 2**64: held out where that is below the rate. So a key falls on the same side whoever
converts it, in whatever order, however often it is begun again; the sides have nothing in common and are everything together; and what is
held out at one rate is held out at every higher one. A key is the place of an item in the input, before any --shuffle: another input, or
another --limit, is another split. Pictures are not looked at: one that several items share may stand on both sides, unless
`--duplicates images`, which compares both sides, drops it from the later item.
"""

from __future__ import annotations

import xxhash

TRAIN, HELD_OUT = SIDES = ("train", "held-out")


def side(key: str, rate: float) -> str:
    """One of SIDES."""
    return HELD_OUT if xxhash.xxh3_64_intdigest(key.encode()) < rate * 2.0**64 else TRAIN
