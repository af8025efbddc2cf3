"""The lease: who writes to a place, and whether that process is still there.

On this host the process itself is asked, so that a killed run is continued at once; elsewhere, and from another container, its heartbeat
is believed for a minute.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import msgspec

STALE = 60.0  # seconds after which an owner elsewhere counts as gone


class Lease(msgspec.Struct, frozen=True):
    """Who writes: where, which process, and when it was last seen."""

    host: str
    pid: int
    space: str | None  # what makes a process number mean something: this start of this machine, this container
    started: str | None  # in clock ticks: a process number alone may belong to another process by now
    heartbeat: float


held: set[str] = set()  # places that this process writes to: its own number in a lease says nothing about it


def mine() -> Lease:
    """This process's, seen now."""
    pid = os.getpid()
    return Lease(socket.gethostname(), pid, _space(), _started(pid), time.time())


def ours(lease: Lease | None) -> bool:
    """Whether it is this process's."""
    now = mine()
    return lease is not None and (lease.host, lease.pid, lease.space, lease.started) == (now.host, now.pid, now.space, now.started)


def alive(lease: Lease, place: str) -> bool:
    """Whether its owner still writes to this place, by what `held` calls it."""
    if ours(lease):
        return place in held
    if lease.space is not None and lease.space == _space() and lease.started is not None:
        return _started(lease.pid) == lease.started
    return time.time() - lease.heartbeat < STALE


def owner(lease: Lease) -> str:
    """Who it is, for people."""
    return f"process {lease.pid} on {lease.host}, last seen {max(0, time.time() - lease.heartbeat):.0f} s ago"


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
