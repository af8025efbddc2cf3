"""The sink: a shard's bytes into its file. Of every record the CRC-32 of its bytes in the tar, and of every picture the XXH3-128 of its
payload, are taken on the way, at 12 GB/s; the shard's sha256, which is slower, when it is whole (shards.settle)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import xxhash
from isal import isal_zlib

Buffer = bytes | memoryview
Batch = Sequence[Buffer]
_BATCH = 512 << 10  # bytes written at once: they are still in the second-level cache
_MAX_BUFFERS = 1000  # of one writev (IOV_MAX is 1024)


class Sink:
    """The bytes of one shard on their way into a file."""

    def __init__(self, file: int) -> None:
        """file: a descriptor open for writing, which stays its owner's to sync and close."""
        self.crc32: list[int] = []  # one a record
        self.xxh3: list[bytes] = []  # one a picture
        self._batch: list[Buffer] = []
        self._batch_bytes = 0
        self._file = file

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
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        for start in range(0, len(batch), _MAX_BUFFERS):
            write_all(self._file, [buffer for buffer in batch[start : start + _MAX_BUFFERS] if len(buffer)])


def write_all(file: int, batch: Batch) -> None:
    """Write these, all of them. Raises OSError."""
    left = sum(map(len, batch))
    written = os.writev(file, batch) if batch else 0
    if written < left:  # a signal or a nearly full disk: write the rest, and let the disk say what is wrong
        rest = memoryview(b"".join(batch))[written:]
        while rest:
            rest = rest[os.write(file, rest) :]
