"""python -m trainer, asked as a command: shards knows no trainer."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, NamedTuple

from schemas import RequestError

SECONDS = 600  # that a command may take


class Answer(NamedTuple):
    """Exit status, stdout from its beginning, and the last line of stderr."""

    status: int
    out: IO[bytes]
    said: str


@contextmanager
def trainer(words: Sequence[str]) -> Iterator[Answer]:
    """What the command answers. Raises RequestError where it takes too long."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            status = subprocess.run(
                [sys.executable, "-m", "trainer", *words], stdout=out, stderr=err, timeout=SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise RequestError(f"trainer {words[0]}: expected it to end within {SECONDS} s, found it going on") from error
        out.seek(0)
        err.seek(0)
        lines = err.read().decode("utf-8", "replace").strip().splitlines()
        yield Answer(status, out, lines[-1][:500] if lines else "nothing said")


def given(places: Mapping[str, str], settings: Sequence[str]) -> list[str]:
    """Options that say where a recipe's sources lie, and what is set in it."""
    sources = [word for name, place in places.items() for word in ("--source", f"{name}={place}")]
    return sources + [word for setting in settings for word in ("--set", setting)]
