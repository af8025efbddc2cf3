"""Inputs: what a conversion is made from, as hashes, so that a manifest can say so and a run that goes on can notice a change.

Annotation files by the sha256 of their bytes; picture stores (and the .tar files in an annotation folder, which hold pictures) by the
hash of the sorted (relative name, size) list. Only names relative to their root are kept: the same input elsewhere is the same input.
Files are read where `each` has them read, some thousands a task; here, only names come by, and what a task found of them.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipelines import nearby
from pipelines.names import Names
from pipelines.source import Source
from pipelines.stores import Folder, open_store, url
from schemas import SourceError

T = TypeVar("T")
R = TypeVar("R")
FEW = 64  # files that are hashed here, by threads
TASKS = 4096  # at most, of one folder
REQUESTS = 16  # at a time, of a task whose files lie on object storage
LINES = 4096  # of a picture store's list at a time


class Each(Protocol):
    """What `map` is: the builtin, or an executor's."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """The function's result of every item, in order."""
        ...


def options(source: Source) -> dict[str, Any]:
    """The source's plain options, by name."""
    return {field.name: getattr(source, field.name) for field in fields(source) if not field.metadata["reads"]}


def inputs(source: Source, each: Each = map) -> list[dict[str, Any]]:
    """One entry a path: option, name, files, bytes, sha256. Raises SourceError where an annotation file can not be read.

    each: who hashes many files.
    """
    absent = set(getattr(source, "absent", tuple)())  # MMC4's shards that never existed count in its list all the same
    given = [(field, path) for field in fields(source) if field.metadata["reads"] for path in paths(getattr(source, field.name))]
    read = [path for field, path in given if field.metadata["reads"] == "annotations" and path not in absent]
    files = [path for path in read if not nearby.is_folder(path)]
    hashed = dict(zip(files, spread(_hash, files, len(files), each), strict=True))
    hashed |= {path: _folder(path, _names(source, path), each) for path in read if path not in hashed}
    hashed |= {path: _entry(0) for path in absent}
    return [
        {
            "option": field.name,
            "name": path.name,
            **(hashed[path] if field.metadata["reads"] == "annotations" else _pictures(path, each)),
        }
        for field, path in given
    ]


def paths(value: Any) -> tuple[Path, ...]:
    """The paths in an option: none, one or several."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple) else (value,)


def _entry(files: int, size: int = 0, sha256: str | None = None) -> dict[str, Any]:
    return {"files": files, "bytes": size, "sha256": sha256 or hashlib.sha256().hexdigest()}


def share(number: int) -> int:
    """How many of so many files a task has."""
    return 1 if number <= FEW else max(FEW, math.ceil(number / TASKS))


def spread(function: Callable[[T], R], items: Iterable[T], number: int, each: Each) -> Iterator[R]:
    """The function's result of every item, so many in all: of a few from threads, which are there at once."""
    if number > FEW:
        yield from each(function, items)
        return
    with ThreadPoolExecutor() as pool:
        yield from pool.map(function, items)


def _hash(path: Path) -> dict[str, Any]:
    """The entry of a file."""
    sha256, size = _read(nearby.digest, "", str(path))
    return _entry(1, size, sha256)


def _folder(path: Path, names: Names, each: Each) -> dict[str, Any]:
    """The entry of a folder of these files."""
    sha256, total = hashlib.sha256(), 0
    tasks = names.parts(share(len(names)))
    for rows, size in spread(partial(_rows, str(path)), tasks, len(names), each):
        sha256.update(rows)
        total += size
    return _entry(len(names), total, sha256.hexdigest())


def _names(source: Source, folder: Path) -> Names:
    """The files of an annotation folder that count: the source's own list, or what lies there. img2dataset's _tmp and the like do not."""
    listed = getattr(source, "listed", None)
    return (listed and listed(folder)) or Names(name for run in nearby.runs(folder) if nearby.counted(run) for name in run)


def _rows(root: str, names: Sequence[str]) -> tuple[bytes, int]:
    """What stands in the folder's list for these files, and their bytes together."""
    if url(root) is None:
        found = [_row(root, name) for name in names]
    else:
        with ThreadPoolExecutor(REQUESTS) as pool:
            found = list(pool.map(partial(_row, root), names))
    return _encoded([row for row, _ in found]), sum([size for _, size in found])


def _row(root: str, name: str) -> tuple[str, int]:
    if name.endswith(".tar"):
        size = _read(nearby.size, root, name)
        return f"{name}\t{size}\n", size
    sha256, size = _read(nearby.digest, root, name)
    return f"{name}\t{sha256}\n", size


def _read(function: Callable[[str, str], R], root: str, name: str) -> R:
    try:
        return function(root, name)
    except OSError as error:
        raise SourceError(f"{nearby.called(Path(root, name))}: expected a readable file, found {error.strerror}") from error


def _pictures(path: Path, each: Each) -> dict[str, Any]:
    """The entry of a picture store. Of a folder others ask for the sizes: that takes twice as long as listing it."""
    store = open_store(path)
    if isinstance(store, Folder):
        found = each(partial(_sized, str(path)), _some(itertools.chain.from_iterable(store.runs())))
    else:
        found = map(_lines, _some(store.names()))
    sha256, files, total = hashlib.sha256(), 0, 0
    for rows, number, size in found:
        sha256.update(rows)
        files += number
        total += size
    return _entry(files, total, sha256.hexdigest())


def _some(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(itertools.islice(rest, LINES)):
        yield some


def _sized(root: str, names: Sequence[str]) -> tuple[bytes, int, int]:
    """What stands in a picture store's list for these files of it, how many they are, and their bytes together."""
    return _lines(list(Folder(Path(root)).sized(names)))


def _lines(listed: Sequence[tuple[str, int]]) -> tuple[bytes, int, int]:
    return _encoded([f"{name}\t{size}\n" for name, size in listed]), len(listed), sum([size for _, size in listed])


def _encoded(rows: Sequence[str]) -> bytes:
    return "".join(rows).encode("utf-8", "surrogateescape")
