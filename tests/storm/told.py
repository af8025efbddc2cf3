"""One run of a command inside this process: its exit status, what it printed, and whether that is how a command may end."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

MAX_LINE = 2000  # characters of a line that says what is wrong


class Told(NamedTuple):
    """status is None where an exception came out of the command; err is then its traceback."""

    status: int | None
    out: str
    err: str

    def wrong(self) -> Iterator[str]:
        """What a command must never do, whatever it is given: 0, 1 or 2, and for 2 one line that says why."""
        if self.status is None or "Traceback" in self.err:
            yield f"traceback: {self.err}"
        elif self.status not in (0, 1, 2):
            yield f"exit status {self.status}: {self.err}"
        elif self.status == 2 and len(self.err.splitlines()) != 1:
            yield f"exit status 2 with {len(self.err.splitlines())} lines: {self.err}"
        elif any(len(line) > MAX_LINE for line in self.err.splitlines()):
            yield f"a line of {max(map(len, self.err.splitlines()))} characters: {self.err[:500]}"

    def line(self) -> str:
        """The last line on stderr."""
        return (self.err.splitlines() or [""])[-1]


def told(main: Callable[[list[str]], int], *arguments: object) -> Told:
    """Run it. Its descriptors 1 and 2 are files that `capture` has made."""
    for descriptor in (1, 2):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
    status: int | None = None
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - whatever it is, it is what is looked for
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = (os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode("utf-8", "replace") for descriptor in (1, 2))
    return Told(status, out, err)


def capture(err: str) -> int:
    """From here on stdout and stderr go into files, stderr into the one of this name, which outlives a crash. The old stdout."""
    real = os.dup(1)
    os.dup2(os.memfd_create("stdout"), 1)
    os.dup2(os.open(err, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), 2)
    return real
