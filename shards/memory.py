"""Freed memory: kept for the next picture, instead of returned to the kernel and faulted in again."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

# glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD (at its maximum). https://man7.org/linux/man-pages/man3/mallopt.3.html
_MALLOC = {-1: 1 << 30, -2: 64 << 20, -3: 32 << 20}


@cache
def keep() -> None:
    """From now on, in every thread of this process. Where there is no glibc, nothing changes."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        for parameter, value in _MALLOC.items():
            ctypes.CDLL(None).mallopt(parameter, value)
