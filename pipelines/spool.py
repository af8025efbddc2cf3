"""A spool: units that are many and large, in one file of the place, where every worker reads the one that it has taken.

A unit of GranD names its files: eleven million names are half a gigabyte, which neither the driver nor each worker is to hold. The file
is there as long as the run is, and is made anew by one that goes on. Each unit's hash travels with the spool: what is unpickled is what
the driver has pickled, whoever else may write to the place.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from schemas import RequestError, ShardweaveError
from shards.place import Place, below, clear

FOLDER, NAME = "_plan", "units"  # in the place


class Spool(Sequence[Any]):
    """Units, read when they are asked for: 40 bytes each in memory, and on the way to a worker."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._ends = array("q", [0])
        self._hashes = bytearray()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def note(self, data: bytes) -> None:
        """The next unit's bytes in the file."""
        self._ends.append(self._ends[-1] + len(data))
        self._hashes += hashlib.sha256(data).digest()

    def __getitem__(self, number: Any) -> Any:
        start, end = self._ends[number], self._ends[number + 1]
        data = self._read(start, end)
        if hashlib.sha256(data).digest() != self._hashes[32 * number : 32 * number + 32]:
            raise RequestError(f"{self.place.url}/{NAME}: expected unit {number} as it was planned, found other bytes")
        return pickle.loads(data)  # noqa: S301 - its hash is the one that the driver saw

    def _read(self, start: int, end: int) -> bytes:
        try:
            return bytes(self.place.read_range(NAME, start, end - start))
        except OSError as error:
            raise RequestError(f"{self.place.url}/{NAME}: expected the planned units, found {error.strerror}") from error


@contextlib.contextmanager
def spooled(place: Place, units: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The units as workers get them: a list as it is, in a file where they are made when asked for. Raises OSError, StoreError."""
    if isinstance(units, list | tuple):
        yield units
        return
    folder = below(place, FOLDER)
    found = Spool(folder)
    with tempfile.NamedTemporaryFile(prefix="shardweave-") as file:
        for unit in units:
            data = pickle.dumps(unit, pickle.HIGHEST_PROTOCOL)
            found.note(data)
            file.write(data)
        file.flush()
        folder.upload(NAME, Path(file.name))
    try:
        yield found
    finally:
        with contextlib.suppress(OSError, ShardweaveError):  # the next run of the same makes it anew; why this one ended is to be heard
            clear(folder)


class Left(Sequence[tuple[int, Any]]):
    """Units with these numbers, each with its number."""

    def __init__(self, units: Sequence[Any], numbers: Sequence[int]) -> None:
        self.units, self.numbers = units, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: Any) -> Any:
        return self.numbers[position], self.units[self.numbers[position]]
