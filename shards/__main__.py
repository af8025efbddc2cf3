"""python -m shards check | show | stats | view | stream | index | sidecars PLACE"""

from __future__ import annotations

import argparse
import json
import random
import sys
from typing import Any

import msgspec
from tqdm import tqdm

from schemas import RequestError
from shards import cache, command, credentials, executor, foreign, layouts, place, reader, throughput
from shards.check import Report, check, first
from shards.show import show
from shards.sidecars import READERS, sidecars
from shards.stats import stats, table
from shards.view import command as view


def main(arguments: list[str] | None = None) -> int:
    """The exit status of `python -m shards` with these arguments."""
    options = _parser().parse_args(arguments)
    return command.run(options.command, options)


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(prog="python -m shards", description="Verify and look at a finished data set.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=command.Parser)
    one = _command(commands, "check", _check, "verify: counts, hashes, members, schema, decode", "python -m shards check out/coco --deep")
    one.add_argument("--deep", action="store_true", help="also every record, every member's hash, and every picture decoded")
    executor.add_arguments(one)
    one = _command(commands, "show", _show, "one record, readable", "python -m shards show out/coco --at 0")
    which = one.add_mutually_exclusive_group()
    which.add_argument("--key", help="the record with this key, UUUUUU-RRRRRRRR")
    which.add_argument("--at", type=int, metavar="N", help="the record of this number, from 0 (default: a random one)")
    one = _command(commands, "stats", _stats, "distributions, per source and per reject reason", "python -m shards stats out/coco --json")
    executor.add_arguments(one)
    one = _command(commands, "view", view.run, "the browser page, or a report that stands alone", "python -m shards view out/coco")
    view.add_arguments(one)
    one = _command(commands, "stream", _stream, "how fast its records come", "python -m shards stream out/coco --batch-size 64 --workers 4")
    _stream_options(one)
    one = _command(
        commands, "index", _index, "make indexes and a manifest for tars made elsewhere", "python -m shards index laion400m-data"
    )
    one.add_argument("--layout", default=foreign.AUTO, help=f"{foreign.AUTO}, {', '.join(layouts.names())} (default: auto)")
    executor.add_arguments(one)
    one = _command(
        commands, "sidecars", _sidecars, "write what other readers want", "python -m shards sidecars out/coco --for energon,wids"
    )
    one.add_argument("--for", dest="readers", required=True, help=f"some of {', '.join(READERS)}, separated by commas")
    one.add_argument(
        "--md5", action="store_true", help="wids: also the md5sum of each shard, which no reader needs; the tars are read for it"
    )
    return parser


def _command(commands: Any, name: str, run: Any, help: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help, **command.examples([example]))
    parser.add_argument("place", metavar="PLACE", help="of a finished data set: a directory, s3://BUCKET/PREFIX, gs://, az://")
    credentials.add_endpoint(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(command=run)
    return parser


def _check(options: argparse.Namespace) -> int:
    total = _size(options.place)
    with tqdm(total=total, unit="B", unit_scale=True, desc="check", disable=None, file=sys.stderr) as bar:
        report = check(options.place, deep=options.deep, workers=options.workers, executor=options.executor, progress=bar.update)
    value = {**report._asdict(), "problems": [problem._asdict() for problem in report.problems]}
    command.emit(value, options.json, lambda: _verdict(report, options.deep))
    return 0 if report.ok else 1


def _size(where: str) -> int:
    return sum(size for name, size in place.at(where).names() if name.endswith(".tar"))


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
    found = stats(options.place, workers=options.workers, executor=options.executor)
    command.emit(json.loads(json.dumps(found)), options.json, lambda: table(found))
    return 0


def _stream_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="records of a step (default: 64)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads that read and decode (default: 2)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="how long (default: 10)")
    parser.add_argument(
        "--step", type=float, default=0.0, metavar="S", help="what the trainer's step takes (default: 0, as fast as it goes)"
    )
    parser.add_argument("--decode", type=int, metavar="SIZE", help="also decode every picture, to a square of so many pixels")
    parser.add_argument("--window", type=int, default=16, metavar="W", help="shards open at a time (default: 16)")
    parser.add_argument("--resampled", action="store_true", help="draw with replacement")
    parser.add_argument("--seed", type=int, default=0)
    cache.add_arguments(parser)


def _stream(options: argparse.Namespace) -> int:
    stored = place.at(options.place).folder is None
    with reader.open(options.place, cache=cache.chosen(options) if stored else None) as data:
        names = ("batch_size", "workers", "seconds", "step", "decode", "window", "resampled", "seed")
        found = throughput.measure(data, **{name: getattr(options, name) for name in names})
    command.emit(found._asdict(), options.json, lambda: throughput.table(found))
    return 1 if found.bad_records else 0


def _index(options: argparse.Namespace) -> int:
    with tqdm(unit="B", unit_scale=True, desc="index", disable=None, file=sys.stderr) as bar:
        made = foreign.index(options.place, layout=options.layout, workers=options.workers, executor=options.executor, progress=bar.update)
    totals, found = made.manifest.totals, made.manifest
    value = {
        "layout": found.layout,
        "shards": len(found.shards),
        "records": totals["written"],
        "images": totals["images"],
        "rejected": found.rejected,
        "problems": [problem._asdict() for problem in made.problems],
    }
    text = f"{found.layout}: {totals['written']:,} records, {totals['images']:,} pictures in {len(found.shards)} tars"
    rejected = [f"rejected {reason}: {number:,}" for reason, number in found.rejected.items()]
    command.emit(value, options.json, lambda: "\n".join([text, *rejected, *map(str, made.problems)]))
    return 1 if made.problems else 0


def _sidecars(options: argparse.Namespace) -> int:
    written = sidecars(options.place, options.readers.split(","), md5=options.md5)
    command.emit({"written": written}, options.json, lambda: "\n".join(written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
