"""The run: run.json says what a data set is being made from, and who is making it.

It is created only if absent. A second writer meets a lease whose owner is alive, and is told; a run with other options, inputs or library
versions than the output was begun with meets another fingerprint, and stops. The lease has a heartbeat, for owners on other hosts; on
this host the process itself is asked, so that a killed run is continued at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas import RequestError
from shards import durable
from shards.manifest import MANIFEST, UNITS

RUN = "run.json"
HEARTBEAT = 10.0  # seconds between two
STALE = 60.0  # seconds after which an owner elsewhere counts as gone


def fingerprint(content: dict[str, Any]) -> str:
    """sha256 of what decides the output: source, options, inputs, versions."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


@contextlib.contextmanager
def claimed(folder: Path, content: dict[str, Any]) -> Iterator[str]:
    """Hold the output folder for a run of this content; gives the run's fingerprint.

    Raises RequestError where another writer holds it, where it was begun with something else, or where it holds files of somebody else.
    """
    _prepare(folder)
    run = fingerprint(content)
    _take(folder, run, content)
    durable.remove_leftovers(folder)
    durable.remove_leftovers(folder / UNITS)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(folder, run, content, stop), name="heartbeat", daemon=True)
    beat.start()
    try:
        yield run
    finally:
        stop.set()
        beat.join()
        with contextlib.suppress(OSError):  # a full disk must not hide why the run ended; the dead owner is noticed anyway
            _write(folder, run, content, None)


def _prepare(folder: Path) -> None:
    try:
        if folder.is_dir() and not (folder / RUN).exists() and any(folder.iterdir()):
            raise RequestError(f"{folder}: expected an empty place or a run to go on with, found other files")
        (folder / UNITS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder}: expected a place to write to, found {error.strerror}") from error


def _take(folder: Path, run: str, content: dict[str, Any]) -> None:
    """Create run.json, or take it over from an owner that is gone."""
    for _ in range(10):
        if _created(folder, run, content):
            return
        try:
            found = json.loads((folder / RUN).read_bytes())
        except FileNotFoundError:
            continue  # somebody else is taking it over
        except ValueError as error:
            raise RequestError(f"{folder / RUN}: expected a run, found {error}") from error
        _same(folder, found, run, content)
        if _alive(found.get("lease")):
            raise RequestError(f"{folder}: expected a free place, found another writer at work ({_owner(found['lease'])})")
        with contextlib.suppress(FileNotFoundError):  # only one of several takers renames it
            (folder / RUN).rename(folder / f".{RUN}.{os.getpid()}.part")
    raise RequestError(f"{folder}: expected to take over {RUN}, found others doing so again and again")


def _created(folder: Path, run: str, content: dict[str, Any]) -> bool:
    whole = folder / f".{RUN}.new.{os.getpid()}.part"
    whole.write_bytes(_encode(run, content, _lease()))
    try:
        os.link(whole, folder / RUN)
    except FileExistsError:
        return False
    finally:
        whole.unlink()
    durable.sync_folder(folder)
    return True


def _same(folder: Path, found: dict[str, Any], run: str, content: dict[str, Any]) -> None:
    if found.get("fingerprint") == run:
        return
    for name in sorted(content):
        if found.get(name) != content[name]:
            raise RequestError(f"{folder}: begun with another {name}: {_difference(found.get(name), content[name])}")
    raise RequestError(f"{folder}: begun as another run")


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return f"expected {key} {before.get(key)!r} to go on, found {now.get(key)!r}"
    return f"expected {_short(before)} to go on, found {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:297] + "..."


def _lease() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _started(pid), "heartbeat": time.time()}


def _started(pid: int) -> str | None:
    """When a process began, in clock ticks: a process number alone may belong to another one by now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def _alive(lease: dict[str, Any] | None) -> bool:
    if lease is None:
        return False
    if lease["host"] == socket.gethostname() and lease["started"] is not None:
        return _started(lease["pid"]) == lease["started"] and lease["pid"] != os.getpid()
    return time.time() - lease["heartbeat"] < STALE


def _owner(lease: dict[str, Any]) -> str:
    return f"process {lease['pid']} on {lease['host']}, last seen {max(0, time.time() - lease['heartbeat']):.0f} s ago"


def _beat(folder: Path, run: str, content: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        with contextlib.suppress(OSError):  # the next beat tries again; a full disk stops the run where it writes shards
            _write(folder, run, content, _lease())


def _write(folder: Path, run: str, content: dict[str, Any], lease: dict[str, Any] | None) -> None:
    durable.write(folder / RUN, _encode(run, content, lease))


def _encode(run: str, content: dict[str, Any], lease: dict[str, Any] | None) -> bytes:
    return (json.dumps({"fingerprint": run, **content, "lease": lease}, indent=1, ensure_ascii=False) + "\n").encode()


def finished(folder: Path) -> bool:
    """Whether the data set is complete."""
    return (folder / MANIFEST).exists()
