"""How fast a place gives its records: what a user runs to see whether storage keeps up with the trainer."""

from __future__ import annotations

import io
import math
import sys
import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import PIL.Image as Pillow
from tqdm import tqdm

from schemas import RecordError, RequestError
from shards.order import Order
from shards.reader import Sample, Shards
from shards.stream import Stream


class Throughput(NamedTuple):
    """What was read, and how fast. Rates count from the first batch on, so that a cold start does not hide in them."""

    samples: int
    bytes: int  # of these records
    batches: int
    seconds: float
    first_batch_seconds: float
    samples_per_second: float
    megabytes_per_second: float
    wait_share: float  # of the time, waiting for a batch; the rest is the consumer's
    bad_records: int
    bytes_read: int  # from object storage
    cache_hits: int  # shards
    cache_misses: int
    next_draw: int


def measure(
    data: Shards,
    *,
    batch_size: int,
    workers: int = 2,
    seconds: float = 10.0,
    step: float = 0.0,
    decode: int | None = None,
    window: int = 16,
    resampled: bool = False,
    seed: int = 0,
    first: int = 0,
) -> Throughput:
    """Stream the place for so many seconds to a consumer whose step takes `step` seconds; `decode` makes squares of so many pixels.

    Raises RequestError for what can not be streamed, BudgetError, StoreError.
    """
    _check(data, seconds, step, decode)
    order = Order([len(shard) for shard in data.shards], seed, window=window, resampled=resampled)
    work = touched if decode is None else partial(squares, size=decode)
    stream = Stream(data, order, batch=batch_size, workers=workers, first=first, work=work)
    clock = _Clock()
    batches = iter(stream)
    try:
        with tqdm(unit=" samples", unit_scale=True, desc="stream", disable=None, file=sys.stderr) as bar:
            while clock.elapsed() < seconds or not clock.batches:
                with clock:
                    made = next(batches)
                bar.update(len(made))
                bar.set_postfix_str(f"{clock.line(stream.bytes)}, {stream.budget.skipped} bad", refresh=False)
                clock.seen(len(made), stream.bytes)
                if step:
                    time.sleep(step)
    finally:
        batches.close()  # type: ignore[attr-defined]
    return clock.result(data, stream)


def touched(sample: Sample) -> int:
    """The record's bytes are there, and checked."""
    return len(sample.key)


def squares(sample: Sample, size: int) -> list[np.ndarray]:
    """The record's pictures, uint8 (size, size, 3) each. A JPEG is decoded at the smallest scale that is no smaller than this."""
    return [_square(sample.image(number), size) for number in range(len(sample.record.images))]


def _square(data: memoryview, size: int) -> np.ndarray:
    try:
        with Pillow.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (size, size))
            return np.asarray(opened.convert("RGB").resize((size, size), Pillow.Resampling.BICUBIC))
    except Exception as error:  # whatever a decoder raises on hostile bytes, it did not decode
        raise RecordError("image_decode", f"{type(error).__name__}: {error}"[:200]) from error


def _check(data: Shards, seconds: float, step: float, decode: int | None) -> None:
    if not len(data):
        raise RequestError(f"{data.place.url}: expected records to stream, found none")
    for name, value, least in (("--seconds", seconds, 0.0), ("--step", step, 0.0), ("--decode", 1 if decode is None else decode, 1)):
        if not least <= value < math.inf:
            raise RequestError(f"{name}: expected at least {least:g}, found {value}")


class _Clock:
    """Where the time goes: a context around each wait for a batch."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.first = self.waited = 0.0  # the first batch's wait; that of all others
        self.batches = self.samples = self.first_samples = self.first_bytes = 0

    def __enter__(self) -> None:
        self._asked = time.monotonic()

    def __exit__(self, *_: object) -> None:
        wait = time.monotonic() - self._asked
        if self.batches:
            self.waited += wait
        else:
            self.first = wait

    def seen(self, samples: int, bytes: int) -> None:
        """A batch has come."""
        if not self.batches:
            self.first_samples, self.first_bytes = samples, bytes
        self.batches += 1
        self.samples += samples

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def line(self, bytes: int) -> str:
        """For the bar."""
        rest = max(self.elapsed() - self.first, 1e-9)
        return f"{(bytes - self.first_bytes) / rest / 1e6:.1f} MB/s, wait {self.waited / rest:.1%}"

    def result(self, data: Shards, stream: Stream[Any]) -> Throughput:
        """All of it."""
        elapsed = self.elapsed()
        rest = elapsed - self.first
        later = self.batches > 1
        return Throughput(
            samples=self.samples,
            bytes=stream.bytes,
            batches=self.batches,
            seconds=elapsed,
            first_batch_seconds=self.first,
            samples_per_second=(self.samples - self.first_samples) / rest if later else self.samples / elapsed,
            megabytes_per_second=((stream.bytes - self.first_bytes) / rest if later else stream.bytes / elapsed) / 1e6,
            wait_share=self.waited / rest if later else 1.0,
            bad_records=stream.budget.skipped,
            bytes_read=data.fetched.bytes_read,
            cache_hits=data.fetched.cache_hits,
            cache_misses=data.fetched.cache_misses,
            next_draw=stream.draw,
        )


def table(found: Throughput) -> str:
    """For people."""
    fetched = f"{found.bytes_read / 1e6:,.1f} MB from the store, {found.cache_hits} shards from the cache, {found.cache_misses} into it"
    return "\n".join(
        [
            f"samples/s    {found.samples_per_second:,.0f}",
            f"MB/s         {found.megabytes_per_second:,.1f}",
            f"wait         {found.wait_share:.1%} of the time",
            f"first batch  {found.first_batch_seconds:.3f} s",
            f"read         {found.samples:,} samples, {found.bytes / 1e6:,.1f} MB, in {found.seconds:.1f} s",
            f"fetched      {fetched}",
            f"bad records  {found.bad_records}",
        ]
    )
