"""A folder: a place that is a directory of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from shards import durable
from shards.sink import Buffer

PIECE = 8 << 20  # bytes


class Folder:
    """A directory as a Place. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def url(self) -> str:
        """The path."""
        return str(self.folder)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """See Place."""
        with (self.folder / name).open("rb") as file:
            return file.read(-1 if limit is None else limit)

    def read_range(self, name: str, offset: int, length: int) -> Buffer:
        """See Place."""
        with (self.folder / name).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)

    def size(self, name: str) -> int:
        """See Place."""
        return (self.folder / name).stat().st_size

    def version(self, name: str) -> tuple[int, str]:
        """See Place. A file that is replaced has another inode, one that is written to another time."""
        found = (self.folder / name).stat()
        return found.st_size, f"{found.st_ino}-{found.st_mtime_ns}"

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See Place."""
        return ((name, stat.st_size) for name, stat in self._listed(prefix))

    def modified(self, prefix: str = "") -> Iterator[tuple[str, float]]:
        """See Place."""
        return ((name, stat.st_mtime) for name, stat in self._listed(prefix))

    def _listed(self, prefix: str) -> list[tuple[str, os.stat_result]]:
        """Every file whose name begins so, in order of name. What is being written aside has no name yet."""
        parent = prefix.rpartition("/")[0]
        found = []
        for root, _, files in os.walk(self.folder / parent):
            for file in files:
                name = os.path.relpath(os.path.join(root, file), self.folder)
                if name.startswith(prefix) and not (file.startswith(".") and file.endswith(".part")):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((name, os.stat(os.path.join(root, file))))
        return sorted(found)

    def write(self, name: str, data: bytes) -> None:
        """See Place."""
        durable.write(self._made(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """See Place."""
        path = self._made(name)
        whole = path.with_name(f".{path.name}.new.{threading.get_native_id()}.part")
        try:
            durable.write(whole, data)
            os.link(whole, path)
        except FileExistsError:
            return False
        finally:
            whole.unlink(missing_ok=True)
        durable.sync_folder(path.parent)
        return True

    def upload(self, name: str, path: Path) -> None:
        """See Place."""
        target = self._made(name)
        try:
            with durable.aside(target).open("wb") as file, path.open("rb") as source:
                shutil.copyfileobj(source, file, PIECE)
                file.flush()
                os.fsync(file.fileno())
            durable.publish(target)
        finally:
            durable.aside(target).unlink(missing_ok=True)

    def stream(self, name: str, offset: int = 0) -> Iterator[Buffer]:
        """See Place."""
        with (self.folder / name).open("rb", buffering=0) as file:
            file.seek(offset)
            while piece := file.read(PIECE):
                yield piece

    def remove(self, name: str) -> None:
        """See Place."""
        (self.folder / name).unlink(missing_ok=True)

    def _made(self, name: str) -> Path:
        """The object's path, its directory made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
