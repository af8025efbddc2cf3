"""Retry: a store that throttles, fails, resets or stalls is asked again, with exponential backoff and full jitter, until a deadline.

https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from schemas import RequestError, StoreError

DEADLINE = 120.0  # seconds from the first try of a request to the error; $SHARDWEAVE_STORE_DEADLINE
REQUEST = 30.0  # seconds that one try may take, of a piece of some MiB
STALL = 10.0  # seconds without a byte
FIRST, MOST = 0.1, 10.0  # seconds: the longest first wait, and the longest of all
TELL = 3  # tries after which a person is told why it takes so long
T = TypeVar("T")
log = logging.getLogger(__name__)


class Passing(Exception):
    """What may be gone at the next try: throttling, 5xx, a reset, a stall, a short read. Its text is what the store said."""


def deadline() -> float:
    """Seconds until a request that does not succeed is an error. Raises RequestError where $SHARDWEAVE_STORE_DEADLINE is no such number."""
    text = os.environ.get("SHARDWEAVE_STORE_DEADLINE") or str(DEADLINE)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise RequestError(f"SHARDWEAVE_STORE_DEADLINE: expected seconds above 0, found {text!r}")
    return value


def request_timeout() -> float:
    """Seconds that one try may take: some fit into the deadline, and the last one ends before it."""
    return min(REQUEST, deadline() / 4)


def tried(ask: Callable[[], T], what: str) -> T:
    """What `ask` gives, asked again as long as it raises Passing. Raises StoreError, which begins with `what`, at the deadline."""
    begun = time.monotonic()
    for attempt in itertools.count():
        try:
            return ask()
        except Passing as error:
            wait = random.uniform(0, min(MOST, FIRST * 2**attempt))
            if time.monotonic() - begun + wait + request_timeout() > deadline():
                tries = f"{attempt + 1} {'try' if attempt == 0 else 'tries'}"
                raise StoreError(f"{what}: expected success within {deadline():g} s, found after {tries}: {error}") from error
            if attempt + 1 == TELL:
                log.warning("%s: trying again for %g s: %s", what, deadline(), error)
            time.sleep(wait)
    raise AssertionError("itertools.count does not end")
