"""The run: run.json says what a data set is being made from, and who is making it.

It is created only if absent. A second writer meets a lease whose owner is alive, and is told; a run with other options, inputs or library
versions than the output was begun with meets another fingerprint, and stops. The lease has a heartbeat, for owners on other hosts; on
this host the process itself is asked, so that a killed run is continued at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from schemas import RequestError
from shards import durable
from shards.manifest import MANIFEST, UNITS

RUN = "run.json"
HEARTBEAT = 10.0  # seconds between two
STALE = 60.0  # seconds after which an owner elsewhere counts as gone
PATIENCE = 5.0  # seconds that another process may take to claim the place
log = logging.getLogger(__name__)


def fingerprint(content: dict[str, Any]) -> str:
    """sha256 of what decides the output: source, options, inputs, versions."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


class Lease(msgspec.Struct, frozen=True):
    """Who writes: where, which process, and when it was last seen."""

    host: str
    pid: int
    space: str | None  # what makes a process number mean something: this start of this machine, this container
    started: str | None  # in clock ticks: a process number alone may belong to another process by now
    heartbeat: float


class _Found(msgspec.Struct):
    """What is read of a run.json."""

    fingerprint: str
    lease: Lease | None


@contextlib.contextmanager
def claimed(folder: Path, content: dict[str, Any]) -> Iterator[str]:
    """Hold the output folder for a run of this content; gives the run's fingerprint.

    Raises RequestError where another writer holds it, where it was begun with something else, or where it holds files of somebody else.
    """
    _prepare(folder)
    content = json.loads(json.dumps(content))  # as it will be read: a tuple comes back as a list
    run = fingerprint(content)
    with _alone(folder):
        _take(folder, run, content)
        durable.remove_leftovers(folder)
        durable.remove_leftovers(folder / UNITS)
    place = os.path.realpath(folder)
    _held.add(place)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(folder, run, content, stop), name="heartbeat", daemon=True)
    beat.start()
    try:
        yield run
    finally:
        stop.set()
        beat.join()
        _held.discard(place)
        with contextlib.suppress(OSError, RequestError):  # a full disk must not hide why the run ended; the dead owner is noticed anyway
            if _ours(_read(folder).lease):
                _write(folder, run, content, None)


_held: set[str] = set()  # places that this process writes to: its own number in a lease says nothing about it


def _prepare(folder: Path) -> None:
    try:
        if folder.is_dir() and not (folder / RUN).exists():
            for path in sorted(folder.iterdir()):
                # What a run that was killed before it had its run.json leaves is nobody's.
                if not (path.match(".*.part") or (path.name == UNITS and not any(path.iterdir()))):
                    raise RequestError(f"{folder}: expected an empty place or a run to go on with, found other files ({path.name})")
        (folder / UNITS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder}: expected a place to write to, found {error.strerror}") from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
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
    lease = _read(folder).lease if (folder / RUN).exists() else None
    return _owner(lease) if lease is not None else "it is just taking the place"


def _take(folder: Path, run: str, content: dict[str, Any]) -> None:
    """Create run.json, or take it over from an owner that is gone. There is never a moment without one."""
    if not (folder / RUN).exists() and _created(folder, run, content):
        return
    found = _read(folder)
    if found.fingerprint != run:
        raise RequestError(f"{folder}: {_begun_with(json.loads((folder / RUN).read_bytes()), content)}")
    if found.lease is not None and _alive(found.lease, folder):
        raise RequestError(f"{folder}: expected a free place, found another writer at work ({_owner(found.lease)})")
    _write(folder, run, content, _lease())


def _read(folder: Path) -> _Found:
    try:
        return msgspec.json.decode((folder / RUN).read_bytes(), type=_Found)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{folder / RUN}: expected what a run was begun with, found {error}") from error


def _created(folder: Path, run: str, content: dict[str, Any]) -> bool:
    whole = folder / f".{RUN}.new.{os.getpid()}.part"
    try:
        durable.write(whole, _encode(run, content, _lease()))
        os.link(whole, folder / RUN)
    except FileExistsError:
        return False
    finally:
        whole.unlink(missing_ok=True)
    durable.sync_folder(folder)
    return True


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


def _lease() -> Lease:
    pid = os.getpid()
    return Lease(socket.gethostname(), pid, _space(), _started(pid), time.time())


def _space() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _started(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def _ours(lease: Lease | None) -> bool:
    mine = _lease()
    return lease is not None and (lease.host, lease.pid, lease.space, lease.started) == (mine.host, mine.pid, mine.space, mine.started)


def _alive(lease: Lease, folder: Path) -> bool:
    if _ours(lease):
        return os.path.realpath(folder) in _held
    if lease.space is not None and lease.space == _space() and lease.started is not None:
        return _started(lease.pid) == lease.started
    return time.time() - lease.heartbeat < STALE


def _owner(lease: Lease) -> str:
    return f"process {lease.pid} on {lease.host}, last seen {max(0, time.time() - lease.heartbeat):.0f} s ago"


def _beat(folder: Path, run: str, content: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        with contextlib.suppress(OSError, RequestError):  # the next beat tries again; a full disk stops the run where it writes shards
            if not _ours(_read(folder).lease):
                log.warning("%s: another writer has taken over: this one was not seen for %.0f s", folder, STALE)
                return
            _write(folder, run, content, _lease())


def _write(folder: Path, run: str, content: dict[str, Any], lease: Lease | None) -> None:
    durable.write(folder / RUN, _encode(run, content, lease))


def _encode(run: str, content: dict[str, Any], lease: Lease | None) -> bytes:
    whole = {"fingerprint": run, **content, "lease": msgspec.to_builtins(lease)}
    return (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode()


def finished(folder: Path) -> bool:
    """Whether the data set is complete."""
    return (folder / MANIFEST).exists()
