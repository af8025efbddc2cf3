"""Picture stores: a directory, a .zip, a .tar or a prefix of an object store, read in place, by relative name.

Names are listed once (`names`), never asked for one by one; a picture is then opened by name. Names come from annotation files, which can
be hostile: `safe` refuses absolute names and `..`. A file under another suffix (OCR-VQA says .jpg of what was saved as .png) is found by
its stem. What is read is bounded by MAX_BYTES, compressed or not.
"""

from __future__ import annotations

import errno
import lzma
import mmap
import os
import posixpath
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from pipelines.names import in_order
from schemas import Reject, RequestError
from shards.foreign_tar import TarDamage, members
from shards.place import STORES, Place, at

MAX_BYTES = 256 << 20  # of one picture
RUN = 1024  # names that are listed at a time
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp", ""))  # of what may be a picture's twin


def safe(name: str) -> str:
    """The name, normalised. Raises Reject(image_path) where it would leave its root."""
    clean = posixpath.normpath(name) if name else ""
    if not clean or clean == "." or clean == ".." or clean.startswith(("/", "../")) or "\0" in clean or len(clean) > 4096:
        raise Reject("image_path", f"expected a path inside the picture store, found {name[:200]!r}")
    return clean


# What zipfile and what it unpacks with raise: NotImplementedError is a RuntimeError, a name that is no UTF-8 a ValueError.
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, RuntimeError, OSError, EOFError, ValueError, OverflowError)


class Store(Protocol):
    """A root that holds pictures."""

    root: Path

    def names(self) -> Iterator[tuple[str, int]]:
        """Relative name and size in bytes of every file, in order."""
        ...

    def read(self, name: str) -> bytes | None:
        """The file's bytes, None where there is none. Raises Reject(image_bytes) above MAX_BYTES."""
        ...

    def twin(self, name: str) -> str | None:
        """Another file of the same folder and stem, under a picture's suffix."""
        ...


class _Listed:
    """A folder that is being listed: its names in order, those of folders with a slash, so that the names below them come in order, too."""

    def __init__(self, name: str, identity: tuple[int, int], entries: Iterable[os.DirEntry[str]]) -> None:
        self.name, self.identity = name, identity
        self.nested = False
        self._names, self._rest = in_order(self._marked(entries)), []

    def _marked(self, entries: Iterable[os.DirEntry[str]]) -> Iterator[str]:
        for entry in entries:
            if entry.is_file():
                yield entry.name
            elif entry.is_dir():
                self.nested = True
                yield f"{entry.name}/"
            elif entry.is_symlink() and not os.path.exists(entry.path):
                yield entry.name

    def next(self) -> tuple[list[str], str | None]:
        """The next files, at most RUN, and the folder behind them if one follows; neither where this is through."""
        names = self._rest or list(islice(self._names, RUN))
        at = next((at for at, name in enumerate(names) if name[-1] == "/"), None) if self.nested else None
        self._rest = [] if at is None else names[at + 1 :]
        return (names, None) if at is None else (names[:at], names[at])


