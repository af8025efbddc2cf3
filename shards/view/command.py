"""python -m shards view PLACE: the page on the loopback address, or the report in a file."""

from __future__ import annotations

import argparse
import contextlib
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from schemas import RequestError
from shards import command, reader
from shards.reader import Shards

if TYPE_CHECKING:
    from shards.view.mixture import Mixture
    from shards.view.pages import View
    from shards.view.tokens import Tokens

SHOWN, ASKED = 12, 100  # records of a report; records that a recipe is asked about


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `view`."""
    parser.add_argument("--export", type=Path, metavar="FILE.html", help="write a report that stands alone, instead of serving")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="on 127.0.0.1 (default: any that is free)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="a run folder of the trainer: its losses, and what was served")
    parser.add_argument(
        "--upstream", type=Path, action="append", default=[], metavar="FOLDER", help="where rejected inputs and pictures lie (repeatable)"
    )
    parser.add_argument("--recipe", metavar="RECIPE", help="show what it trains on: runs python -m trainer tokens RECIPE")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="of the recipe (repeatable)")
    parser.add_argument("--tokens", type=Path, metavar="FILE.jsonl", help="instead of --recipe: what trainer tokens --json printed")
    parser.add_argument("--tokens-source", metavar="NAME", help="the recipe's source that this place is (default: the data set's source)")
    parser.add_argument(
        "--source", action="append", default=[], metavar="NAME=PLACE", help="where another source of the recipe lies (repeatable)"
    )
    parser.add_argument("--records", type=int, metavar="N", help=f"records of the report ({SHOWN}), records asked of --recipe ({ASKED})")


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted, or export. Raises RequestError where the extra `view` is not installed, or an option is wrong."""
    try:
        from shards.view import app
        from shards.view.pages import Pages
    except ModuleNotFoundError as error:
        raise RequestError(f"view: expected {error.name}, found it not installed: pip install 'shardweave[view]'") from error
    with reader.open(options.place) as data:
        view = _view(options, data)
        if options.export:
            return _export(options, view)
        listening = app.listen(options.port)
        address = f"http://{app.HOST}:{listening.getsockname()[1]}/"
        command.emit({"address": address}, options.json, lambda: address)
        sys.stdout.flush()
        if not options.no_browser and sys.stdout.isatty():
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):  # how one closes it
            app.server(Pages(view)).run(sockets=[listening])
    return 0


def _view(options: argparse.Namespace, data: Shards) -> View:
    from shards.view.desk import Desk
    from shards.view.pages import View
    from shards.view.runs import Run
    from shards.view.upstream import Upstream

    tokens, mixture = _recipe(options, data.manifest.source)
    return View(
        Desk(data),
        run=Run(options.run) if options.run else None,
        tokens=tokens,
        mixture=mixture,
        upstream=Upstream(options.upstream) if options.upstream else None,
    )


def _recipe(options: argparse.Namespace, source: str) -> tuple[Tokens | None, Mixture | None]:
    """What is trained on, and how sources are mixed, as far as it was asked for."""
    from shards.view import mixture, tokens

    if options.tokens:
        return tokens.read(options.tokens, options.tokens_source), None
    if options.recipe:
        name = options.tokens_source or source
        places = {**dict(_named(word) for word in options.source), name: options.place}
        found = tokens.run(options.recipe, places, name, options.records or ASKED, options.set)
        return found, mixture.run(options.recipe, places, found, options.set)
    return None, None


def _named(word: str) -> tuple[str, str]:
    name, equals, place = word.partition("=")
    if not (name and equals and place):
        raise RequestError(f"--source {word}: expected NAME=PLACE, found something else")
    return name, place


def _export(options: argparse.Namespace, view: View) -> int:
    from shards.view.export import export

    with tqdm(total=view.numbers.total, unit="shard", desc="view", disable=None, file=sys.stderr) as bar:
        size = export(view, options.export, SHOWN if options.records is None else options.records, bar.update)
    command.emit({"report": str(options.export), "bytes": size}, options.json, lambda: f"{options.export}: {size / 1e6:.1f} MB")
    return 0
