"""SIGTERM, which a cluster sends before it takes a machine away: the run ends behind the step that it is in, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

STATUS = 128 + signal.SIGTERM  # 143, as a shell tells a process that a signal ended


class Stop:
    """Whether somebody asked for the end. Use it as a context, in the main thread; elsewhere nobody can ask. A second signal kills."""

    asked = False

    def __enter__(self) -> Stop:
        self._main = threading.current_thread() is threading.main_thread()
        self._before: Any = signal.signal(signal.SIGTERM, self._ask) if self._main else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
