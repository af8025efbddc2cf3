"""Inputs: what a conversion is made from, as hashes, so that a manifest can say so and a run that goes on can notice a change.

Annotation files by the sha256 of their bytes; picture stores (and the .tar files in an annotation folder, which hold pictures) by the
hash of the sorted (relative name, size) list. Only names relative to their root are kept: the same input elsewhere is the same input.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipelines.source import Source
from pipelines.stores import open_store
from schemas import SourceError


def options(source: Source) -> dict[str, Any]:
    """The source's plain options, by name."""
    return {field.name: getattr(source, field.name) for field in fields(source) if not field.metadata["reads"]}


def inputs(source: Source) -> list[dict[str, Any]]:
    """One entry a path: option, name, files, bytes, sha256. Raises SourceError where an annotation file can not be read."""
    absent = set(getattr(source, "absent", tuple)())  # MMC4's shards that never existed count in its list all the same
    return [
        {
            "option": field.name,
            "name": path.name,
            **(_nothing() if path in absent else _annotations(path) if field.metadata["reads"] == "annotations" else _pictures(path)),
        }
        for field in fields(source)
        if field.metadata["reads"]
        for path in paths(getattr(source, field.name))
    ]


def paths(value: Any) -> tuple[Path, ...]:
    """The paths in an option: none, one or several."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple) else (value,)


def _nothing() -> dict[str, Any]:
    return {"files": 0, "bytes": 0, "sha256": _of_rows(())}


def _annotations(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        return {"files": 1, "bytes": _size(path), "sha256": _sha256(path)}
    names = sorted(_files(path))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        hashes = pool.map(lambda name: str(_size(path / name)) if name.endswith(".tar") else _sha256(path / name), names)
        rows = [f"{name}\t{found}\n" for name, found in zip(names, hashes, strict=True)]
    return {"files": len(names), "bytes": sum(_size(path / name) for name in names), "sha256": _of_rows(rows)}


def _pictures(path: Path) -> dict[str, Any]:
    listed = sorted(open_store(path).names())
    rows = (f"{name}\t{size}\n" for name, size in listed)
    return {"files": len(listed), "bytes": sum(size for _, size in listed), "sha256": _of_rows(rows)}


def _of_rows(rows: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]  # img2dataset's _tmp, and the like
        yield from (os.path.relpath(os.path.join(root, name), folder) for name in names if not name.startswith("."))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise SourceError(f"{path}: expected a readable file, found {error.strerror}") from error


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path}: expected a readable file, found {error.strerror}") from error
