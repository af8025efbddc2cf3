"""python -m shards check | show | stats PLACE"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from typing import Any

import msgspec
from tqdm import tqdm

from schemas import RequestError
from shards import command, reader
from shards.check import Report, check, first
from shards.show import show
from shards.stats import stats, table


def main(arguments: list[str] | None = None) -> int:
    """The exit status of `python -m shards` with these arguments."""
    options = _parser().parse_args(arguments)
    return command.run(options.command, options)


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(prog="python -m shards", description="Verify and look at a finished data set.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=command.Parser)
    one = _command(commands, "check", _check, "verify: counts, hashes, members, schema, decode", "python -m shards check out/coco --deep")
    one.add_argument("--deep", action="store_true", help="also every record, every member's hash, and every picture decoded")
    one.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="shards verified at a time (default: one a core)")
    one = _command(commands, "show", _show, "one record, readable", "python -m shards show out/coco --at 0")
    which = one.add_mutually_exclusive_group()
    which.add_argument("--key", help="the record with this key, UUUUUU-RRRRRRRR")
    which.add_argument("--at", type=int, metavar="N", help="the record of this number, from 0 (default: a random one)")
    _command(commands, "stats", _stats, "distributions, per source and per reject reason", "python -m shards stats out/coco --json")
    return parser


def _command(commands: Any, name: str, run: Any, help: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help, **command.examples([example]))
    parser.add_argument("place", metavar="PLACE", help="directory of a finished data set")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(command=run)
    return parser


def _check(options: argparse.Namespace) -> int:
    total = _size(options.place)
    with tqdm(total=total, unit="B", unit_scale=True, desc="check", disable=None, file=sys.stderr) as bar:
        report = check(options.place, deep=options.deep, workers=options.workers, progress=bar.update)
    value = {**report._asdict(), "problems": [problem._asdict() for problem in report.problems]}
    command.emit(value, options.json, lambda: _verdict(report, options.deep))
    return 0 if report.ok else 1


def _size(place: str) -> int | None:
    folder = reader.local(place)
    return sum(path.stat().st_size for path in folder.glob("*.tar")) if folder.is_dir() else None


def _verdict(report: Report, deep: bool) -> str:
    seen = f"{report.records:,} records, {report.images:,} pictures"
    if report.ok:
        return f"sound: {seen}{', every one decoded' if deep else ''}"
    rest = len(report.problems) - 20
    more = [f"... and {rest} more (--json lists all)"] if rest > 0 else []
    return "\n".join([f"{len(report.problems)} problems: {seen}", *first(report.problems, 20), *more])


def _show(options: argparse.Namespace) -> int:
    data = reader.open(options.place)
    if not len(data):
        raise RequestError(f"{options.place}: expected a record to show, found none")
    try:
        at = options.at if options.at is not None else random.randrange(len(data))
        sample = data.get(options.key) if options.key else data[at]
    except (KeyError, IndexError) as error:
        raise RequestError(f"{options.place}: expected a record of this name, found none: {error.args[0]}") from error
    command.emit(msgspec.to_builtins(sample.record), options.json, lambda: show(sample))
    return 0


def _stats(options: argparse.Namespace) -> int:
    found = stats(options.place)
    command.emit(json.loads(json.dumps(found)), options.json, lambda: table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
