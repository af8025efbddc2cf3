"""Imported where ranks are started: DeepSpeed then takes float16 on any processor. It is slow on most, and the numbers are the same."""

from __future__ import annotations

import contextlib
import os
import sys

os.environ.setdefault("DS_ACCELERATOR", "cpu")
with contextlib.redirect_stdout(sys.stderr):  # a command's stdout is its result
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator


def _supported(self: CPU_Accelerator) -> bool:
    return True


CPU_Accelerator.is_fp16_supported = _supported
