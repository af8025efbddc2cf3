"""Where rejects came from: the row of the annotation file, and the picture that it names, in folders that the user points at.

Nothing in the data set chooses a folder: only names below those given are looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from schemas import RequestError
from shards.manifest import RejectRow
from shards.view import paint

FILES = 1_000_000  # names that are listed
LARGEST = 512 << 20  # bytes of an annotation file that is read for one row
PICTURE = 64 << 20  # bytes of a picture
LETTERS = 4000  # of a row that are shown
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")


class Upstream:
    """Files below some folders, by name. Raises RequestError where there is no such folder."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._roots = [folder.resolve() for folder in folders]
        if missing := [folder for folder in self._roots if not folder.is_dir()]:
            raise RequestError(f"--upstream {missing[0]}: expected a folder, found none")

    def row(self, reject: RejectRow) -> str | None:
        """What stands in the annotation file there; None where it can not be found or read."""
        found = self._found(reject.file)
        if found is None or found.suffix not in (".json", ".jsonl") or found.stat().st_size > LARGEST:
            return None
        try:
            rows = _rows(found)
            return bytes(rows[reject.row]).decode("utf-8", "backslashreplace")[:LETTERS] if 0 <= reject.row < len(rows) else None
        except (msgspec.DecodeError, OSError):
            return None

    def picture(self, reject: RejectRow) -> bytes | None:
        """The bytes of the first file that the row, or else the reason's detail, names as a picture, where they begin as one."""
        row = self.row(reject)
        for name in [*(_names(row) if row else ()), *reject.detail.split()]:
            found = self._found(name) if name.lower().endswith(SUFFIXES) else None
            if found is not None and found.stat().st_size <= PICTURE:
                data = found.read_bytes()
                return data if paint.sniffed(data).startswith("image/") else None
        return None

    def _found(self, name: str) -> Path | None:
        """The file below a root that is called so; by its path where that fits, else by its last part where only one is."""
        pure = PurePosixPath(name)
        if not pure.name or pure.is_absolute() or ".." in pure.parts or "\0" in name:
            return None
        paths = [path for path in self._files.get(pure.name, []) if path.resolve().is_relative_to(path.parent.resolve())]
        exact = [path for path in paths if path.parts[-len(pure.parts) :] == pure.parts]
        return exact[0] if exact else (paths[0] if len(paths) == 1 else None)

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """Every file by its last part. Links out of a root are not followed."""
        found: dict[str, list[Path]] = {}
        for number, path in enumerate(path for root in self._roots for path in _walk(root)):
            if number == FILES:
                break
            found.setdefault(path.name, []).append(path)
        return found


def _walk(root: Path) -> Iterator[Path]:
    for folder, _, files in os.walk(root):
        for file in files:
            path = Path(folder, file)
            if path.is_file() and path.resolve().is_relative_to(root):
                yield path


def _rows(path: Path) -> Sequence[Any]:
    """The rows of a list, of the lists in an object (COCO's `images` first), or of lines."""
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        return data.splitlines()
    found = msgspec.json.decode(data, type=list[msgspec.Raw] | dict[str, msgspec.Raw])
    if isinstance(found, list):
        return found
    lists = {name: value for name, value in found.items() if bytes(value)[:1] == b"["}
    chosen = lists.get("images", next(iter(lists.values()), msgspec.Raw(b"[]")))
    return msgspec.json.decode(chosen, type=list[msgspec.Raw])


def _names(row: str) -> Iterator[str]:
    """Every string in a row, the shortest way down first."""
    try:
        waiting: list[Any] = [msgspec.json.decode(row)]
    except (msgspec.DecodeError, RecursionError):
        return
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
