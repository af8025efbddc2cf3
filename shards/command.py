"""The edge of a command: where errors become one line and an exit status.

0 done and sound; 1 ran, and found problems; 2 the request or an input file is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from schemas import RequestError, ShardweaveError, SourceError, StoreError, interrupt
from shards import credentials

MAX_LINE = 1800  # characters of what is said of an error


class Parser(argparse.ArgumentParser):
    """An argparse parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def run(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """The exit status of a command whose errors have been told in one line each."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        interrupt.leave()
        credentials.use_endpoint(getattr(arguments, "endpoint", None))
        return command(arguments)
    except (RequestError, SourceError, StoreError) as error:
        return tell(str(error), 2)
    except ShardweaveError as error:
        return tell(str(error), 1)
    except KeyboardInterrupt:
        return tell("interrupted: what is done is kept, the same command goes on", 130)
    except MemoryError:
        return tell("out of memory; what is done is kept, the same command goes on (each of --workers needs its own)", 2)
    except RuntimeError as error:
        if str(error) != "can't start new thread":
            raise
        return tell("no more threads: out of memory, or of processes (ulimit -u); what is done is kept, the same command goes on", 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of stdout has gone: no traceback at exit
        return 0
    except OSError as error:
        return tell(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)


def tell(message: str, status: int) -> int:
    """One line on stderr, of bounded length, that can not drive the terminal; the status."""
    line = "".join(letter if letter.isprintable() else f"{letter!a}"[1:-1] for letter in " ".join(message.splitlines()))
    print(f"error: {line if len(line) <= MAX_LINE else line[: MAX_LINE - 500] + ' ... ' + line[-400:]}", file=sys.stderr)
    return status


def emit(value: Any, as_json: bool, text: Callable[[], str]) -> None:
    """The result on stdout: JSON for programs, text for people. A file name that is no UTF-8 is escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    print(json.dumps(value, ensure_ascii=False) if as_json else text())


def examples(lines: Sequence[str]) -> dict[str, Any]:
    """What a parser needs to end its help with examples as they stand."""
    return {"epilog": "examples:\n" + "\n".join(f"  {line}" for line in lines), "formatter_class": argparse.RawDescriptionHelpFormatter}


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def size(text: str) -> int:
    """Bytes, of a text such as 256MiB."""
    number = text.rstrip("BKMGibkmgI")
    factor = _UNITS.get(text[len(number) :].upper())
    if factor is None or not number.isdecimal() or int(number) * factor < 1024:
        raise argparse.ArgumentTypeError(f"expected a size of at least 1KiB such as 256MiB, found {text}")
    return int(number) * factor
