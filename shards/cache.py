"""The cache: whole shards on local disk within a budget, for all workers, ranks and jobs of a machine.

    folder/
      <sha256>.tar       a shard, by its content: two places with equal names never meet. Its mtime is its last use
      .<sha256>.part     one on its way, its room taken beforehand; whoever holds the lock beside it is bringing it
      .<sha256>.lock     flock: the kernel lets go of it when its holder is killed. It goes with whoever has held it
      .room.lock         held by whoever makes room

A shard is downloaded once a machine, hashed as it comes, and has its name only when it is the one that the manifest states. Who keeps a
shard mapped holds a shared lock on it, and is evicted last; an evicted shard stays readable to them, and takes its room until they let go.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from schemas import RequestError, ShardError, StoreError
from shards import command, retry
from shards.download import Stop, download
from shards.manifest import ShardInfo
from shards.place import Place

BUDGET = 20 << 30  # bytes
POLL = 0.02  # seconds
_SHA256 = re.compile(r"[0-9a-f]{64}")
_held: set[int] = set()  # descriptors of locks; a lock lives on in a forked child, who knows nothing of it


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class Entry(NamedTuple):
    """A shard in the cache, open."""

    file: IO[bytes]
    downloaded: bool  # by this call, and so verified just now


class Cache:
    """Whole shards in a folder, at most `budget` bytes of them, the least recently used evicted first."""

    def __init__(self, folder: Path, budget: int = BUDGET, *, patience: float | None = None) -> None:
        """patience: seconds that a download by another process may stand still; by default longer than a store is tried again."""
        self.folder, self.budget, self.patience = Path(folder), budget, patience or 2 * retry.deadline()
        self.folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, place: Place, info: ShardInfo) -> Path:
        """Where the whole shard lies, until it is evicted. Raises as `open`."""
        self.open(place, info).file.close()
        return self.path(info)

    def open(self, place: Place, info: ShardInfo, stop: Stop | None = None) -> Entry:
        """The whole shard, downloaded where it is not there; evicted or not, it is readable while it is open or mapped.

        Raises ShardError where the place holds another shard than the manifest states, RequestError where there is no room, StoreError
        where the store, or the process that is downloading it, does not go on; CancelledError after `stop`.
        """
        waiting = _Waiting(self.patience, stop or Stop())
        while True:
            if found := self.look(info):
                return Entry(found, False)
            with _locked(self._beside(info, "lock")) as alone:
                if alone:
                    found = self.look(info)  # brought between the look and the lock
                    return Entry(found, False) if found else Entry(self._bring(place, info, waiting), True)
            waiting.wait(f"{place.url}/{info.name}", self._writing())

    def look(self, info: ShardInfo) -> IO[bytes] | None:
        """The shard, open and marked as used. None where it is not there, is being evicted, or has another size."""
        try:
            file = self.path(info).open("rb")
        except FileNotFoundError:
            return None
        if os.fstat(file.fileno()).st_size != info.bytes or not _flock(file.fileno(), fcntl.LOCK_SH):
            file.close()
            return None
        with contextlib.suppress(PermissionError):  # another user's cache is good to read from
            os.utime(file.fileno())
        return file

    def bring(self, place: Place, info: ShardInfo, file: IO[bytes], stop: Stop) -> None:
        """Write the whole shard, verified. Raises ShardError, StoreError; CancelledError after `stop`."""
        _download_twice(place, info, file, stop)

    def drop(self, info: ShardInfo, file: os.stat_result) -> None:
        """Forget the shard if it still is this file: its content was found damaged."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self.path(info).stat(), file):
                self.path(info).unlink()

    def path(self, info: ShardInfo) -> Path:
        """Where the shard lies while it is there. Raises ShardError where its hash is none."""
        if not _SHA256.fullmatch(info.sha256):  # it names a file
            raise ShardError(info.name, None, "sha256", "64 hexadecimal digits", repr(info.sha256))
        return self.folder / f"{info.sha256}.tar"

    def _beside(self, info: ShardInfo, suffix: str) -> Path:
        return self.folder / f".{self.path(info).stem}.{suffix}"

    def _bring(self, place: Place, info: ShardInfo, waiting: _Waiting) -> IO[bytes]:
        """Download the shard; the caller holds its lock."""
        if info.bytes > self.budget:
            raise RequestError(f"cache {self.folder}: expected room for {info.name}, {info.bytes} bytes, found a budget of {self.budget}")
        part = self._beside(info, "part")
        part.unlink(missing_ok=True)  # whoever began it was killed
        try:
            with contextlib.ExitStack() as undo:
                file = undo.enter_context(self._reserved(part, info, waiting))
                undo.callback(part.unlink, missing_ok=True)
                self.bring(place, info, file, waiting.stop)
                _flock(file.fileno(), fcntl.LOCK_SH)
                part.replace(self.path(info))
                undo.pop_all()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            said = f"cache {self.folder}: expected room on the disk for {info.name}, {info.bytes} bytes, found: {error.strerror}"
            raise RequestError(said) from error
        return file

    def _reserved(self, part: Path, info: ShardInfo, waiting: _Waiting) -> IO[bytes]:
        """The file to write to, its bytes taken from the budget and from the disk."""
        while True:
            with _locked(self.folder / ".room.lock") as alone:
                if alone and self._make_room(info.bytes):
                    return _sized(part, info.bytes)
            waiting.wait(f"room in {self.folder} for {info.name}", self._writing())

    def _make_room(self, wanted: int) -> bool:
        """Evict until so many bytes are free; False where what is on its way alone leaves too little."""
        self._sweep()
        shards = sorted(((stat.st_mtime_ns, stat.st_size, path) for path, stat in self._files("*.tar")))
        used = sum(size for _, size, _ in shards) + sum(stat.st_size for _, stat in self._files(".*.part"))
        for in_use in (False, True):
            for _, size, path in shards:
                if used + wanted <= self.budget:
                    return True
                if _evicted(path, in_use):
                    used -= size
            shards = [entry for entry in shards if entry[2].exists()]
        return used + wanted <= self.budget

    def _sweep(self) -> None:
        """Remove what killed processes left: parts and locks that nobody holds."""
        for stem in {path.stem for pattern in (".*.part", ".*.lock") for path, _ in self._files(pattern)}:
            with _locked(self.folder / f"{stem}.lock") as alone:
                if alone:
                    (self.folder / f"{stem}.part").unlink(missing_ok=True)

    def _files(self, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
        """Files of this pattern; others' come and go meanwhile."""
        for path in self.folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                yield path, path.stat()

    def _writing(self) -> object:
        """What changes as long as anybody's download goes on."""
        return sorted((path.name, stat.st_mtime_ns) for path, stat in self._files(".*.part"))


class _Waiting:
    """Waiting for other processes, as long as one of them gets on."""

    def __init__(self, patience: float, stop: Stop) -> None:
        self.patience, self.stop = patience, stop
        self._state: object = None
        self._since = time.monotonic()

    def wait(self, what: str, state: object) -> None:
        """Sleep a little. Raises StoreError where nothing has changed for so long, CancelledError after the stop."""
        if state != self._state:
            self._state, self._since = state, time.monotonic()
        elif time.monotonic() - self._since > self.patience:
            raise StoreError(f"{what}: expected the process that is downloading to go on, found it stand still for {self.patience:.0f} s")
        self.stop.wait(POLL)


def _sized(part: Path, size: int) -> IO[bytes]:
    """A new file that has its room on the disk."""
    with contextlib.ExitStack() as undo:
        undo.callback(part.unlink, missing_ok=True)
        file = undo.enter_context(part.open("w+b"))
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
        undo.pop_all()
    return file


def _download_twice(place: Place, info: ShardInfo, file: IO[bytes], stop: Stop) -> None:
    """Download; once more where what came is not what the manifest states, because bytes get lost on the way, too."""
    try:
        download(place, info, file, stop)
    except ShardError as error:
        if error.what != "shard altered":
            raise
        file.seek(0)
        download(place, info, file, stop)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether this thread holds the lock, and nobody else on this machine. It is not waited for."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    alone = False
    try:
        alone = _flock(descriptor, fcntl.LOCK_EX) and _same(path, descriptor)
        yield alone
    finally:
        if alone:
            path.unlink(missing_ok=True)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that is being forked may hold a copy
        _held.discard(descriptor)
        os.close(descriptor)


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(path: Path, descriptor: int) -> bool:
    """Whether the path still names the file that is open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _evicted(path: Path, in_use: bool) -> bool:
    """Remove a shard, or, unless `in_use` says so, leave it where somebody has it open. Whether it is gone."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        if not _flock(file.fileno(), fcntl.LOCK_EX) and not in_use:
            return False
        path.unlink()
    return True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options --cache and --cache-bytes of a command that reads much of a place."""
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where shards of object storage are kept (default: $SHARDWEAVE_CACHE)")
    parser.add_argument(
        "--cache-bytes", type=command.size, default=BUDGET, metavar="SIZE", help="at most this much of them (default: 20GiB)"
    )


def chosen(options: argparse.Namespace) -> Cache:
    """The cache that these options name."""
    return Cache(options.cache or default_folder(), options.cache_bytes)


def default_folder() -> Path:
    """$SHARDWEAVE_CACHE, or ~/.cache/shardweave."""
    return Path(os.environ.get("SHARDWEAVE_CACHE") or Path.home() / ".cache" / "shardweave")
