"""The training loop, on one rank or several. It knows a model by `trainer/model.py` alone, and the ranks by `trainer/engines/engine.py`.

A step: the ranks tell each other what they have read; what a token of each source counts follows from their common number
(trainer/run/weighting.py); each rank makes the same number of backward calls, the gradients are added up, and all make the same update.
Where nobody has a token to train on, all skip the update and count it. SIGTERM to any rank ends all of them behind their step.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from schemas import RequestError
from shards import splitmix
from trainer.assembly import Assembly
from trainer.data import batch as batches
from trainer.data import reading
from trainer.data.batch import MicroBatch
from trainer.data.loader import Feed, Loader, Step
from trainer.data.mixture import Position
from trainer.data.process import LoaderProcess, Request
from trainer.engines import start
from trainer.engines.engine import DivergedError, Engine
from trainer.log import RunFolder
from trainer.recipe import Recipe
from trainer.run import checkpoint, schedule, weighting
from trainer.run.stop import Stop

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Of a step, over all ranks."""

    total: float | None  # of all sources, multiplied; None where nobody has anything to train on
    by_source: dict[str, float]  # mean per supervised token, not multiplied; a source without any is left out. SOURCE/TERM: of another term
    tokens: int  # supervised


@dataclass
class Run:
    """How far it has come."""

    position: Position
    skipped: int = 0
    bad: Counter[str] = field(default_factory=Counter)  # records, by source, over all ranks
    loss: float = math.nan  # the last
    tried: bool = False  # whether a checkpoint can be written and read
    stopped: bool = False


def train(assembly: Assembly, folder: RunFolder) -> dict[str, Any]:
    """Train as the recipe says, write the run folder, and give the numbers worth telling; `stopped` is among them where SIGTERM came.

    Raises RequestError where memory or disk are too small, DivergedError, BudgetError where more records are bad than the recipe allows,
    StalledError, PeerError.
    """
    recipe = assembly.recipe
    engine = start.build(assembly.model, recipe)
    run = _begun(assembly, folder, engine)
    assembly.model.train()
    began = time.monotonic()
    with Stop() as asked, _loader(assembly, run.position, engine) as loader, _bar(recipe.steps, run.position.step, engine.rank) as bar:
        for step in loader:
            _make(step, assembly, engine, run, folder, asked)
            if run.stopped:
                return _result(run, folder, began) | {"stopped": run.position.step}
            bar.set_postfix(loss=f"{run.loss:.4f}", refresh=False)
            bar.update()
    folder.save(engine.weights())
    return _result(run, folder, began)


def _result(run: Run, folder: RunFolder, began: float) -> dict[str, Any]:
    counts = {"steps": folder.recipe.steps, "skipped_updates": run.skipped, "bad_records": dict(run.bad)}
    seconds = round(time.monotonic() - began, 3)
    return {"out": str(folder.path), **counts, "loss": run.loss if math.isfinite(run.loss) else None, "seconds": seconds}


def feed(assembly: Assembly) -> Feed[Any, list[MicroBatch]]:
    """What the loader reads, and makes of it: this rank's micro-batches of a step."""
    return reading.feed(assembly.recipe, assembly.data, assembly.mixture, assembly.examples)


def _loader(assembly: Assembly, position: Position, engine: Engine) -> Loader[list[MicroBatch]] | LoaderProcess:
    recipe, made = assembly.recipe, assembly.examples
    apart = "cuda" in recipe.device if recipe.loader.process is None else recipe.loader.process
    if not apart:
        return reading.loader(feed(assembly), recipe, position, engine.rank, engine.ranks)
    return LoaderProcess(
        Request(recipe=recipe, preprocess=made.preprocess, fit=made.fit, position=position, rank=engine.rank, ranks=engine.ranks)
    )


def _begun(assembly: Assembly, folder: RunFolder, engine: Engine) -> Run:
    """At the start, or where the folder's checkpoint stands."""
    here = -1 if folder.checkpoint is None else checkpoint.read(folder.checkpoint).step
    step = int(engine.gather([here])[0][0])  # as rank 0 sees it
    if step < 0:
        return Run(assembly.mixture.start())
    path = folder.path / checkpoint.FOLDER / checkpoint.name(step)
    state = checkpoint.read(path)
    position, notes = assembly.mixture.resumed(state.mixture)
    checkpoint.load(path, engine)
    if assembly.recipe.loss_norm == "rank_mean" and state.ranks not in (0, engine.ranks):
        notes.append(f"loss_norm rank_mean: a mean over {engine.ranks} ranks is another than over {state.ranks}, as the run had until here")
    for note in [f"goes on behind step {step}", *notes] if engine.rank == 0 else []:
        log.info("%s", note)
    return Run(position, state.skipped_updates, Counter(state.bad_records))


