"""Durable files: a name appears only with its whole content behind it, also after a power cut.

Written aside as `.NAME.PID-START.part`, synced, renamed; then the folder is synced, because the rename itself is a change to the folder.
The process number, and what this start of Python has drawn, keep the orphan of a killed run and a worker on another machine from writing
into the file of the run that goes on.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

_START = secrets.token_hex(4)


def aside(path: Path) -> Path:
    """Where a file is written before it has its name."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_START}.part")


def write(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, wholly or not at all."""
    try:
        with aside(path).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside(path).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def publish(path: Path) -> None:
    """Give a synced file its name."""
    aside(path).replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run was writing aside."""
    for path in folder.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
