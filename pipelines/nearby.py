"""Nearby: annotation files, wherever they lie, as files of this machine.

A local path is itself. An object of a store is copied into the cache folder when it is first needed, once a machine however many workers
need it, and known by its URL, its size and the store's own mark of this version: an object that was overwritten is another one. Whoever
uses a copy holds it; one that was made in a `briefly` block, which is how workers read the files of a unit, goes when that ends. Others,
such as COCO's JSON, stay until the cache needs their room. Small files by the million are read without a copy (`read`, `digest`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import IO, NamedTuple

from pipelines.stores import RUN, Folder, open_store, url
from schemas import RequestError
from shards.cache import Cache, default_folder
from shards.download import Stop
from shards.manifest import ShardInfo
from shards.place import Place, at

FOLDER = "annotations"  # in the folder of the cache of shards
_STEP = 1 << 20  # bytes of a local file that are read at a time


def called(path: Path) -> str:
    """The path, or the URL that it was made of, as a person wrote it."""
    return url(path) or str(path)


def is_file(path: Path) -> bool:
    """Whether there is such a file or object. Raises StoreError."""
    found = _object("", str(path))
    if found is None:
        return Path(_local(str(path))).is_file()
    try:
        return bool(found.name) and found.place.size(found.name) >= 0
    except FileNotFoundError:
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a directory, or there are objects below such a prefix and none of its very name. Raises StoreError."""
    whole = url(path)
    if whole is None:
        return Path(_local(str(path))).is_dir()
    return not is_file(path) and next(_place(whole).names(), None) is not None


def runs(folder: Path) -> Iterator[list[str]]:
    """Relative name of every file of a folder and of those in it, but for hidden ones, in order: some at a time, of one folder.

    Raises RequestError, StoreError.
    """
    store = open_store(folder)
    for names in store.runs() if isinstance(store, Folder) else _by_folder(name for name, _ in store.names()):
        start = names[0].rfind("/") + 1
        yield [name for name in names if not name.startswith(".", start)]


def _by_folder(names: Iterable[str]) -> Iterator[list[str]]:
    """Neighbours of one folder, at most RUN."""
    for _, of_folder in groupby(names, lambda name: name.rpartition("/")[0]):
        while run := list(islice(of_folder, RUN)):
            yield run


def counted(names: list[str]) -> bool:
    """Whether these files, of one folder, are a part of the input: not where that, or one above it, begins with a dot or an underscore."""
    return not names or not any(part.startswith((".", "_")) for part in names[0].split("/")[:-1])


def top(folder: Path) -> list[str]:
    """The names that stand in a folder itself, in order. Raises OSError, StoreError."""
    whole = url(folder)
    if whole is None:
        return sorted(os.listdir(_local(str(folder))))
    return [name for name, _ in _place(whole).names() if "/" not in name]


def near(path: Path) -> Path:
    """Where the file lies on this machine. Raises FileNotFoundError, RequestError where there is no room for a copy, StoreError."""
    whole = url(path)
    if whole is None:
        return Path(_local(str(path)))
    copy = _copies.get(whole)
    if copy is None or not copy.path.exists():
        copy = _copies[whole] = _copied(path)
    return copy.path


@contextlib.contextmanager
def briefly() -> Iterator[None]:
    """Copies that are made in this block go when it ends."""
    before = set(_copies)
    try:
        yield
    finally:
        for whole in set(_copies) - before:
            copy = _copies.pop(whole)
            _Copies(copy.path.parent).drop(copy.info, os.fstat(copy.lock))
            os.close(copy.lock)


def read(root: str, name: str, most: int) -> bytes:
    """The first bytes of a file under a root, at most so many; no copy is made. Raises OSError, StoreError."""
    found = _object(root, name)
    if found is not None:
        return found.place.read(found.name, most)[:most]
    with open(os.path.join(_local(root), _local(name)), "rb") as file:
        return file.read(most)


def size(root: str, name: str) -> int:
    """Bytes of a file under a root. Raises OSError, StoreError."""
    found = _object(root, name)
    return os.stat(os.path.join(_local(root), _local(name))).st_size if found is None else found.place.size(found.name)


def digest(root: str, name: str) -> tuple[str, int]:
    """sha256 and bytes of a file under a root; no copy is made. Raises OSError, StoreError."""
    found = _object(root, name)
    if found is None:
        return _digest(os.path.join(_local(root), _local(name)))
    if copy := _copies.get(f"{found.place.url}/{found.name}"):
        return _digest(copy.path)
    sha256, length = hashlib.sha256(), 0
    for piece in found.place.stream(found.name):
        sha256.update(piece)
        length += len(piece)
    return sha256.hexdigest(), length


def _digest(path: str | Path) -> tuple[str, int]:
    """Bare calls: of millions of small files, opening them is most of the time."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sha256, length = hashlib.sha256(), 0
        while piece := os.read(file, _STEP):
            sha256.update(piece)
            length += len(piece)
        return sha256.hexdigest(), length
    finally:
        os.close(file)


class _Object(NamedTuple):
    """Of a store."""

    place: Place
    name: str


def _object(root: str, name: str) -> _Object | None:
    """The object of this name under a root, or, without a root, of this URL: nameless where that is a bucket. None where it is a file."""
    if root:
        whole = url(root)
        return None if whole is None else _Object(_place(whole), name)
    scheme, separator, rest = (url(name) or "").partition("://")
    if not separator:
        return None
    parent, slash, name = rest.rpartition("/")
    return _Object(_place(f"{scheme}://{parent}"), name) if slash else _Object(_place(f"{scheme}://{rest}"), "")


@lru_cache(256)
def _place(whole: str) -> Place:
    """With its client, which costs more to make than an object to read."""
    return at(whole)


def _local(name: str) -> str:
    return name.removeprefix("file:") if name.startswith("file:/") else name


class _Copy(NamedTuple):
    """A copy that this process holds: where it is in the cache, the descriptor that has the lock, what the cache knows it by."""

    path: Path
    lock: int
    info: ShardInfo


_copies: dict[str, _Copy] = {}  # by URL


class _Copies(Cache):
    """Whole objects in a folder. What they hold is not known beforehand, so they are named by their version; shards are by content."""

    def copy(self, place: Place, info: ShardInfo) -> _Copy:
        """The object, held. Raises as `open` does."""
        with self.open(place, info).file as file:
            return _Copy(self.path(info), os.dup(file.fileno()), info)

    def bring(self, place: Place, info: ShardInfo, file: IO[bytes], stop: Stop) -> None:
        """See Cache: verified by its size, and by being the same version behind the last byte as before the first."""
        for piece in place.stream(info.name):
            stop.check()
            file.write(piece)
        file.flush()
        if file.tell() != info.bytes or _info(place, info.name) != info:
            raise RequestError(f"{place.url}/{info.name}: expected an object that stays as it is, found it overwritten while it was read")


def _copied(path: Path) -> _Copy:
    found = _object("", str(path))
    if found is None or not found.name:
        raise FileNotFoundError(errno.ENOENT, "a bucket, no object", called(path))
    return _Copies(default_folder() / FOLDER).copy(found.place, _info(found.place, found.name))


def _info(place: Place, name: str) -> ShardInfo:
    """What the cache knows an object by."""
    size, mark = place.version(name)
    key = hashlib.sha256("\n".join((place.url, name, str(size), mark)).encode()).hexdigest()
    return ShardInfo(name=name, records=0, images=0, bytes=size, sha256=key, index_sha256="")
