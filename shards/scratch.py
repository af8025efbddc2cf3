"""Scratch: a local folder in which shards are finished before they go to object storage, and that a killed run leaves to the next one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shards import durable
from shards.manifest import UNITS
from shards.place import Place

PREFIX = "shardweave-scratch-"


@contextlib.contextmanager
def scratch(place: Place) -> Iterator[Path]:
    """Where to finish the shards of a place: the directory itself, or one of our own under $TMPDIR that is gone when this ends."""
    if place.folder is not None:
        yield place.folder
        return
    _remove_leftovers()
    made = Path(tempfile.mkdtemp(prefix="shardweave-new-"))  # until it is locked, another worker would take it for a leftover
    descriptor = _locked(made)
    folder = made.rename(made.with_name(PREFIX + made.name))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def tidied(place: Place) -> Iterator[None]:
    """When this ends, what killed workers have left on this machine goes, too."""
    try:
        yield
    finally:
        if place.folder is None:
            _remove_leftovers()
        else:
            durable.remove_leftovers(place.folder)
            durable.remove_leftovers(place.folder / UNITS)


def _remove_leftovers() -> None:
    """Remove what killed runs of this user left: folders that nobody has locked."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid == os.getuid() and (descriptor := _locked(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """The folder's descriptor with its lock, which the kernel lets go of when this process ends. None where another has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
