"""Digests: a thread that hashes what another thread writes, so that one worker keeps two cores busy.

Of every shard the sha256, of every record the CRC-32 of its bytes in the tar, of every picture the XXH3-128 of its payload. hashlib, isal
and xxhash let go of the interpreter lock while they work.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Sequence
from typing import Any

import xxhash
from isal import isal_zlib

Buffer = bytes | memoryview


class Digests:
    """Hashes of one shard, complete after `wait`."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.crc32: list[int] = []
        self.xxh3: list[bytes] = []
        self._queue: queue.Queue[tuple[Sequence[Buffer], Sequence[Buffer]] | None] = queue.Queue(64)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="digests", daemon=True)
        self._thread.start()

    def add(self, buffers: Sequence[Buffer], pictures: Sequence[Buffer]) -> None:
        """A record: the buffers that make up its bytes, and which payloads among them are pictures."""
        self._queue.put((buffers, pictures))

    def wait(self, tail: bytes) -> str:
        """Everything hashed and then the shard's last bytes: the shard's sha256."""
        self.stop()
        if self._error is not None:
            raise self._error
        self._sha256.update(tail)
        return self._sha256.hexdigest()

    def stop(self) -> None:
        """The thread ended, whatever came of it. May be called again."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._hash(*job)
                except BaseException as error:  # noqa: BLE001 - raised again by wait(), in the writer's thread
                    self._error = error

    def _hash(self, buffers: Sequence[Buffer], pictures: Sequence[Buffer]) -> None:
        crc: Any = 0
        for buffer in buffers:
            self._sha256.update(buffer)
            crc = isal_zlib.crc32(buffer, crc)
        self.crc32.append(crc)
        self.xxh3.extend(xxhash.xxh3_128_digest(picture) for picture in pictures)
