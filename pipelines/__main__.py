"""python -m pipelines list | check SOURCE ... | convert SOURCE ... --out PLACE"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Collection, Iterable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from pipelines.curation import FILTERS, Curation, asked
from pipelines.discover import exists, sources
from pipelines.discover import source as source_named
from pipelines.source import Source
from schemas import RequestError, ShardweaveError
from shards import command, credentials, executor, manifest
from shards.place import at

EXAMPLE = "llava --annotations llava_v1_5_mix665k.json --images playground/data"


def main(arguments: list[str] | None = None) -> int:
    """The exit status of `python -m pipelines` with these arguments."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser(given).parse_args(given)
        if named := getattr(options, "filters", None):  # they are defaults: a flag beside them counts more
            options = _parser(given, FILTERS[named]).parse_args(given)
    except ShardweaveError as error:
        return command.tell(str(error), 2)
    return command.run(options.command, options)


def _parser(given: list[str], filters: dict[str, Any] | None = None) -> argparse.ArgumentParser:
    parser = command.Parser(prog="python -m pipelines", description="Turn upstream annotation files into validated shards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=command.Parser)
    listed = commands.add_parser("list", help="the sources", **command.examples(["python -m pipelines list"]))
    listed.add_argument("--json", action="store_true", help="print the result as JSON")
    listed.set_defaults(command=_list)
    chosen = _chosen(given)
    known = fields(source_named(chosen)) if chosen is not None and given[0] in ("check", "convert") else ()
    check = commands.add_parser("check", help="count before converting; writes nothing", **_examples("check", chosen))
    convert = commands.add_parser("convert", help="convert; run again to go on", **_examples("convert", chosen))
    for one, run in ((check, _check), (convert, _convert)):
        one.add_argument("source", metavar="SOURCE", help="one of `python -m pipelines list`")
        one.set_defaults(command=run)
        one.add_argument("--json", action="store_true", help="print the result as JSON")
        credentials.add_endpoint(one)
        one.add_argument("--max-reject-rate", type=_rate, default=0.05, help="over it the exit status is 1 (default: 0.05)")
        if known:
            _add_fields(one, f"{chosen} options", known)
    _add_fields(convert, f"{chosen} downloads", _fetch_fields(chosen) if known else ())
    _add_run(convert)
    _add_curation(convert, {field.name for field in known})
    convert.set_defaults(**(filters or {}))
    _say_whose(check, convert)
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


def _add_fields(parser: argparse.ArgumentParser, title: str, given: Iterable[Field[Any]]) -> argparse._ArgumentGroup:
    """Fields are flags: a source's, and those of what is asked of every sample."""
    group = parser.add_argument_group(title)
    for field in given:
        group.add_argument(_name(field), **_flag(field))
    return group


def _fetch_fields(chosen: str | None) -> tuple[Field[Any], ...]:
    """The flags of a source that can have its input downloaded."""
    fetch = getattr(source_named(chosen), "fetch", None) if chosen is not None else None
    return () if fetch is None else fields(fetch)


def _name(field: Field[Any]) -> str:
    return f"--{field.name.replace('_', '-')}"


def _flag(field: Field[Any]) -> dict[str, Any]:
    help, kind = field.metadata["help"], str(field.type)
    flag: dict[str, Any] = {"help": help, "required": field.default is MISSING, "dest": field.name}
    if field.default is not MISSING:
        flag["default"] = field.default
    if kind == "bool":
        return {"help": help, "action": "store_true", "dest": field.name}
    if field.metadata["choices"]:
        flag["choices"] = field.metadata["choices"]
    if kind.startswith("tuple["):
        flag.pop("default", None)  # argparse would append to it
        of = {"type": Path, "metavar": "PATH"} if "Path" in kind else {}
        return {**flag, **of, "action": "append", "help": f"{help} (may be repeated)"}
    if field.metadata["choices"]:
        return {**flag, "help": f"{help} (default: {field.default})"}
    return {**flag, "type": next((type for name, type in _TYPES.items() if kind.startswith(name)), str)}


_TYPES = {"int": int, "float": float, "Path": Path}


def _add_curation(parser: argparse.ArgumentParser, own: Collection[str]) -> None:
    """What convert asks of every sample. A source that has a field of the same name sees to that one itself."""
    group = _add_fields(parser, "curation and resizing", (field for field in fields(Curation) if field.name not in own))
    told = "; ".join(f"{name}: {' '.join(f'{key}={value}' for key, value in values.items())}" for name, values in FILTERS.items())
    group.add_argument("--filters", choices=FILTERS, help=f"set what an upstream filters by ({told})".replace("_", "-"))


class _OnlyConvert(argparse.Action):
    """A flag that convert has and check has not."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(f"{'/'.join(self.option_strings)}: expected with convert alone, found with check, which counts the input as it is")


def _say_whose(check: argparse.ArgumentParser, convert: argparse.ArgumentParser) -> None:
    """Have check know convert's flags well enough to refuse them by name."""
    for action in convert._actions:
        if action.option_strings and not set(action.option_strings) & set(check._option_string_actions):
            hidden: dict[str, Any] = {"dest": action.dest, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            check.add_argument(*action.option_strings, action=_OnlyConvert, nargs="?", **hidden)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="PLACE", help="of the data set: a directory, s3://BUCKET/PREFIX, gs://, az://")
    executor.add_arguments(parser)
    parser.add_argument("--shard-bytes", type=command.size, default="256MiB", help="at most so much in a shard (default: 256MiB)")
    parser.add_argument("--limit", type=_positive, help="convert only the first N items")
    parser.add_argument("--duplicates", choices=("records", "images"), help="drop records, or also pictures, that an earlier one has")
    parser.add_argument("--shuffle", type=_seed, metavar="SEED", help="mix all records; needs the room of the data set twice meanwhile")


def _rate(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, found {text}")
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 and below 2**64, found {text}")
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
    return kind(**_values(options, fields(kind)))


def _values(options: argparse.Namespace, wanted: Iterable[Field[Any]]) -> dict[str, Any]:
    """By name, as a dataclass takes them; a flag that is repeated and was not given is left to its default."""
    values = {field.name: getattr(options, field.name) for field in wanted}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if value is not None}


def _curation(options: argparse.Namespace) -> Curation:
    own = {field.name for field in fields(source_named(options.source))}
    return Curation(**_values(options, (field for field in fields(Curation) if field.name not in own)))


def _fetched(options: argparse.Namespace) -> Source:
    """The source; where it was asked to download its input first, as it reads that."""
    source = _source(options)
    fetch = getattr(source, "fetch", None)
    return source if fetch is None else fetch(**_values(options, fields(fetch))).fetched(source, options.out, options.limit)


def _check(options: argparse.Namespace) -> int:
    from pipelines.check import check, missing_rate, table  # converting needs none of it, and checking none of the other

    found = check(_source(options))
    command.emit(found, options.json, lambda: table(found))
    return 1 if missing_rate(found) > options.max_reject_rate else 0


def _convert(options: argparse.Namespace) -> int:
    from pipelines.ingest import Plan, ingest, summary

    plan = Plan(
        workers=options.workers,
        executor=options.executor,
        shard_bytes=options.shard_bytes,
        limit=options.limit,
        curation=_curation(options),
        duplicates=options.duplicates,
        shuffle=options.shuffle,
    )
    place = at(options.out)
    found = ingest(_fetched(options), place, plan)
    families = manifest.families(place)
    value = {"place": str(options.out), "totals": found.totals, **families}
    value |= {"shards": len(found.shards), "fingerprint": found.fingerprint}
    then = f"next: python -m shards check {options.out} --deep"
    command.emit(value, options.json, lambda: "\n".join([*summary(found, families), then]))
    return _status(found.totals, found.rejected, options.max_reject_rate)


def _status(totals: dict[str, int], rejected: dict[str, int], allowed: float) -> int:
    """0, unless too much was rejected of what was not refused because the user asked for it."""
    wanted = sum(number for reason, number in rejected.items() if asked(reason))
    rate = (totals["rejected"] - wanted) / max(1, totals["read"] - wanted)
    if rate <= allowed and totals["written"]:
        return 0
    found = f"{rate:.1%} of the input was rejected" if totals["written"] else "no record was written"
    refused = f" ({wanted:,} refused as asked for)" if wanted and not totals["written"] else ""
    over = f", over --max-reject-rate {allowed:g}" if rate > allowed else ""
    return command.tell(f"{found}{refused}{over}: rejects.parquet says why", 1)


if __name__ == "__main__":
    sys.exit(main())
