"""The run: run.json says what a data set is being made from, and who is making it.

It is created only if absent. A second writer meets a lease whose owner is alive, and is told; a run with other options, inputs or library
versions than the output was begun with meets another fingerprint, and stops. In a directory run.json holds the lease (shards.lease); on
object storage, where nothing can be replaced on a condition, it stands beside it (shards.generations).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from schemas import RequestError, ShardweaveError, StoreError
from shards import durable, lease
from shards.folder import Folder
from shards.generations import Generation
from shards.lease import STALE, Lease
from shards.manifest import MANIFEST, UNITS
from shards.place import Place, at

RUN = "run.json"
HEARTBEAT = 10.0  # seconds between two
PATIENCE = 5.0  # seconds that another process may take to claim the place, or a heartbeat to end
log = logging.getLogger(__name__)


def fingerprint(content: dict[str, Any]) -> str:
    """sha256 of what decides the output: source, options, inputs, versions."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


class _Found(msgspec.Struct):
    """What is read of a run.json."""

    fingerprint: str
    lease: Lease | None


_found = msgspec.json.Decoder(_Found)  # here: see shards.manifest


class _Hold(Protocol):
    """A place that this process holds."""

    def beat(self) -> bool:
        """Say that it is still held; False where another has taken it over."""
        ...

    def release(self) -> None:
        """Let go of it."""
        ...


@contextlib.contextmanager
def claimed(where: str | Path | Place, content: dict[str, Any]) -> Iterator[str]:
    """Hold the place for a run of this content; gives the run's fingerprint.

    Raises RequestError where another writer holds it, where it was begun with something else, or where it holds files of somebody else.
    """
    place = at(where)
    content = json.loads(json.dumps(content))  # as it will be read: a tuple comes back as a list
    run = fingerprint(content)
    name = place.url if place.folder is None else os.path.realpath(place.folder)
    hold = _in_folder(place.folder, run, content) if place.folder is not None else _in_store(place, run, content)
    lease.held.add(name)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(place.url, hold, stop), name="heartbeat", daemon=True)
    beat.start()
    try:
        yield run
    finally:
        stop.set()
        beat.join(PATIENCE)
        lease.held.discard(name)
        # Neither a full disk nor a store that does not answer may hide why the run ended; a dead owner is noticed anyway.
        if not beat.is_alive() and not isinstance(sys.exc_info()[1], StoreError):
            with contextlib.suppress(OSError, ShardweaveError):
                hold.release()


def _in_folder(folder: Path, run: str, content: dict[str, Any]) -> _Hold:
    _prepare(folder)
    with alone(folder):
        _take(folder, run, content)
        durable.remove_leftovers(folder)
        durable.remove_leftovers(folder / UNITS)
    return _InFolder(folder, run, content)


def _in_store(place: Place, run: str, content: dict[str, Any]) -> _Hold:
    begun = next(place.names(), None)
    if begun is None:
        place.create(RUN, _encode(run, content, None))
    try:
        data = place.read(RUN)
    except FileNotFoundError as error:
        raise RequestError(_OTHERS.format(place.url, begun[0] if begun else RUN)) from error
    _same_run(place.url, data, run, content)
    return Generation(place)


class _InFolder(NamedTuple):
    """A directory that this process holds: its lease stands in run.json."""

    folder: Path
    run: str
    content: dict[str, Any]

    def beat(self) -> bool:
        """See _Hold."""
        held = lease.ours(_read(self.folder).lease)
        if held:
            _write(self.folder, self.run, self.content, lease.mine())
        return held

    def release(self) -> None:
        """See _Hold."""
        if lease.ours(_read(self.folder).lease):
            _write(self.folder, self.run, self.content, None)


_OTHERS = "{}: expected an empty place or a run to go on with, found other files ({})"


