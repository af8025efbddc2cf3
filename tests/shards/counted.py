"""A folder that plays object storage: no file of it can be mapped, and every request stands in a log, whichever process makes it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from shards.place import at


class Counted:
    """A Place to read from. `slow`: seconds a request takes; while a file NAME.gate lies beside the log, requests for NAME wait."""

    folder: Path | None = None

    def __init__(self, root: Path, log: Path, *, slow: float = 0.0) -> None:
        self.root, self.log, self.slow, self.url = root, log, slow, f"counted://{root.name}"
        self.log.touch()

    def asked(self, verb: str = "range") -> Counter[str]:
        """How often each name was asked for."""
        rows = (line.split() for line in self.log.read_text().splitlines())
        return Counter(name for what, name in rows if what == verb)

    def shut(self, name: str) -> Path:
        """Requests for this object wait until the file is removed."""
        gate = self.log.with_name(f"{name}.gate")
        gate.touch()
        return gate

    def read(self, name: str, limit: int | None = None) -> bytes:
        """A whole object."""
        self._note("read", name)
        return (self.root / name).read_bytes()[:limit]

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Fewer bytes where the object ends."""
        self._note("range", name)
        return (self.root / name).read_bytes()[offset : offset + length]

    def size(self, name: str) -> int:
        """Of an object."""
        return (self.root / name).stat().st_size

    def version(self, name: str) -> tuple[int, str]:
        """Of an object."""
        return at(self.root).version(name)

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """All objects."""
        return at(self.root).names(prefix)

    def modified(self, prefix: str = "") -> Iterator[tuple[str, float]]:
        """All objects."""
        return at(self.root).modified(prefix)

    def stream(self, name: str, offset: int = 0) -> Iterator[bytes]:
        """A whole object."""
        yield self.read_range(name, offset, self.size(name) - offset)

    def write(self, name: str, data: bytes) -> None:
        """Not here."""
        raise NotImplementedError

    def create(self, name: str, data: bytes) -> bool:
        """Not here."""
        raise NotImplementedError

    def upload(self, name: str, path: Path) -> None:
        """Not here."""
        raise NotImplementedError

    def remove(self, name: str) -> None:
        """Not here."""
        raise NotImplementedError

    def _note(self, verb: str, name: str) -> None:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, f"{verb} {name}\n".encode())
        os.close(descriptor)
        time.sleep(self.slow)
        deadline = time.monotonic() + 60
        while self.log.with_name(f"{name}.gate").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
