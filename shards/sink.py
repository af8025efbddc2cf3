"""The sink: a shard's bytes into its file, and their hashes.

Of every record the CRC-32 of its bytes in the tar and of every picture the XXH3-128 of its payload are taken at once, at 12 GB/s. The
shard's sha256 is slower by far where the processor has no instructions for it: a thread follows the writing, and hashes what is in the
file, mapped 4 MiB at a time. That copies nothing, asks for the interpreter lock once in forty records, and may fall behind as far as
it likes, because what waits is in the page cache and not in this process.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import queue
import threading
from collections.abc import Sequence
from typing import Any

import xxhash
from isal import isal_zlib

Buffer = bytes | memoryview
Batch = Sequence[Buffer]
_BATCH = 4 << 20  # bytes written at once
_MAX_BUFFERS = 1000  # of one writev (IOV_MAX is 1024)
_AT_ONCE = getattr(mmap, "MAP_POPULATE", 0)  # Linux: no fault for every few pages


class Sink:
    """The bytes of one shard on their way into a file. Its hashes are complete after `wait`."""

    def __init__(self, file: int) -> None:
        """file: a descriptor open for writing and reading, which stays its owner's to sync and close."""
        self.crc32: list[int] = []  # one a record
        self.xxh3: list[bytes] = []  # one a picture
        self._batch: list[Buffer] = []
        self._batch_bytes = 0
        self._file, self._hash = file, _Follower(file)

    def record(self, buffers: Batch, pictures: Batch) -> None:
        """The buffers that make up a record's bytes, and which payloads among them are pictures. Raises OSError."""
        crc: Any = 0
        for buffer in buffers:
            crc = isal_zlib.crc32(buffer, crc)
        self.crc32.append(crc)
        self.xxh3.extend(map(xxhash.xxh3_128_digest, pictures))
        self.write(buffers)

    def write(self, buffers: Batch) -> None:
        """The file's next bytes. Raises OSError."""
        self._batch += buffers
        self._batch_bytes += sum(map(len, buffers))
        if self._batch_bytes >= _BATCH or len(self._batch) >= _MAX_BUFFERS - len(buffers):
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises OSError."""
        batch, size = self._batch, self._batch_bytes
        self._batch, self._batch_bytes = [], 0
        _write_all(self._file, batch)
        self._hash.follow(size)

    def wait(self) -> str:
        """Everything written and hashed: the file's sha256. Raises OSError."""
        return self._hash.wait()

    def stop(self) -> None:
        """The thread ended, whatever it has left to do. May be called again."""
        self._hash.stop()


class _Follower:
    """A thread that takes the sha256 of a file while that grows."""

    def __init__(self, file: int) -> None:
        self._file, self._done = file, 0  # bytes
        self._sha256 = hashlib.sha256()
        self._error: BaseException | None = None
        self._stopped = False
        self._sizes: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sha256", daemon=True)
        self._thread.start()

    def follow(self, size: int) -> None:
        """So many more bytes are written."""
        if size:
            self._sizes.put(size)

    def wait(self) -> str:
        """Its hash. Raises what went wrong in the thread."""
        self._sizes.put(0)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._sha256.hexdigest()

    def stop(self) -> None:
        self._stopped = True
        self._sizes.put(0)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (size := self._sizes.get()) and not self._stopped:
                self._take(size)
        except BaseException as error:  # noqa: BLE001 - raised again by wait()
            self._error = error

    def _take(self, size: int) -> None:
        skipped = self._done % mmap.ALLOCATIONGRANULARITY
        with (
            _mapped(self._file, self._done - skipped, size + skipped) as mapped,
            memoryview(mapped) as whole,
            whole[skipped:] as written,
        ):
            self._sha256.update(written)
        self._done += size


def _mapped(file: int, start: int, length: int) -> mmap.mmap:
    try:
        return mmap.mmap(file, length, mmap.MAP_PRIVATE | _AT_ONCE, mmap.PROT_READ, offset=start)
    except ValueError as error:  # the file is shorter
        raise OSError(errno.EIO, "bytes that were written are not there") from error


def _write_all(file: int, buffers: Batch) -> None:
    for start in range(0, len(buffers), _MAX_BUFFERS):
        batch = [buffer for buffer in buffers[start : start + _MAX_BUFFERS] if len(buffer)]
        left = sum(map(len, batch))
        written = os.writev(file, batch)
        if written < left:  # a signal or a nearly full disk: write the rest, and let the disk say what is wrong
            rest = memoryview(b"".join(batch))[written:]
            while rest:
                rest = rest[os.write(file, rest) :]