def _make(step: Step[list[MicroBatch]], assembly: Assembly, engine: Engine, run: Run, folder: RunFolder, asked: Stop) -> None:
    """One optimizer step, its line in the log, and its checkpoint."""
    began = time.monotonic()
    recipe = assembly.recipe
    _seed(splitmix.key(recipe.seed, "dropout", step.number, engine.rank) >> 1)
    told = _exchanged(step, recipe, engine, asked)
    losses = backward(engine, recipe, step.made, told)
    factor = schedule.factor(step.number, recipe.steps, recipe.schedule)
    norm = None if losses.total is None else engine.update(factor)
    run.position, run.skipped = step.position, run.skipped + (norm is None)
    run.loss = run.loss if losses.total is None else losses.total
    run.bad.update({name: int(bad) for name in assembly.mixture.names if (bad := told.sum("bad", name))})
    seconds = time.monotonic() - began + step.seconds_waiting
    made = {"lr": recipe.optimizer.lr * factor, "grad_norm": norm, "updated": norm is not None, "seconds": seconds}
    folder.step(_line(step, losses, told, assembly, run) | made | assembly.measured(engine, step.number + 1))
    done, every = step.number + 1, recipe.checkpoint.every
    run.stopped = told.most("stop") > 0 and done < recipe.steps
    if every and recipe.checkpoint.trial and not run.tried:
        checkpoint.trial(folder.path, engine)
        run.tried = True
    if run.stopped or (every and (done % every == 0 or done == recipe.steps)):
        state = checkpoint.State(
            mixture=assembly.mixture.state(run.position),
            skipped_updates=run.skipped,
            bad_records=dict(run.bad),
            versions=checkpoint.versions(),
            ranks=engine.ranks,
        )
        checkpoint.save(folder.path, state, recipe, engine)


def _seed(seed: int) -> None:
    """As torch.manual_seed, which on a machine without a GPU takes a millisecond to note down for later who asked."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class Told:
    """What every rank told every rank about its part of a step: numbers by name, and by name and source."""

    def __init__(self, names: Sequence[tuple[str, str]], numbers_RN: list[list[float]], counts: list[list[list[int]]]) -> None:
        self.counts = counts  # of this rank's micro-batches, their rows, and the terms
        self._column: dict[tuple[str, str], tuple[float, ...]] = dict(zip(names, zip(*numbers_RN, strict=True), strict=True))

    def sum(self, what: str, source: str = "") -> float:
        """Over the ranks."""
        return sum(self._column[what, source])

    def each(self, what: str, source: str = "") -> Sequence[float]:
        """Of every rank."""
        return self._column[what, source]

    def most(self, what: str) -> float:
        """Of any rank."""
        return max(self._column[what, ""])


def _exchanged(step: Step[list[MicroBatch]], recipe: Recipe, engine: Engine, asked: Stop | None = None) -> Told:
    """One exchange before the first backward: it settles the number of calls and what a token counts."""
    of_rows = [engine.model.counts(micro.batch).tolist() for micro in step.made]
    mine: dict[tuple[str, str], float] = {
        ("calls", ""): len(step.made),
        ("digest", ""): step.digest,
        ("stop", ""): float(asked is not None and asked.asked),
        ("images", ""): sum(0 if micro.batch.pixels_NCHW is None else len(micro.batch.pixels_NCHW) for micro in step.made),
        ("positions", ""): sum(micro.batch.ids_BT.numel() for micro in step.made),
        ("seconds_waiting", ""): step.seconds_waiting,
    }
    for source in recipe.sources:
        mine |= {(term, source.name): 0 for term in engine.model.terms}
        counts = step.counts.get(source.name)
        mine |= {(what, source.name): float(getattr(counts, what, 0)) for what in COUNTS}
    for source, counts_L in _by_row(step.made, of_rows):
        for term, count in zip(engine.model.terms, counts_L, strict=True):
            mine[term, source] += count
    return Told(list(mine), engine.gather(list(mine.values())), of_rows)


def _by_row(made: Sequence[MicroBatch], numbers: Sequence[list[T]]) -> Iterator[tuple[str, T]]:
    """The rows' sources, each with what there is of it."""
    for micro, rows in zip(made, numbers, strict=True):
        yield from zip(micro.sources, rows, strict=True)


COUNTS = ("served", "left_out", "bad", "seconds_waiting", "bytes_read", "cache_hits", "cache_misses")  # of trainer.data.loader.Counts


