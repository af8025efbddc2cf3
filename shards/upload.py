"""Upload: finished shards go to object storage in the background, one at a time, while the next one is written."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from shards.place import Place


class Uploads:
    """Tars of a scratch folder on their way to a place, the index before its tar, and then removed here."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._pool = ThreadPoolExecutor(1, "upload")
        self._last: Future[None] | None = None

    def put(self, tar: Path) -> None:
        """Upload this one when the one before is done: no more than two wait on the disk. Raises StoreError of an earlier one."""
        self.wait()
        self._last = self._pool.submit(self._send, tar)

    def wait(self) -> None:
        """Until every one is there. Raises StoreError."""
        if self._last is not None:
            self._last.result()

    def _send(self, tar: Path) -> None:
        for path in (tar.with_suffix(".parquet"), tar):
            self.place.upload(path.name, path)
            path.unlink()
