"""The sink: threads that write a shard's bytes and hash them, so that the thread that makes records waits for neither.

Of every record the CRC-32 of its bytes in the tar and of every picture the XXH3-128 of its payload are taken at once, at 12 GB/s. The
shard's sha256 is slower by far where the processor has no instructions for it. It is taken of what is in the file, read back 4 MiB at a
time: hashing the records' own buffers would ask for the interpreter lock once a record, and wait for it as long as hashing takes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import xxhash
from isal import isal_zlib

Buffer = bytes | memoryview
Batch = Sequence[Buffer]
T = TypeVar("T")
_BATCH = 4 << 20  # bytes handed over at once
_WAITING = 4  # batches that may wait: what bounds the memory
_MAX_BUFFERS = 1000  # of one writev (IOV_MAX is 1024)


class Sink:
    """The bytes of one shard on their way into a file. Its hashes are complete after `wait`."""

    def __init__(self, file: int) -> None:
        """file: a descriptor open for writing and reading, which stays its owner's to sync and close."""
        self.crc32: list[int] = []  # one a record
        self.xxh3: list[bytes] = []  # one a picture
        self._sha256 = hashlib.sha256()
        self._batch: list[Buffer] = []
        self._batch_bytes = 0
        self._file, self._read = file, bytearray(_BATCH)
        self._hashed = 0  # bytes
        self._hashing: _Belt[int] = _Belt("sha256", self._hash)
        self._writing: _Belt[Batch] = _Belt("write", self._write_and_pass_on)

    def record(self, buffers: Batch, pictures: Batch) -> None:
        """The buffers that make up a record's bytes, and which payloads among them are pictures. Raises OSError of an earlier write."""
        crc: Any = 0
        for buffer in buffers:
            crc = isal_zlib.crc32(buffer, crc)
        self.crc32.append(crc)
        self.xxh3.extend(xxhash.xxh3_128_digest(picture) for picture in pictures)
        self.write(buffers)

    def write(self, buffers: Batch) -> None:
        """The file's next bytes. Raises OSError of an earlier write."""
        self._batch += buffers
        self._batch_bytes += sum(map(len, buffers))
        if self._batch_bytes >= _BATCH or len(self._batch) >= _MAX_BUFFERS - len(buffers):
            self.flush()

    def flush(self) -> None:
        """Hand over what waits; waits itself where a thread is far behind. Raises OSError of an earlier write."""
        self._writing.put(self._batch)
        self._batch, self._batch_bytes = [], 0

    def wait(self) -> str:
        """Everything written: the file's sha256. Raises OSError."""
        self.stop()
        self._writing.complain()
        self._hashing.complain()
        return self._sha256.hexdigest()

    def stop(self) -> None:
        """The threads ended, whatever came of it. May be called again."""
        self._writing.stop()
        self._hashing.stop()

    def _write_and_pass_on(self, batch: Batch) -> None:
        _write_all(self._file, batch)
        self._hashing.put(sum(map(len, batch)))

    def _hash(self, size: int) -> None:
        """The file's next bytes, of which so many more are written."""
        end = self._hashed + size
        while self._hashed < end:
            part = memoryview(self._read)[: end - self._hashed]
            number = os.preadv(self._file, [part], self._hashed)
            if number == 0:
                raise OSError(errno.EIO, "bytes that were written are not there")
            self._sha256.update(part[:number])
            self._hashed += number


class _Belt(Generic[T]):
    """A thread that does one thing with one item after another."""

    def __init__(self, name: str, work: Callable[[T], None]) -> None:
        self._queue: queue.Queue[T | None] = queue.Queue(_WAITING)
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        self.complain()
        self._queue.put(item)

    def complain(self) -> None:
        """Raise what went wrong, in the thread that asks."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:  # else only emptied: whoever fills the queue must not wait for ever
                try:
                    self._work(item)
                except BaseException as error:  # noqa: BLE001 - raised again by complain()
                    self._error = error


def _write_all(file: int, buffers: Batch) -> None:
    for start in range(0, len(buffers), _MAX_BUFFERS):
        batch = [buffer for buffer in buffers[start : start + _MAX_BUFFERS] if len(buffer)]
        left = sum(map(len, batch))
        written = os.writev(file, batch)
        if written < left:  # a signal or a nearly full disk: write the rest, and let the disk say what is wrong
            rest = memoryview(b"".join(batch))[written:]
            while rest:
                rest = rest[os.write(file, rest) :]
