"""Commands: run as a person would type them, shown with what they printed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WIDE = 118  # characters of a line
INDENT = "    "


class DemoError(Exception):
    """The demo did not go as it has to; the message is for a person."""


class Command:
    """One command line and what came of it. Raises DemoError with all of its output where it failed."""

    def __init__(self, *words: str | Path) -> None:
        self.words = [_relative(str(word)) for word in words]
        ours = [sys.executable, "-m", *self.words]
        done = subprocess.run(ours, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONWARNINGS": "ignore"})
        self.stdout = done.stdout
        if done.returncode:
            raise DemoError(f"{self.line()}\nended with status {done.returncode}:\n{done.stdout}{done.stderr}")

    def json(self) -> Any:
        """What it printed under --json."""
        return json.loads(self.stdout)

    def line(self) -> str:
        """As it can be typed in the repository, broken where it is long."""
        words = [_relative(sys.executable), "-m", *self.words]
        broken = textwrap.wrap(shlex.join(words), WIDE - 8, break_long_words=False, break_on_hyphens=False)
        return " \\\n        ".join(broken)

    def shown(self, *, lines: int = 8, text: str | None = None) -> str:
        """The line and the first of what it printed, or `text` instead."""
        said = [piece for line in (self.stdout if text is None else text).rstrip().splitlines() for piece in _wrapped(line)]
        rest = [f"... {len(said) - lines} more lines"] if len(said) > lines + 1 else said[lines:]
        return "\n".join([f"  $ {self.line()}", *(INDENT + line for line in [*said[:lines], *rest])])


def _relative(word: str) -> str:
    """Paths in the repository from there, also behind NAME=."""
    return word.replace(f"{ROOT}{os.sep}", "")


def _wrapped(line: str) -> list[str]:
    """Long lines, such as the text of a document, over several."""
    inside = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(line, WIDE - len(INDENT), subsequent_indent=inside, drop_whitespace=False) or [""]
