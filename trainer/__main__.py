"""The commands: train, tokens, tokenizer, generate, evaluate, export. stdout carries the result, stderr the progress.

Exit status: 0 done and sound; 1 ran, and found problems; 2 the request or an input file is wrong; 130 interrupted; 143 stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas import RequestError
from shards import command, credentials
from trainer import recipe as recipes
from trainer.recipe import Recipe

if TYPE_CHECKING:  # torch takes seconds to import: not for --help or tokens
    from trainer.run.held_out import Measured
    from trainer.use.generate import Answer, Sampling
    from trainer.use.trained import Trained

TRAIN = [
    "python -m trainer tokenizer --from places/captions --vocab 2000 --out places/tokenizer",
    "python -m trainer train tiny-demo --source captions=places/captions --set tokenizer.path=places/tokenizer --out runs/first",
    "torchrun --standalone --nproc-per-node 2 -m trainer train tiny-demo --source captions=places/captions --out runs/two \\",
    "    --set tokenizer.path=places/tokenizer",
]
TOKENS = ["python -m trainer tokens tiny-demo --source captions=places/captions --set tokenizer.path=places/tokenizer --records 3"]
TOKENIZER = ["python -m trainer tokenizer --from places/captions --vocab 2000 --out places/tokenizer"]
GENERATE = [
    'python -m trainer generate runs/first --image photo.jpg --prompt "What is this?"',
    'python -m trainer generate runs/first --image one.jpg --image two.jpg --prompt "What differs?" --json',
    'python -m trainer generate runs/flamingo --image one.jpg --prompt "A dog." --image two.jpg --prompt "A"     # few-shot',
    "python -m trainer generate runs/first --image photo.jpg                # a conversation: a line of stdin, an answer",
]
EVALUATE = [
    "python -m trainer evaluate runs/first --source captions=places/held-out --records 500",
    "python -m trainer evaluate runs/first --questions question.jsonl --images val2014 --out answers.jsonl",
]
EXPORT = [
    "python -m trainer export runs/first --to exported --form hf",
    "python -m trainer export runs/first --to merged --form merged --step 500",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    return command.run(_run, _parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> int:
    try:
        return options.run(options)
    except ModuleNotFoundError as error:
        raise RequestError(f"expected {error.name}, found it not installed: pip install 'shardweave[train]'") from error


def _train(options: argparse.Namespace) -> int:
    recipe = _recipe(options)
    if options.out is not None:
        recipe = dataclasses.replace(recipe, out=options.out)
    if options.plan:
        return _plan(options, recipe)
    from tqdm.contrib.logging import logging_redirect_tqdm

    from trainer.data import sources
    from trainer.run import tokens

    mixture = sources.mixture(recipe, sources.open_sources(recipe))  # a wrong place is told at once
    from trainer import assembly, blank, loop
    from trainer.engines import start
    from trainer.log import RunFolder
    from trainer.run import checkpoint, plan, stop

    rank, ranks = start.launched()
    plan.check(recipe)
    tokens.check(recipe)
    folder = RunFolder(recipe, resume=options.resume, rank=rank)
    if folder.checkpoint:
        mixture.resumed(checkpoint.read(folder.checkpoint).mixture)  # and so are data that changed
    if rank == 0:
        print(plan.told(plan.of_recipe(recipe, ranks)), file=sys.stderr)
    if options.blank and start.kind(recipe) in ("fsdp", "deepspeed"):
        raise RequestError(f"--blank: expected a model that is whole on rank 0, found engine.kind {start.kind(recipe)}")
    with start.started(recipe) as recipe, logging_redirect_tqdm():
        run = assembly.assemble(recipe, rank, ranks)
        with folder:
            result = loop.train(run, folder)
        if rank:
            return stop.STATUS if "stopped" in result else 0
        if "stopped" in result:
            command.emit(result, options.json, lambda: f"stopped behind step {result['stopped']}: the same command goes on")
            return stop.STATUS
        if options.blank:
            result |= {"blank": dataclasses.asdict(blank.compare(run, blank.first_examples(run, options.blank)))}
    command.emit(result, options.json, lambda: _told(result))
    return 1 if sum(result["bad_records"].values()) or result["loss"] is None else 0


def _plan(options: argparse.Namespace, recipe: Recipe) -> int:
    from trainer.engines import start
    from trainer.run import plan

    made = plan.of_recipe(recipe, options.ranks or start.launched()[1])
    command.emit(dataclasses.asdict(made), options.json, lambda: plan.told(made))
    plan.check(recipe)
    return 0


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
    from trainer.run import tokens

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
    from trainer.text import vocabulary

    places = [shards.open(place) for place in options.places]
    lines = (text for data in places for sample in data for text in vocabulary.texts(sample.record))
    made = vocabulary.make(itertools.chain(vocabulary.fixed(), lines), options.vocab)
    vocabulary.save(made, Path(options.out))
    size = made.get_vocab_size()
    command.emit({"out": options.out, "vocabulary": size}, options.json, lambda: f"{size} tokens, written to {options.out}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    from trainer.use import generate

    run, sampling = _trained(options), _sampling(options)
    said = options.said or []
    images = [Path(value) for name, value in said if name == "image"]
    if len(images) < len(said) or (images and run.recipe.template == "plain"):
        _answered(generate.answer(run, said, sampling), options)
        return 0
    for answer in generate.chat(run, images, _asked(), sampling):
        _answered(answer, options)
    return 0


def _asked() -> Any:
    """Lines of stdin; a person at a terminal is shown where to write."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def _answered(answer: Answer, options: argparse.Namespace) -> None:
    command.emit(dataclasses.asdict(answer), options.json, lambda: answer.text)
    sys.stdout.flush()