def _prepare(folder: Path) -> None:
    try:
        if folder.is_dir() and not (folder / RUN).exists():
            for path in sorted(folder.iterdir()):
                # What a run that was killed before it had its run.json leaves is nobody's.
                if not (path.match(".*.part") or (path.name == UNITS and not any(path.iterdir()))):
                    raise RequestError(_OTHERS.format(folder, path.name))
        (folder / UNITS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder}: expected a place to write to, found {error.strerror}") from error


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else on this host is between asking for the lease and taking it. A killed owner's lock is gone with it.

    Raises RequestError where another process does not let go of it: one that is stopped, say.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: then takers in the same instant are told by the heartbeat
            _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise RequestError(f"{folder}: expected a free place, found another writer at work ({_holder(folder)})") from error
            time.sleep(0.02)


def _holder(folder: Path) -> str:
    found = _read(folder).lease if (folder / RUN).exists() else None
    return lease.owner(found) if found is not None else "it is just taking the place"


def _take(folder: Path, run: str, content: dict[str, Any]) -> None:
    """Create run.json, or take it over from an owner that is gone. There is never a moment without one."""
    if not (folder / RUN).exists() and _created(folder, run, content):
        return
    _same_run(folder, (folder / RUN).read_bytes(), run, content)
    found = _read(folder).lease
    if found is not None and lease.alive(found, os.path.realpath(folder)):
        raise RequestError(f"{folder}: expected a free place, found another writer at work ({lease.owner(found)})")
    _write(folder, run, content, lease.mine())


def _same_run(where: object, data: bytes, run: str, content: dict[str, Any]) -> None:
    """Raise RequestError where run.json's bytes are those of another run."""
    if _decode(f"{where}/{RUN}", data).fingerprint != run:
        raise RequestError(f"{where}: {_begun_with(_loaded(f'{where}/{RUN}', data), content)}")


def _read(folder: Path) -> _Found:
    try:
        return _decode(str(folder / RUN), (folder / RUN).read_bytes())
    except OSError as error:
        raise RequestError(f"{folder / RUN}: expected what a run was begun with, found {error}") from error


def _decode(name: str, data: bytes) -> _Found:
    try:
        return _found.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"{name}: expected what a run was begun with, found {error}") from error


def _loaded(name: str, data: bytes) -> dict[str, Any]:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # what msgspec passes over in fields that nobody asks for
        raise RequestError(f"{name}: expected what a run was begun with, found {error}") from error


def _created(folder: Path, run: str, content: dict[str, Any]) -> bool:
    return Folder(folder).create(RUN, _encode(run, content, lease.mine()))


def _begun_with(found: dict[str, Any], content: dict[str, Any]) -> str:
    for name in sorted(content):
        if found.get(name) != content[name]:
            return f"begun with another {name}: {_difference(found.get(name), content[name])}"
    return "begun as another run"


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return f"expected {key} {before.get(key)!r} to go on, found {now.get(key)!r}"
    return f"expected {_short(before)} to go on, found {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:297] + "..."


def _beat(where: str, hold: _Hold, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        with contextlib.suppress(OSError, ShardweaveError):  # the next beat tries again; a full disk stops the run where it writes shards
            if not hold.beat():
                log.warning("%s: another writer has taken over: this one was not seen for %.0f s", where, STALE)
                return


def _write(folder: Path, run: str, content: dict[str, Any], owner: Lease | None) -> None:
    durable.write(folder / RUN, _encode(run, content, owner))


def _encode(run: str, content: dict[str, Any], owner: Lease | None) -> bytes:
    whole = {"fingerprint": run, **content, "lease": msgspec.to_builtins(owner)}
    return (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode()


def seen(where: str | Path | Place, run: str) -> None:
    """Raise RequestError where this place, as a worker sees it, is not held by a run of this fingerprint."""
    place = at(where)
    try:
        data = place.read(RUN)
    except OSError as error:
        found = error.strerror or "none"
        raise RequestError(f"{place.url}/{RUN}: expected the run that this worker is of, found {found}: {_EVERYWHERE}") from error
    if _decode(f"{place.url}/{RUN}", data).fingerprint != run:
        raise RequestError(f"{place.url}/{RUN}: expected the run that this worker is of, found another: {_EVERYWHERE}")


_EVERYWHERE = "the place has to be the same on every node, a shared folder or object storage"


def finished(where: str | Path | Place) -> bool:
    """Whether the data set is complete."""
    try:
        return at(where).size(MANIFEST) > 0
    except FileNotFoundError:
        return False
