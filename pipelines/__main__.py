"""python -m pipelines list | check SOURCE ... | convert SOURCE ... --out PLACE"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from pipelines.discover import exists, sources
from pipelines.discover import source as source_named
from pipelines.source import Source
from schemas import RequestError, ShardweaveError
from shards import command, credentials, manifest
from shards.place import at

EXAMPLE = "llava --annotations llava_v1_5_mix665k.json --images playground/data"


def main(arguments: list[str] | None = None) -> int:
    """The exit status of `python -m pipelines` with these arguments."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser(given).parse_args(given)
    except ShardweaveError as error:
        return command.tell(str(error), 2)
    return command.run(options.command, options)


def _parser(given: list[str]) -> argparse.ArgumentParser:
    parser = command.Parser(prog="python -m pipelines", description="Turn upstream annotation files into validated shards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=command.Parser)
    listed = commands.add_parser("list", help="the sources", **command.examples(["python -m pipelines list"]))
    listed.add_argument("--json", action="store_true", help="print the result as JSON")
    listed.set_defaults(command=_list)
    chosen = _chosen(given)
    check = commands.add_parser("check", help="count before converting; writes nothing", **_examples("check", chosen))
    convert = commands.add_parser("convert", help="convert; run again to go on", **_examples("convert", chosen))
    for one, run in ((check, _check), (convert, _convert)):
        one.add_argument("source", metavar="SOURCE", help="one of `python -m pipelines list`")
        one.set_defaults(command=run)
        one.add_argument("--json", action="store_true", help="print the result as JSON")
        credentials.add_endpoint(one)
        one.add_argument("--max-reject-rate", type=_rate, default=0.05, help="over it the exit status is 1 (default: 0.05)")
        if chosen is not None and given[0] in ("check", "convert"):
            _add_fields(one, source_named(chosen))
    _add_run(convert)
    return parser


def _chosen(given: list[str]) -> str | None:
    """The source that the arguments name: its fields are flags, so it has to be known before they are read."""
    guess = given[1] if len(given) > 1 and not given[1].startswith("-") else None
    return guess or next((text for text in given[1:] if exists(text)), None)


def _examples(verb: str, chosen: str | None) -> dict[str, Any]:
    """The example in the docstring of a source's class, or a general one."""
    found = EXAMPLE
    if chosen is not None and chosen.isidentifier():
        lines = (inspect.getdoc(source_named(chosen)) or "").splitlines()
        found = next((line.strip().removeprefix("example: ") for line in lines if line.strip().startswith("example: ")), chosen + " ...")
    return command.examples([f"python -m pipelines {verb} {found}{' --out out/' + found.split()[0] if verb == 'convert' else ''}"])


def _add_fields(parser: argparse.ArgumentParser, source: type[Source]) -> None:
    """A source's fields are its flags."""
    group = parser.add_argument_group(f"{source.name} options")
    for field in fields(source):
        group.add_argument(f"--{field.name.replace('_', '-')}", **_flag(field))


def _flag(field: Field[Any]) -> dict[str, Any]:
    help, kind = field.metadata["help"], str(field.type)
    flag: dict[str, Any] = {"help": help, "required": field.default is MISSING, "dest": field.name}
    if field.default is not MISSING:
        flag["default"] = field.default
    if kind == "bool":
        return {"help": help, "action": "store_true", "dest": field.name}
    if kind.startswith("tuple[Path"):
        flag.pop("default", None)  # argparse would append to it
        return {**flag, "type": Path, "action": "append", "help": f"{help} (may be repeated)", "metavar": "PATH"}
    if field.metadata["choices"]:
        return {**flag, "choices": field.metadata["choices"], "help": f"{help} (default: {field.default})"}
    return {**flag, "type": int if kind.startswith("int") else Path if "Path" in kind else str}


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="PLACE", help="of the data set: a directory, s3://BUCKET/PREFIX, gs://, az://")
    parser.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--executor", choices=("local",), default="local", help="who runs the workers")
    parser.add_argument("--shard-bytes", type=command.size, default="256MiB", help="at most so much in a shard (default: 256MiB)")
    parser.add_argument("--limit", type=_positive, help="convert only the first N items")


def _rate(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, found {text}")
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return int(text)


def _list(options: argparse.Namespace) -> int:
    found = {name: _headline(source) for name, source in sources().items()}
    command.emit(found, options.json, lambda: "\n".join(f"{name:<16}{line}" for name, line in found.items()))
    return 0


def _headline(source: type[Source]) -> str:
    module = inspect.getmodule(source)
    return (inspect.getdoc(module) or "").splitlines()[0]


def _source(options: argparse.Namespace) -> Source:
    kind = source_named(options.source)
    if not all(hasattr(options, field.name) for field in fields(kind)):
        raise RequestError(f"{options.source}: expected the source before the options, found it behind")
    values = {field.name: getattr(options, field.name) for field in fields(kind)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if value is not None})


def _check(options: argparse.Namespace) -> int:
    from pipelines.check import check, missing_rate, table  # converting needs none of it, and checking none of the other

    found = check(_source(options))
    command.emit(found, options.json, lambda: table(found))
    return 1 if missing_rate(found) > options.max_reject_rate else 0


def _convert(options: argparse.Namespace) -> int:
    from pipelines.ingest import Plan, ingest, summary

    plan = Plan(workers=options.workers, shard_bytes=options.shard_bytes, limit=options.limit)
    place = at(options.out)
    found = ingest(_source(options), place, plan)
    families = manifest.families(place)
    value = {"place": str(options.out), "totals": found.totals, **families}
    value |= {"shards": len(found.shards), "fingerprint": found.fingerprint}
    then = f"next: python -m shards check {options.out} --deep"
    command.emit(value, options.json, lambda: "\n".join([*summary(found, families), then]))
    return _status(found.totals, options.max_reject_rate)


def _status(totals: dict[str, int], allowed: float) -> int:
    rate = totals["rejected"] / max(1, totals["read"])
    if rate <= allowed and totals["written"]:
        return 0
    found = f"{rate:.1%} of the input was rejected" if totals["written"] else "no record was written"
    return command.tell(f"{found}, over --max-reject-rate {allowed:g}: rejects.parquet says why", 1)


if __name__ == "__main__":
    sys.exit(main())
