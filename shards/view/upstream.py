"""Where rejects came from: the row of the annotation file, and the picture that it names, in folders that the user points at.

Nothing in the data set chooses a folder: only names below those given are looked at.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec

from schemas import RequestError
from shards.manifest import RejectRow
from shards.view import archives, paint, rows
from shards.view.archives import PICTURE, Archive
from shards.view.desk import Kept

FILES = 1_000_000  # that are listed
STOOD = 1_000  # rows that are kept
NAMED = 32  # pictures of a row that are looked for
ARCHIVES = 16  # that are looked into
LETTERS = 4_000  # of a row that are shown
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
_NUMBERS = re.compile(rb"\[\n\s*([-+.,\deE\s]+?)\n\s*\]")  # a list of numbers stands in one line


class Stood(NamedTuple):
    """A row of an upstream file: its text, cut, and what may be the names of its pictures."""

    text: str
    names: list[str]


class Upstream:
    """Files below some folders, by name. Raises RequestError where there is no such folder."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._roots = [folder.resolve() for folder in folders]
        if missing := [folder for folder in self._roots if not folder.is_dir()]:
            raise RequestError(f"--upstream {missing[0]}: expected a folder, found none")
        self._stood: dict[tuple[str, int], Stood | None] = {}
        self._lock = threading.Lock()
        self._archive: Kept[Path, Archive] = Kept(ARCHIVES, archives.opened)

    def look(self, rejects: Iterable[RejectRow], seconds: float = math.inf) -> bool:
        """Look up what stood there, each file once, one at least, until the time is up. Whether that was all."""
        until = time.monotonic() + seconds
        with self._lock:
            waiting: defaultdict[str, list[int]] = defaultdict(list)
            for reject in rejects:
                if not self.looked(reject):
                    waiting[reject.file].append(reject.row)
            for looked, (file, numbers) in enumerate(waiting.items()):
                if looked and time.monotonic() > until:
                    return False
                self._look(file, numbers)
        return True

    def looked(self, reject: RejectRow) -> bool:
        """Whether it was looked up."""
        return (reject.file, reject.row) in self._stood

    def stood(self, reject: RejectRow) -> Stood | None:
        """What stood there; None where it can not be found or read."""
        self.look([reject])
        return self._stood.get((reject.file, reject.row))

    def picture(self, reject: RejectRow) -> bytes | None:
        """The bytes of the first file, in a folder or an archive, that the detail or the row names and that begins as a picture."""
        stood, beside = self.stood(reject), self._found(reject.file)
        named = [word.strip("'\",:;()") for word in reject.detail.split()] + (stood.names if stood else [])
        for name in list(dict.fromkeys(name for name in named if name.lower().endswith(SUFFIXES)))[:NAMED]:
            data = self._read(name, beside)
            if data and paint.sniffed(data).startswith("image/"):
                return data
        return None

    def _look(self, file: str, numbers: list[int]) -> None:
        path = self._found(file)
        found = {number: _stood(data, parquet=path.suffix == ".parquet") for number, data in rows.read(path, numbers)} if path else {}
        for number in numbers:
            self._stood[file, number] = found.get(number)
        for old in list(islice(self._stood, max(0, len(self._stood) - STOOD))):
            del self._stood[old]

    def _read(self, name: str, beside: Path | None) -> bytes | None:
        """The file of this name below the folders, else the member of an archive."""
        path = self._found(name)
        if path is not None:
            with contextlib.suppress(OSError):
                return path.read_bytes() if path.stat().st_size <= PICTURE else None
        for archive in self._archives(beside):
            member = _likeliest(self._archive(archive).named(PurePosixPath(name).name), name)
            if member is not None:
                return self._archive(archive).read(member)
        return None

    def _archives(self, beside: Path | None) -> Sequence[Path]:
        """The one that is called as the annotations are and lies beside them, else the largest: those hold the pictures."""
        near = [beside.with_suffix(kind) for kind in archives.KINDS if beside.with_suffix(kind) != beside] if beside else []
        return [path for path in near if str(path) in self._files.get(path.name, ())] or self._largest

    @cached_property
    def _largest(self) -> list[Path]:
        found = [Path(path) for name, paths in self._files.items() if name.lower().endswith(archives.KINDS) for path in paths]
        return sorted(found, key=lambda path: -path.stat().st_size)[:ARCHIVES]

    def _found(self, name: str) -> Path | None:
        """The file below a root that is called so; by its path where that fits, else by its last part where only one is."""
        pure = PurePosixPath(name)
        if not pure.name or pure.is_absolute() or ".." in pure.parts or "\0" in name or "://" in name:
            return None
        found = _likeliest(self._files.get(pure.name, ()), pure.as_posix())
        path = Path(found) if found else None
        return path if path and any(path.resolve().is_relative_to(root) for root in self._roots) else None

    @cached_property
    def _files(self) -> dict[str, list[str]]:
        """Every file by its last part. Links out of a root are not followed."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for path in islice((path for root in self._roots for path in _walk(root)), FILES):
            found[os.path.basename(path)].append(path)
        return dict(found)


def _walk(root: Path) -> Iterator[str]:
    waiting = [str(root)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file() and (not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(root)):
                    yield entry.path


def _likeliest(paths: Sequence[str], name: str) -> str | None:
    """Of paths with one last part: the first that ends as a name with folders does, else the only one."""
    exact = [path for path in paths if f"/{path}".endswith(f"/{name}")]
    if exact and "/" in name:
        return exact[0]
    return paths[0] if len(paths) == 1 else None  # of several, nobody knows


def _stood(data: bytes, *, parquet: bool) -> Stood:
    """A field a line where it is JSON, else as it stands."""
    try:
        row = msgspec.json.decode(data)
        text = _NUMBERS.sub(lambda found: b"[" + b" ".join(found[1].split()) + b"]", msgspec.json.format(data, indent=1))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        row, text = None, data
    names = [name for name in _strings(row) if name.lower().endswith(SUFFIXES)]
    if parquet and isinstance(row, dict) and isinstance(key := row.get("key"), str):  # img2dataset's
        names = [key + suffix for suffix in SUFFIXES]
    shown = text[: 4 * LETTERS].decode("utf-8", "backslashreplace")
    return Stood(shown if len(shown) <= LETTERS else shown[:LETTERS] + " …", names[:NAMED])


def _strings(row: Any) -> Iterator[str]:
    """Every string in a row, the shortest way down first."""
    waiting = deque([row])
    while waiting:
        value = waiting.popleft()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting.extend([*value, *value.values()])
        elif isinstance(value, list):
            waiting.extend(value)
