"""Ctrl-C while a command is still importing: one line and exit status 130, as it is later.

Imports take half a second, and nobody is there yet to catch anything. Only under `python -m` of one of our commands: while Python looks for
the module, sys.argv[0] is "-m". `shards.command.run` gives the signal back to Python.
"""

from __future__ import annotations

import os
import signal
import sys

COMMANDS = frozenset(("pipelines", "shards", "trainer"))


def leave() -> None:
    """From here on, Ctrl-C is a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> None:
    os.write(2, b"error: interrupted\n")
    os._exit(130)


if sys.argv[:1] == ["-m"] and COMMANDS & set(sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1]):
    signal.signal(signal.SIGINT, _end)