def _evaluate(options: argparse.Namespace) -> int:
    from trainer.use import evaluate, questions

    if options.questions is None:
        measured = evaluate.losses(_trained(options), options.source, options.records)
        command.emit({name: found._asdict() for name, found in measured.items()}, options.json, lambda: _measured(measured))
        return 1 if any(found.bad or found.loss is None for found in measured.values()) else 0
    if options.out is None or options.source:
        raise RequestError(f"--questions: expected --out FILE and no --source with it, found {options.source or 'no --out'}")
    asked = questions.ready(options.questions, options.images, options.out)
    count = questions.answer(_trained(options), asked, options.images, options.out, _sampling(options), batch_size=options.batch_size)
    command.emit({"out": str(options.out), "answers": count}, options.json, lambda: f"{count} answers, written to {options.out}")
    return 0


def _measured(found: dict[str, Measured]) -> str:
    lines = []
    for name, (loss, tokens, records, left_out, bad) in found.items():
        told = "nothing to train on" if loss is None else f"loss {loss:.4f} per supervised token"
        more = f", {left_out} left out" * bool(left_out) + f", {bad} bad" * bool(bad)
        lines.append(f"{name}: {told}, {tokens:,} tokens of {records:,} records{more}")
    return "\n".join(lines)


def _export(options: argparse.Namespace) -> int:
    from trainer.use import export

    export.free(options.to)
    export.export(_trained(options), options.form, options.to, options.dtype)
    command.emit({"to": str(options.to), "form": options.form}, options.json, lambda: f"{options.form}, written to {options.to}")
    return 0


def _recipe(options: argparse.Namespace) -> Recipe:
    return recipes.load(options.recipe, sources=options.source, settings=options.set)


def _trained(options: argparse.Namespace) -> Trained:
    from trainer.use import trained

    for library in (
        "transformers",
        "huggingface_hub",
    ):  # they tell of warnings that are none, and of files by the name they have for a moment
        logging.getLogger(library).setLevel(logging.ERROR)
    return trained.load(options.folder, options.step, settings=options.set)


def _sampling(options: argparse.Namespace) -> Sampling:
    from trainer.use.generate import Sampling

    tokens, seed = options.max_new_tokens, options.seed
    return Sampling(max_new_tokens=tokens, temperature=options.temperature, top_p=options.top_p, seed=seed)


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(prog="python -m trainer", description="Train vision-language models from shards.")
    parser.add_argument(
        "--local_rank", "--local-rank", help=argparse.SUPPRESS
    )  # of the deepspeed launcher, which says it in LOCAL_RANK too
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=command.Parser)
    train = _command(commands, "train", _train, "train a recipe", TRAIN)
    _recipe_options(train)
    train.add_argument("--out", metavar="FOLDER", help="the run folder: new, empty, or of this run, which then goes on")
    train.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint, also with a changed recipe")
    train.add_argument("--blank", type=_count, default=0, metavar="N", help="then compare with blank pictures, on N records a source")
    train.add_argument("--plan", action="store_true", help="print parameters, tokens of a step and memory, and do nothing else")
    train.add_argument("--ranks", type=_count, default=0, metavar="N", help="of --plan: on so many ranks")
    show = _command(commands, "tokens", _tokens, "show what the model will see, and what it is trained on", TOKENS)
    _recipe_options(show)
    show.add_argument("--records", type=_count, metavar="N", help="the first N records of each source; all of them otherwise")
    make = _command(commands, "tokenizer", _tokenizer, "make a small tokenizer from the texts of shards", TOKENIZER)
    make.add_argument("--from", dest="places", nargs="+", required=True, metavar="PLACE", help="shards whose texts it learns")
    make.add_argument("--vocab", type=_count, default=2000, metavar="N", help="most tokens, at least 259 (default 2000)")
    make.add_argument("--out", required=True, metavar="FOLDER", help="where tokenizer.json goes")
    _generate_options(_command(commands, "generate", _generate, "let a trained run answer, about pictures or not", GENERATE))
    _evaluate_options(
        _command(commands, "evaluate", _evaluate, "measure a trained run's held-out loss, or let it answer questions", EVALUATE)
    )
    _export_options(_command(commands, "export", _export, "write a trained run as others read it", EXPORT))
    return parser


