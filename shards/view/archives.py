"""Pictures in zips and tars, by name: a zip is listed by its central directory, a tar by its headers. Nothing is unpacked to disk.

Names in an archive are only names: they are compared, and lead nowhere.
"""

from __future__ import annotations

import contextlib
import mmap
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Protocol

from shards.foreign_tar import Member, members
from shards.view.rows import BROKEN

KINDS = (".zip", ".tar")
NAMES = 300_000  # of an archive that are listed
PICTURE = 64 << 20  # bytes


class Archive(Protocol):
    """A file that holds pictures. A damaged one holds what stands before the damage."""

    def named(self, last: str) -> list[str]:
        """The names that end in this part."""
        ...

    def read(self, name: str) -> bytes | None:
        """The bytes of this name; None where they can not be read, or are more than PICTURE."""
        ...


def opened(path: Path) -> Archive:
    """The archive that this file is."""
    return (Zip if path.suffix.lower() == ".zip" else Tar)(path)


class Zip:
    """A .zip."""

    def __init__(self, path: Path) -> None:
        self._zip: zipfile.ZipFile | None = None
        with contextlib.suppress(*BROKEN):
            self._zip = zipfile.ZipFile(path)
        entries = self._zip.infolist() if self._zip else []
        self._names = _by_last(entry.filename for entry in islice(entries, NAMES))

    def named(self, last: str) -> list[str]:
        """See Archive."""
        return self._names.get(last, [])

    def read(self, name: str) -> bytes | None:
        """See Archive."""
        with contextlib.suppress(*BROKEN, KeyError):
            if self._zip is not None:
                with self._zip.open(name) as file:
                    data = file.read(PICTURE + 1)  # whatever it states
                return data if len(data) <= PICTURE else None
        return None


class Tar:
    """A .tar, not compressed."""

    def __init__(self, path: Path) -> None:
        self._path, self._members = path, dict[str, Member]()
        with contextlib.suppress(*BROKEN), path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._members.update((member.name, member) for member in islice(members(data, Counter()), NAMES))
        self._names = _by_last(self._members)

    def named(self, last: str) -> list[str]:
        """See Archive."""
        return self._names.get(last, [])

    def read(self, name: str) -> bytes | None:
        """See Archive."""
        member = self._members.get(name)
        if member is None or member.size > PICTURE:
            return None
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)
        return None


def _by_last(names: Iterable[str]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        found[name.rpartition("/")[2]].append(name)
    return dict(found)