def backward(engine: Engine, recipe: Recipe, made: Sequence[MicroBatch], told: Told) -> Losses:
    """Add the gradient of the step's loss to the parameters. Raises DivergedError, on all ranks alike."""
    names, terms = [source.name for source in recipe.sources], engine.model.terms
    counts = {(name, term): int(told.sum(term, name)) for name in names for term in terms}
    if not sum(counts.values()):
        return Losses(total=None, by_source={}, tokens=0)
    weights, calls = _weights(recipe, made, told, terms), int(told.most("calls"))
    sums: list[torch.Tensor] = []
    for number in range(calls):
        mine = number < len(made)
        micro, weights_BL = (made[number], torch.tensor(weights[number])) if mine else (batches.blank(), torch.zeros(1, len(terms)))
        with _fits(micro, recipe):
            sums_BL = engine.accumulate(micro.batch, weights_BL, last=number == calls - 1)
        if mine:
            sums.append(sums_BL)
    zeros = {name: [0.0] * len(terms) for name in names}
    found = engine.gather(_summed(made, weights, sums, zeros))
    return _losses([sum(column) for column in zip(*found, strict=True)], counts, terms)


def _weights(recipe: Recipe, made: Sequence[MicroBatch], told: Told, terms: Sequence[str]) -> list[list[tuple[float, ...]]]:
    """What each row of each micro-batch counts in each term."""
    by_term = []
    for at, term in enumerate(terms):
        of_all = {source.name: told.each(term, source.name) for source in recipe.sources}
        by_term.append(weighting.weights(recipe, made, [[row[at] for row in rows] for rows in told.counts], of_all))
    return [list(zip(*rows, strict=True)) for rows in zip(*by_term, strict=True)]


def _summed(
    made: Sequence[MicroBatch], weights: Sequence[list[Any]], sums: Sequence[torch.Tensor], zeros: dict[str, list[float]]
) -> list[float]:
    """This rank's part: of each source and term in the order of `zeros`, then of each term as it counts. The GPU is waited for here."""
    found, total = dict(zeros), [0.0 for _ in next(iter(zeros.values()))]
    rows = zip(_by_row(made, [sums_BL.tolist() for sums_BL in sums]), _by_row(made, weights), strict=True)
    for (source, sums_L), (_, weights_L) in rows:
        found[source] = [old + new for old, new in zip(found[source], sums_L, strict=True)]
        total = [old + weight * new for old, weight, new in zip(total, weights_L, sums_L, strict=True)]
    return [number for of_one in (*found.values(), total) for number in of_one]


@contextlib.contextmanager
def _fits(micro: MicroBatch, recipe: Recipe) -> Iterator[None]:
    """Raises RequestError where the memory is too small for this micro-batch: it says which to try."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        rows, positions = micro.batch.ids_BT.shape
        key = f"sources.{micro.sources[0]}.micro_batch_size" if recipe.mixture.draw == "every" else "mixture.micro_batch_size"
        smaller = f"--set {key}={rows // 2}" if rows > 1 else "--set engine.activation_checkpointing=true, or fsdp"
        expected = f"expected {rows} rows of {positions} tokens to fit"
        raise RequestError(f"{recipe.device}: out of memory: {expected}, found that they do not; try {smaller}") from error


def _losses(sums: Sequence[float], counts: Mapping[tuple[str, str], int], terms: Sequence[str]) -> Losses:
    """`sums`: of each source and term, then of each term as it counts."""
    found = zip(counts.items(), sums, strict=False)
    by_source = {name if term == terms[0] else f"{name}/{term}": total / count for ((name, term), count), total in found if count}
    total = sum(sums[len(counts) :])
    if not math.isfinite(total):
        raise DivergedError(f"loss: expected a finite number, found {by_source}")
    return Losses(total=total, by_source=by_source, tokens=sum(count for (_, term), count in counts.items() if term == terms[0]))


def _line(step: Step[Any], losses: Losses, told: Told, assembly: Assembly, run: Run) -> dict[str, Any]:
    names = assembly.mixture.names
    served = {name: run.position.draws[name] - run.bad[name] for name in names}
    by_source = {f"{what}_by_source": {name: told.sum(what, name) for name in names} for what in COUNTS}
    return {
        "step": step.number,
        "loss": losses.total,
        "loss_by_source": losses.by_source,
        "tokens_supervised": losses.tokens,
        "supervised_of_positions": losses.tokens / max(1.0, told.sum("positions")),
        "images": int(told.sum("images")),
        "records": f"{int(told.sum('digest')) % 2**32:08x}",
        "share_asked": assembly.mixture.asked(),
        "share_served": {name: count / max(1, sum(served.values())) for name, count in served.items()},
        "seconds_waiting": told.most("seconds_waiting"),
        **by_source,
    }


def _bar(steps: int, begin: int, rank: int) -> tqdm:
    interval = 0.1 if sys.stderr.isatty() else 10  # a log file needs no animation
    return tqdm(total=steps, initial=begin, unit="step", mininterval=interval, disable=rank > 0)
