"""Outlet: where the pictures of a shard go. Nothing has its name before it is whole.

`tar`: NNNNN.tar beside its ledger, as img2dataset lays it out: KEY.jpg, KEY.txt where there are captions, KEY.json. Pictures of a later try
are appended, which costs no more than their own bytes. The ledger says how long the tar is, so what a kill leaves behind its end is cut
off before anything else is appended; readers find members by key, and never notice.

`files`: images/KEY, where the key is the path that an annotation knows the picture by.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from shards import durable
from shards.ustar import END, header, padding

IMAGES = "images"


class Outlet(Protocol):
    """The pictures of one shard, on their way."""

    def add(self, key: str, suffix: str, data: bytes, caption: str | None, row: Mapping[str, Any]) -> None:
        """Take a picture. Raises OSError."""
        ...

    def publish(self) -> int | None:
        """Make what was added last: the bytes of the tar, None where there is none. Raises OSError."""
        ...


class Tar:
    """NNNNN.tar. bytes: how long it is already, None for a new one."""

    def __init__(self, path: Path, work: Path, size: int | None) -> None:
        self._path, self._size = path, size
        self._part = work / path.name
        self._file: IO[bytes] = self._part.open("wb")

    def add(self, key: str, suffix: str, data: bytes, caption: str | None, row: Mapping[str, Any]) -> None:
        """See Outlet."""
        self._member(f"{key}.{suffix}", data)
        if "caption" in row:
            self._member(f"{key}.txt", (caption or "").encode())
        self._member(f"{key}.json", json.dumps(row, indent=4).encode())

    def _member(self, name: str, data: bytes) -> None:
        self._file.write(header(name, len(data)))
        self._file.write(data)
        self._file.write(padding(len(data)))

    def publish(self) -> int:
        """See Outlet."""
        if self._size is None:
            self._file.write(END)
            return self._renamed()
        self._file.close()
        with self._path.open("r+b") as tar, self._part.open("rb") as more:
            tar.seek(self._size - len(END))
            shutil.copyfileobj(more, tar, 1 << 20)
            tar.write(END)
            tar.truncate()
            _synced(tar)
            size = tar.tell()
        self._part.unlink()
        return size

    def _renamed(self) -> int:
        size = self._file.tell()
        _synced(self._file)
        self._file.close()
        self._part.replace(self._path)
        durable.sync_folder(self._path.parent)
        return size


def mend(path: Path, size: int) -> bool:
    """Cut off what a kill left behind the end that the ledger knows. False where the tar is shorter than that, or gone."""
    try:
        with path.open("r+b") as tar:
            there = tar.seek(0, os.SEEK_END)
            if there > size:
                tar.seek(size - len(END))
                tar.write(END)
                tar.truncate()
                _synced(tar)
            return there >= size
    except FileNotFoundError:
        return False


class Files:
    """images/KEY. A key is one or more plain names, looked at by whoever made it."""

    def __init__(self, folder: Path, work: Path) -> None:
        self._root, self._part, self._made = folder / IMAGES, work / "picture", set[Path]()

    def add(self, key: str, suffix: str, data: bytes, caption: str | None, row: Mapping[str, Any]) -> None:
        """See Outlet."""
        path = self._root / key
        if path.parent not in self._made:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(path.parent)
        self._part.write_bytes(data)
        self._part.replace(path)

    def publish(self) -> None:
        """See Outlet. Their names last; a power cut, unlike a kill, may leave one empty, which is rejected by name when it is read."""
        for folder in self._made:
            durable.sync_folder(folder)


def _synced(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
