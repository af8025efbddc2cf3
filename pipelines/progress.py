"""Progress on stderr: units, and records, megabytes and rejects beside them."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from shards.executor import Counts


class Bar:
    """The bar of a pass over all units. Use as a context manager."""

    def __init__(self, verb: str, total: int, done: int = 0) -> None:
        """verb: what is done; total: units that there are; done: how many of them an earlier run has left done."""
        self.done, self.began = done, time.monotonic()
        self.bar = tqdm(total=total, initial=done, desc=verb, unit="unit", disable=None, file=sys.stderr)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, counts: Counts) -> None:
        """So much has been done since."""
        if self.bar.disable:
            return
        seconds = max(time.monotonic() - self.began, 1e-9)
        self.bar.n = self.done + counts.done
        rates = f"{counts.read / seconds:,.0f} records/s, {counts.bytes / 1e6 / seconds:,.0f} MB/s"
        self.bar.set_postfix_str(f"{rates}, {counts.rejected:,} rejects")
