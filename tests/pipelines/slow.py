"""LLaVA's records, some milliseconds each: there is time to strike in the middle of a conversion, wherever its workers are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from pipelines.llava import Llava
from pipelines.source import Row


class Slow(Llava):
    """The same source, to everybody who asks."""

    def rows(self, unit: Any) -> Iterator[Row]:
        for found in super().rows(unit):
            time.sleep(0.005)
            yield found
