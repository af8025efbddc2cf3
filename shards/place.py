"""A place: a directory, or a prefix of an object store. What is written there appears whole or not at all, on either."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from schemas import RequestError
from shards.bucket import Bucket
from shards.folder import Folder
from shards.sink import Buffer

STORES = ("s3", "gs", "az")


class Place(Protocol):
    """Where a data set lies. Names are relative, with `/`. Pickles by what it is called; clients are made when first used.

    A directory raises OSError, object storage StoreError.
    """

    @property
    def url(self) -> str:
        """What it is called, for people and for files; never with credentials."""
        ...

    @property
    def folder(self) -> Path | None:
        """The directory, None on object storage."""
        ...

    def read(self, name: str, limit: int | None = None) -> bytes:
        """A whole object that is no shard, or about its first `limit` bytes where it is larger. Raises FileNotFoundError."""
        ...

    def read_range(self, name: str, offset: int, length: int) -> Buffer:
        """Exactly these bytes; fewer only where the object ends before. Raises FileNotFoundError."""
        ...

    def size(self, name: str) -> int:
        """Bytes of an object. Raises FileNotFoundError."""
        ...

    def version(self, name: str) -> tuple[int, str]:
        """Bytes of an object, and a mark that another object of this name would not have. Raises FileNotFoundError."""
        ...

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Name and bytes of every object whose name begins so, in order of name. None where there is no such directory."""
        ...

    def modified(self, prefix: str = "") -> Iterator[tuple[str, float]]:
        """Name and time of last change, in seconds since 1970, of every object whose name begins so. A copy's is when it was copied."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Make the object hold these bytes, whatever it held."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Make the object unless there is one, which False says; of several at once, one succeeds. data: no other writer's bytes."""
        ...

    def upload(self, name: str, path: Path) -> None:
        """Make the object hold a finished local file's bytes."""
        ...

    def stream(self, name: str, offset: int = 0) -> Iterator[Buffer]:
        """The object's bytes from an offset on, in pieces of some MiB. Raises FileNotFoundError."""
        ...

    def remove(self, name: str) -> None:
        """Make sure that there is no such object."""
        ...


def at(place: str | Path | Place) -> Place:
    """The place of this name: s3://BUCKET/PREFIX, gs://, az://, file:///PATH or a path. Raises RequestError where it is none."""
    if not isinstance(place, str | Path):
        return place
    scheme, separator, rest = str(place).partition("://")
    if not separator:
        return Folder(Path(place))
    if scheme == "file":
        return Folder(_local(rest))
    if scheme not in STORES:
        raise RequestError(f"{scheme}://: expected s3://, gs://, az://, file:// or a path, found another scheme")
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise RequestError(
            f"{scheme}://: expected {scheme}://BUCKET/PREFIX, found more than a bucket's name (credentials go into the environment)"
        )
    if not bucket:
        raise RequestError(f"{place}: expected {scheme}://BUCKET/PREFIX, found no bucket")
    prefix = prefix.strip("/")
    if any(part in ("", ".", "..") or not part.isprintable() for part in prefix.split("/")) and prefix:
        raise RequestError(
            f"{scheme}://{bucket}/{prefix!r}: expected a prefix of names, found an empty one, '.' or '..', or one not printable"
        )
    return Bucket(f"{scheme}://{bucket}" + (f"/{prefix}" if prefix else ""))


def _local(rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise RequestError(f"file://{rest}: expected file:///PATH, found a host")
    return Path("/" + unquote(path))


def below(place: Place, name: str) -> Place:
    """The place of this name inside of another."""
    return Folder(place.folder / name) if place.folder is not None else Bucket(f"{place.url}/{name}")


def clear(place: Place) -> None:
    """Make it hold nothing; a directory is gone then. Raises as the place does."""
    if place.folder is None:
        for name, _ in list(place.names()):
            place.remove(name)
    elif place.folder.exists():
        shutil.rmtree(place.folder)