def _command(commands: Any, name: str, run: Any, help: str, examples: list[str]) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=help, description=help.capitalize() + ".", **command.examples(examples))
    made.add_argument("--json", action="store_true", help="write the result to stdout as JSON")
    credentials.add_endpoint(made)
    made.set_defaults(run=run)
    return made


def _recipe_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("recipe", metavar="RECIPE", help=f"a TOML file, or one of {', '.join(recipes.shipped())}")
    made.add_argument("--source", action="append", default=[], metavar="NAME=PLACE", help="where a source's shards are")
    _settings(made)


def _settings(made: argparse.ArgumentParser) -> None:
    made.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change a value, as in optimizer.lr=1e-4")


def _run_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("folder", metavar="RUN", type=Path, help="a run folder; of a run that is going on, its newest checkpoint")
    made.add_argument("--step", type=_count, metavar="N", help="the checkpoint behind this step")
    _settings(made)


def _generate_options(made: argparse.ArgumentParser) -> None:
    _run_options(made)
    for name, what in (("image", "a picture"), ("prompt", "what to say; <image> in it says where a picture goes")):
        made.add_argument(f"--{name}", dest="said", action=_Said, metavar=name.upper(), help=f"{what}; may be repeated, their order counts")
    _sampling_options(made)


def _evaluate_options(made: argparse.ArgumentParser) -> None:
    _run_options(made)
    places = "shards to measure; the recipe's held-out sources otherwise"
    made.add_argument("--source", action="append", default=[], metavar="NAME=PLACE", help=places)
    made.add_argument("--records", type=_count, default=0, metavar="N", help="the first N records of each source; all of them otherwise")
    made.add_argument("--questions", type=Path, metavar="FILE", help="a question.jsonl, to answer instead")
    made.add_argument("--images", type=Path, metavar="FOLDER", help="where the questions' pictures are")
    made.add_argument("--out", type=Path, metavar="FILE", help="where answers.jsonl goes")
    made.add_argument("--batch-size", type=_positive, default=1, metavar="N", help="questions answered at a time (default 1)")
    _sampling_options(made)


def _sampling_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N", help="of an answer, at most (default 256)")
    made.add_argument("--temperature", type=_temperature, default=0.0, metavar="T", help="0 takes the likeliest token (default 0)")
    made.add_argument("--top-p", type=_share, default=1.0, metavar="P", help="of the likeliest tokens that make up P (default 1)")
    made.add_argument("--seed", type=_count, default=0, metavar="N", help="of what is left to chance (default 0)")


def _export_options(made: argparse.ArgumentParser) -> None:
    _run_options(made)
    forms = "hf: LlavaForConditionalGeneration; language: its language model alone; llava: the original's names; flamingo: checkpoint.pt; "
    made.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new or empty folder")
    made.add_argument("--form", required=True, choices=FORMS, help=f"{forms}merged: a run folder that needs no other")
    made.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights (default float32)")


# Of trainer/use/export.py, without torch.
FORMS, DTYPES = ("hf", "language", "llava", "flamingo", "merged"), ("float32", "bfloat16", "float16")


class _Said(argparse.Action):
    """--image and --prompt in the order they are given."""

    def __call__(self, parser: object, options: argparse.Namespace, value: Any, option: str | None = None) -> None:
        options.said = [*(options.said or []), ((option or "").lstrip("-"), value)]


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not _count(text):
        raise argparse.ArgumentTypeError("expected at least 1, found 0")
    return int(text)


def _temperature(text: str) -> float:
    return _number(text, 0.0, 100.0)


def _share(text: str) -> float:
    return _number(text, 1e-9, 1.0)


def _number(text: str, least: float, most: float) -> float:
    try:
        found = float(text)
    except ValueError:
        found = float("nan")
    if not least <= found <= most:
        raise argparse.ArgumentTypeError(f"expected a number from {least:g} to {most:g}, found {text!r}")
    return found


if __name__ == "__main__":
    sys.exit(main())
