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
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from schemas import Reject, RequestError
from shards.foreign_tar import TarDamage, members
from shards.place import STORES, Place, at

MAX_BYTES = 256 << 20  # of one picture
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp", ""))  # of what may be a picture's twin


def safe(name: str) -> str:
    """The name, normalised. Raises Reject(image_path) where it would leave its root."""
    clean = posixpath.normpath(name) if name else ""
    if not clean or clean == "." or clean == ".." or clean.startswith(("/", "../")) or "\0" in clean or len(clean) > 4096:
        raise Reject("image_path", f"expected a path inside the picture store, found {name[:200]!r}")
    return clean


class Store(Protocol):
    """A root that holds pictures."""

    root: Path

    def names(self) -> Iterator[tuple[str, int]]:
        """Relative name and size in bytes of every file, in no particular order."""
        ...

    def read(self, name: str) -> bytes | None:
        """The file's bytes, None where there is none. Raises Reject(image_bytes) above MAX_BYTES."""
        ...

    def twin(self, name: str) -> str | None:
        """Another file of the same folder and stem, under a picture's suffix."""
        ...


class Folder:
    """A directory. Links are followed: data sets are often put together from them."""

    def __init__(self, root: Path) -> None:
        self.root, self._prefix = root, f"{root}/"
        self._stems: dict[str, dict[str, str]] = {}

    def names(self) -> Iterator[tuple[str, int]]:
        """See Store."""
        waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
        while waiting:
            folder, above = waiting.pop()
            try:
                here = (self.root / folder).stat()
                if (here.st_dev, here.st_ino) in above:
                    continue  # a link back up; the same folder linked twice side by side counts twice
                above |= {(here.st_dev, here.st_ino)}
                with os.scandir(self.root / folder) as entries:
                    for entry in entries:
                        if entry.is_dir():
                            waiting.append((f"{folder}{entry.name}/", above))
                        elif entry.is_file():
                            yield f"{folder}{entry.name}", entry.stat().st_size
            except OSError as error:
                raise RequestError(f"{self.root / folder}: expected a readable folder, found {error.strerror}") from error

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
        except (zipfile.BadZipFile, OSError) as error:
            raise RequestError(f"{self.root}: expected a zip of pictures, found {error}") from error

    def names(self) -> Iterator[tuple[str, int]]:
        """See Store."""
        for entry in self._open.infolist():
            if not entry.is_dir():
                yield entry.filename, entry.file_size

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
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, OSError, EOFError, ValueError) as error:
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
        return ((name, size) for name, (_, size) in self._members.items())

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


class Prefix:
    """A prefix of an object store. A picture costs a request, also one that is not there."""

    def __init__(self, root: Path, place: Place) -> None:
        self.root, self.place = root, place
        self._stems: dict[str, dict[str, str]] = {}

    def names(self) -> Iterator[tuple[str, int]]:
        """See Store. The empty objects that stand for folders in a web console are none."""
        listed = list(self.place.names())
        folders = {name[:at] for name, _ in listed for at, letter in enumerate(name) if letter == "/"}
        return ((name, size) for name, size in listed if name and (size or name not in folders))

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


def _url(root: Path) -> str | None:
    """The URL that a path was made of: of its two slashes one is left."""
    scheme, slash, rest = str(root).partition(":/")
    return f"{scheme}://{rest}" if slash and scheme in STORES else None


def open_store(root: Path) -> Store:
    """The store at this path, or at the URL that it was made of. Raises RequestError where there is none."""
    if url := _url(root):
        place = at(url)
        if next(place.names(), None) is None:
            raise RequestError(f"{url}: expected a prefix that holds pictures, found nothing")
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
