"""The commands: train, tokens, tokenizer. stdout carries the result, stderr the progress.

Exit status: 0 done and sound; 1 ran, and found problems; 2 the request or an input file is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from schemas import RequestError, ShardweaveError, SourceError, StoreError
from shards import credentials
from trainer import recipe as recipes
from trainer.recipe import Recipe

TRAIN_EXAMPLE = """example:
  python -m trainer tokenizer --from places/captions --vocab 2000 --out places/tokenizer
  python -m trainer train tiny-demo --source captions=places/captions --set tokenizer.path=places/tokenizer --out runs/first
  torchrun --standalone --nproc-per-node 2 -m trainer train tiny-demo --source captions=places/captions --out runs/two \\
      --set tokenizer.path=places/tokenizer
"""
TOKENS_EXAMPLE = """example:
  python -m trainer tokens tiny-demo --source captions=places/captions --set tokenizer.path=places/tokenizer --records 3
"""
TOKENIZER_EXAMPLE = """example:
  python -m trainer tokenizer --from places/captions --vocab 2000 --out places/tokenizer
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        credentials.use_endpoint(options.endpoint)
        return options.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        print(f"error: expected {error.name}, found it not installed: pip install 'shardweave[train]'", file=sys.stderr)
        return 2
    except (RequestError, SourceError, StoreError) as error:
        return _refused(error, 2)
    except ShardweaveError as error:
        return _refused(error, 1)
    except OSError as error:
        return _refused(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)


def _refused(error: ShardweaveError | str, status: int) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return status


def _train(options: argparse.Namespace) -> int:
    recipe = _recipe(options)
    if options.out is not None:
        recipe = dataclasses.replace(recipe, out=options.out)
    from tqdm.contrib.logging import logging_redirect_tqdm

    from trainer.sources import open_sources

    open_sources(recipe)  # a wrong place is told at once
    from trainer import assembly, blank, engine, loop  # torch takes seconds to import: not for --help or tokens
    from trainer.log import RunFolder

    rank, ranks = engine.launched()
    folder = RunFolder(recipe, resume=options.resume, rank=rank)
    with engine.started(recipe) as recipe, logging_redirect_tqdm():
        run = assembly.assemble(recipe, rank, ranks)
        with folder:
            result = loop.train(run, folder)
        if rank:
            return 0
        if options.blank:
            result |= {"blank": dataclasses.asdict(blank.compare(run, blank.first_examples(run, options.blank)))}
    print(json.dumps(result) if options.json else _told(result))
    return 1 if sum(result["bad_records"].values()) or result["loss"] is None else 0


def _told(result: dict) -> str:
    lines = [f"{result['steps']} steps in {result['seconds']:.1f} s, loss {result['loss']}, written to {result['out']}"]
    if result["skipped_updates"]:
        lines.append(f"{result['skipped_updates']} steps had nothing to train on: their updates were skipped")
    lines += [f"{source}: {count} bad records skipped" for source, count in result["bad_records"].items()]
    if "blank" in result:
        seen = result["blank"]
        lines.append(f"loss of {seen['records']} records: {seen['picture']:.4f} with their picture, {seen['blank']:.4f} with a blank one")
    return "\n".join(lines)


def _tokens(options: argparse.Namespace) -> int:
    from trainer import tokens

    problems = 0
    for source, key, rendered, problem in tokens.seen(_recipe(options), options.records):
        if rendered is None:
            problems += 1
            print(f"{source} {key}: {problem}", file=sys.stderr)
        elif options.json:
            print(json.dumps(tokens.as_json(source, key, rendered)))
        else:
            print(tokens.readable(source, key, rendered))
    return 1 if problems else 0


def _tokenizer(options: argparse.Namespace) -> int:
    import shards
    from trainer import vocabulary

    places = [shards.open(place) for place in options.places]
    lines = (text for data in places for sample in data for text in vocabulary.texts(sample.record))
    made = vocabulary.make(itertools.chain(vocabulary.fixed(), lines), options.vocab)
    vocabulary.save(made, Path(options.out))
    size = made.get_vocab_size()
    print(json.dumps({"out": options.out, "vocabulary": size}) if options.json else f"{size} tokens, written to {options.out}")
    return 0


def _recipe(options: argparse.Namespace) -> Recipe:
    return recipes.load(options.recipe, sources=options.source, settings=options.set)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Train vision-language models from shards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = _command(commands, "train", "train a recipe", TRAIN_EXAMPLE)
    _recipe_options(train)
    train.add_argument("--out", metavar="FOLDER", help="the run folder: new, empty, or of this run, which then goes on")
    train.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint, also with a changed recipe")
    train.add_argument("--blank", type=_count, default=0, metavar="N", help="then compare with blank pictures, on N records a source")
    train.set_defaults(run=_train)
    show = _command(commands, "tokens", "show what the model will see, and what it is trained on", TOKENS_EXAMPLE)
    _recipe_options(show)
    show.add_argument("--records", type=_count, metavar="N", help="the first N records of each source; all of them otherwise")
    show.set_defaults(run=_tokens)
    make = _command(commands, "tokenizer", "make a small tokenizer from the texts of shards", TOKENIZER_EXAMPLE)
    make.add_argument("--from", dest="places", nargs="+", required=True, metavar="PLACE", help="shards whose texts it learns")
    make.add_argument("--vocab", type=_count, default=2000, metavar="N", help="most tokens, at least 259 (default 2000)")
    make.add_argument("--out", required=True, metavar="FOLDER", help="where tokenizer.json goes")
    make.set_defaults(run=_tokenizer)
    return parser


def _command(commands: argparse._SubParsersAction, name: str, help: str, example: str) -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(name, help=help, description=help.capitalize() + ".", epilog=example, formatter_class=plain)
    command.add_argument("--json", action="store_true", help="write the result to stdout as JSON")
    credentials.add_endpoint(command)
    return command


def _recipe_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help=f"a TOML file, or one of {', '.join(recipes.shipped())}")
    command.add_argument("--source", action="append", default=[], metavar="NAME=PLACE", help="where a source's shards are")
    command.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change a value, as in optimizer.lr=1e-4")


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