class Folder:
    """A directory. Links are followed: data sets are often put together from them."""

    def __init__(self, root: Path) -> None:
        self.root, self._prefix = root, f"{root}/"
        self._stems: dict[str, dict[str, str]] = {}

    def names(self) -> Iterator[tuple[str, int]]:
        """See Store."""
        for names in self.runs():
            yield from self.sized(names)

    def sized(self, names: Sequence[str]) -> Iterator[tuple[str, int]]:
        """These files with their sizes, but for links to nothing. Raises RequestError."""
        try:
            return zip(names, [os.stat(self._prefix + name).st_size for name in names], strict=True)
        except OSError as error:
            there = [name for name in names if not os.path.islink(self._prefix + name) or os.path.exists(self._prefix + name)]
            if len(there) < len(names):
                return self.sized(there)
            raise RequestError(f"{error.filename}: expected a readable file, found {error.strerror}") from error

    def runs(self) -> Iterator[list[str]]:
        """Relative name of every file, and link to nothing, in order: at most RUN at a time, of one folder.

        Of a folder of any size a part is in memory. Raises RequestError.
        """
        open = [self._listed("")]
        while open:
            folder = open[-1].name
            names, inner = open[-1].next()
            if names:
                yield [folder + name for name in names]
            elif inner is None:
                open.pop()
            if inner is not None:
                found = self._listed(folder + inner)
                # A link back up is not followed; the same folder linked twice side by side counts twice.
                open += [found] if found.identity not in {one.identity for one in open} else []

    def _listed(self, folder: str) -> _Listed:
        try:
            found = os.stat(self._prefix + folder)
            with os.scandir(self._prefix + folder) as entries:
                return _Listed(folder, (found.st_dev, found.st_ino), entries)
        except OSError as error:
            raise RequestError(f"{self._prefix}{folder}: expected a readable folder, found {error.strerror}") from error

    def read(self, name: str) -> bytes | None:
        """See Store."""
        try:
            data = _contents(self._prefix + name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise Reject("image_unreadable", f"{name}: {error.strerror}") from error
        return _bounded(name, data)

    def twin(self, name: str) -> str | None:
        """See Store."""
        folder, _, _ = name.rpartition("/")
        if folder not in self._stems:
            self._stems[folder] = self._stems_of(folder)
        return self._stems[folder].get(stem(name))

    def _stems_of(self, folder: str) -> dict[str, str]:
        try:
            with os.scandir(self.root / folder) as entries:
                names = sorted(entry.name for entry in entries if entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise Reject("image_unreadable", f"{folder[:200]}: {error.strerror}") from error
        return by_stem(f"{folder}/{name}" if folder else name for name in names)


class Zip:
    """A .zip, by its central directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    @cached_property
    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.root)
        except _BROKEN_ZIP as error:
            raise RequestError(f"{self.root}: expected a zip of pictures, found {error}") from error

    def names(self) -> Iterator[tuple[str, int]]:
        """See Store."""
        return in_order((entry.filename, entry.file_size) for entry in self._open.infolist() if not entry.is_dir())

    def read(self, name: str) -> bytes | None:
        """See Store."""
        try:
            entry = self._open.getinfo(name)
            if entry.file_size > MAX_BYTES:
                return _bounded(name, b"", entry.file_size)
            with self._open.open(entry) as file:
                return _bounded(name, file.read(MAX_BYTES + 1))
        except KeyError:
            return None
        except _BROKEN_ZIP as error:
            raise Reject("image_unreadable", f"{name}: {error}"[:200]) from error

    @cached_property
    def _stems(self) -> dict[str, str]:
        return by_stem(name for name, _ in self.names())

    def twin(self, name: str) -> str | None:
        """See Store."""
        return self._stems.get(posixpath.splitext(name)[0])


class Tar:
    """An uncompressed .tar, by its headers, which are read once and travel to the workers."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    @cached_property
    def _open(self) -> int:
        return os.open(self.root, os.O_RDONLY)

    @cached_property
    def _members(self) -> dict[str, tuple[int, int]]:
        try:
            return {posixpath.normpath(member.name): (member.offset, member.size) for member in members(tar_bytes(self.root), Counter())}
        except TarDamage as damage:
            found = f"{damage.found} (expected {damage.expected})"
            raise RequestError(f"{self.root}: expected a whole, uncompressed tar of pictures, found {found}") from damage
        except OSError as error:
            raise RequestError(f"{self.root}: expected a readable tar of pictures, found {error.strerror}") from error

    def names(self) -> Iterator[tuple[str, int]]:
        """See Store."""
        return in_order((name, size) for name, (_, size) in self._members.items())

    def read(self, name: str) -> bytes | None:
        """See Store."""
        if name not in self._members:
            return None
        offset, size = self._members[name]
        if size > MAX_BYTES:
            return _bounded(name, b"", size)
        data = os.pread(self._open, size, offset)
        if len(data) < size:
            raise Reject("image_unreadable", f"{name}: expected {size} bytes, found {len(data)} at the end of {self.root.name}")
        return data

    @cached_property
    def _stems(self) -> dict[str, str]:
        return by_stem(self._members)

    def twin(self, name: str) -> str | None:
        """See Store."""
        return self._stems.get(posixpath.splitext(name)[0])


def _no_folders(listed: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """What a store lists, in order, but for empty objects that stand for a folder: others' names go on behind theirs and a slash."""
    empty: list[str] = []
    for name, size in listed:
        yield from ((one, 0) for one in empty if name > f"{one}0" and not name.startswith(f"{one}/"))  # no more of that folder can come
        empty = [one for one in empty if name <= f"{one}0" and not name.startswith(f"{one}/")]
        if size and name:
            yield name, size
        elif name:
            empty.append(name)
    yield from ((one, 0) for one in empty)


class Prefix:
    """A prefix of an object store. A picture costs a request, also one that is not there."""

    def __init__(self, root: Path, place: Place) -> None:
        self.root, self.place = root, place
        self._stems: dict[str, dict[str, str]] = {}

    def names(self) -> Iterator[tuple[str, int]]:
        """See Store. The empty objects that stand for folders in a web console are none."""
        return in_order(_no_folders(self.place.names()))

    def read(self, name: str) -> bytes | None:
        """See Store."""
        try:
            return _bounded(name, self.place.read(name, MAX_BYTES + 1))
        except FileNotFoundError as error:
            if any(len(os.fsencode(part)) > 255 for part in name.split("/")):  # the reason that a directory gives
                raise Reject("image_unreadable", f"{name}: {os.strerror(errno.ENAMETOOLONG)}") from error
            return None

    def twin(self, name: str) -> str | None:
        """See Store."""
        folder, slash, _ = name.rpartition("/")
        if folder not in self._stems:
            start = len(folder + slash)
            self._stems[folder] = by_stem([name for name, _ in self.place.names(folder + slash) if "/" not in name[start:]])
        return self._stems[folder].get(stem(name))


def url(root: Path | str) -> str | None:
    """The URL of a store that a path was made of: of its two slashes one is left. None where it is none."""
    scheme, slash, rest = str(root).partition(":/")
    return f"{scheme}://{rest.lstrip('/')}" if slash and scheme in STORES else None


def open_store(root: Path) -> Store:
    """The store at this path, or at the URL that it was made of. Raises RequestError where there is none."""
    if whole := url(root):
        place = at(whole)
        if next(place.names(), None) is None:
            raise RequestError(f"{whole}: expected a prefix that holds pictures, found nothing")
        return Prefix(root, place)
    if str(root).startswith("file:/"):
        return open_store(Path(str(root).removeprefix("file:")))
    if root.is_dir():
        return Folder(root)
    if not root.exists():
        raise RequestError(f"{root}: expected a directory, .zip or .tar of pictures, found nothing")
    if root.suffix.lower() == ".zip":
        return Zip(root)
    if root.suffix.lower() == ".tar":
        return Tar(root)
    raise RequestError(f"{root}: expected a directory, .zip or .tar of pictures, found a {root.suffix or 'plain'} file")


def _contents(path: str) -> bytes:
    """A file's bytes, and one too many above MAX_BYTES. Bare calls: opening costs a quarter of what Path.read_bytes does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer must not hang
    try:
        size = min(os.fstat(descriptor).st_size, MAX_BYTES) + 1
        data = os.read(descriptor, size)
        while 0 < len(data) < size - 1 and (more := os.read(descriptor, size - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def tar_bytes(path: Path) -> mmap.mmap | bytes:
    """A tar's bytes, mapped."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b""


def stem(name: str) -> str:
    """The name without its suffix: what the same picture in another format is called, too."""
    return posixpath.splitext(name)[0]


def by_stem(names: Iterator[str] | Sequence[str] | dict[str, Any]) -> dict[str, str]:
    """Stem to name, of what may be a picture; of several, the first in order of name."""
    parted = (posixpath.splitext(name) for name in sorted(names, reverse=True))
    return {before: before + suffix for before, suffix in parted if suffix.lower() in SUFFIXES}


def _bounded(name: str, data: bytes, size: int | None = None) -> bytes:
    if (size or len(data)) > MAX_BYTES:
        raise Reject("image_bytes", f"{name}: expected at most {MAX_BYTES} bytes, found {size or 'more'}")
    return data
