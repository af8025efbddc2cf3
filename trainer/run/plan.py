"""What a run will be, told before anything heavy: parameters by part, the optimizer's groups, tokens of a step, memory of a rank.

Made of the recipe, the tokenizer and the configurations alone: the model has names and shapes and no memory (torch's meta device). Of
weights it asks only whether they are there. Tokens are estimated from the first records of each source, where its shards are on a local
disk; else what is told is the most that there can be.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from schemas import RequestError, ShardError
from trainer import model
from trainer.data import sources
from trainer.engines import ds_config, optimizer, start
from trainer.model import Model
from trainer.parts import language as languages
from trainer.parts import tower
from trainer.recipe import Recipe, Source
from trainer.run import schedule, tokens
from trainer.text import tokenizer
from trainer.text.rendered import IGNORE, Rendered
from trainer.weights import files, origins, packaged

SAMPLE = 64  # records of each source


@dataclass(frozen=True)
class Part:
    """The parameters whose names begin with this word."""

    name: str
    trained: int
    frozen: int


@dataclass(frozen=True)
class Group:
    """Of the optimizer."""

    lr: float  # where the schedule's factor is 1
    weight_decay: float
    tensors: int
    parameters: int


@dataclass(frozen=True)
class Step:
    """What an optimizer step takes, over all ranks."""

    records: dict[str, float]  # by source
    positions: float  # of the language model, without padding
    supervised: float | None  # of them; None where no record was looked at: positions are then the most that there can be
    pictures: float | None


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank, without activations."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int  # what is whole for a moment, where ranks share the model out

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.gathered


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run."""

    parts: tuple[Part, ...]
    groups: tuple[Group, ...]
    steps: int
    warmup: int
    step: Step
    memory: Memory
    engine: str
    ranks: int


def check(recipe: Recipe, *, whole: bool = True) -> None:
    """Raises RequestError where tokenizer or weights are missing: all that are, and where to get each. Not `whole`: configurations only."""
    towers = None if tower.is_open_clip(recipe.vision) else recipe.vision.weights  # open_clip gets its own
    places = {"tokenizer.path": recipe.tokenizer.path, "vision.weights": towers, "language.weights": recipe.language.weights}
    places |= {
        "projector.weights": recipe.projector.weights,
        "flamingo.weights": recipe.flamingo.weights,
        "lora.weights": recipe.lora.weights,
    }
    if gone := [told for key, place in places.items() if place is not None for told in _missing(key, place, whole)]:
        raise RequestError("; and ".join(gone))


def of_recipe(recipe: Recipe, ranks: int = 1) -> Plan:
    """The plan of this recipe on so many ranks. Raises RequestError as `trainer.model.build`, or where a configuration is missing."""
    check(recipe, whole=False)
    words = tokenizer.load(recipe.tokenizer)
    made = shape(recipe, words.size, words.specials)
    groups = optimizer.groups(made, recipe.optimizer)
    return Plan(
        parts=tuple(_parts(made)),
        groups=tuple(Group(group.lr, group.weight_decay, len(group.names), _numel(group.parameters)) for group in groups),
        steps=recipe.steps,
        warmup=schedule.warmup_steps(recipe.steps, recipe.schedule),
        step=_step(recipe, made),
        memory=memory(recipe, made, ranks),
        engine=_engine(recipe, ranks),
        ranks=ranks,
    )


def told(plan: Plan) -> str:
    """In lines."""
    parts = [f"  {part.name:<10} {part.trained + part.frozen:>16,} parameters, {_frozen(part)}" for part in plan.parts]
    groups = [
        f"  lr {group.lr:g}, weight decay {group.weight_decay:g}: {group.parameters:,} parameters in {group.tensors} tensors"
        for group in plan.groups
    ]
    asked = ", ".join(f"{name} {count:.0f}" for name, count in plan.step.records.items())
    seen = "at most " if plan.step.supervised is None else "about "
    step = f"  a step: {sum(plan.step.records.values()):.0f} records ({asked}), {seen}{plan.step.positions:,.0f} positions"
    if plan.step.supervised is not None:
        step += f", {plan.step.supervised:,.0f} of them trained on, {plan.step.pictures:,.0f} pictures"
    held = plan.memory
    kinds = {"weights": held.weights, "gradients": held.gradients, "optimizer state": held.optimizer, "gathered": held.gathered}
    sums = " + ".join(f"{_size(size)} {name}" for name, size in kinds.items() if size)
    where = f"{plan.engine}, {plan.ranks} rank{'s' if plan.ranks > 1 else ''}"
    steps = f"  {plan.steps} steps, {plan.warmup} of them to warm up"
    memory = f"  memory of a rank: {_size(held.total)} = {sums}; and activations ({where})"
    return "\n".join(["plan", *parts, *groups, step, steps, memory])


def shape(recipe: Recipe, vocabulary: int, specials: dict[str, int]) -> Model:
    """The model on the meta device: names, shapes, and what is trained."""
    with torch.device("meta"):
        return model.made(_without_weights(recipe, vocabulary), vocabulary, specials)


def memory(recipe: Recipe, made: Model, ranks: int) -> Memory:
    """What the engine keeps of this model on each rank: trainer/engines/precision.py. Adam has two moments, float32."""
    whole, trained = _numel(made.parameters()), _numel(p for p in made.parameters() if p.requires_grad)
    kind, narrow = _engine(recipe, ranks), recipe.precision.dtype != "fp32"
    if kind == "fsdp":
        layers = [_numel(layer.parameters()) for layer in made.layers()]
        used = whole - sum(layers) + 2 * max(layers)  # what is no layer, a layer and the next one
        return Memory(4 * whole // ranks, 4 * trained // ranks, 8 * trained // ranks, (2 if narrow else 4) * used)
    if kind == "deepspeed":
        stage, size = _stage(recipe), 2 if narrow else 4
        shares = [ranks if stage >= least else 1 for least in (3, 2, 1)]
        state = 12 if narrow else 8  # the float32 weights are the optimizer's
        return Memory(size * whole // shares[0], size * trained // shares[1], state * trained // shares[2], 0)
    return Memory(4 * whole, (8 if kind == "ddp" else 4) * trained, 8 * trained, 0)  # DDP adds gradients up in buckets of their size


def _engine(recipe: Recipe, ranks: int) -> str:
    """What `auto` is on so many ranks."""
    chosen = start.kind(recipe)
    return "ddp" if recipe.engine.kind == "auto" and chosen == "single" and ranks > 1 else chosen


def _stage(recipe: Recipe) -> int:
    """Of ZeRO, as DeepSpeed's configuration says."""
    found = ds_config.read(recipe.engine.deepspeed).get(ds_config.ZERO, {}).get("stage")
    return found if isinstance(found, int) and found else 1


def _missing(key: str, place: str, whole: bool) -> Iterator[str]:
    """What to say of a file or folder that is not there, or not whole."""
    path = packaged.path(place)
    if not path.exists():
        if whole or key in ("tokenizer.path", "vision.weights", "language.weights"):
            yield f"{key} {place}: expected a file or folder, found none{origins.told(path)}"
    elif path.is_dir() and key in ("vision.weights", "language.weights") and not (path / "config.json").is_file():
        yield f"{key} {place}: expected a folder with config.json, found none in it{origins.told(path)}"
    elif whole and key not in ("tokenizer.path", "lora.weights"):
        try:
            files.listed(path)
        except RequestError as error:
            yield f"{key} {error}{origins.told(path)}"


def _without_weights(recipe: Recipe, vocabulary: int) -> Recipe:
    """The recipe of a new model of the same shape."""
    vision, language = recipe.vision, recipe.language
    if vision.weights is not None and not tower.is_open_clip(vision) and not vision.config:
        vision = replace(vision, config=tower.config(vision).to_dict())
    if language.weights is not None:
        language = replace(language, config=languages.shape(language).to_dict())
    return replace(
        recipe,
        vision=replace(vision, weights=None),
        language=replace(language, weights=None),
        projector=replace(recipe.projector, weights=None),
        flamingo=replace(recipe.flamingo, weights=None),
        lora=replace(recipe.lora, weights=None),
    )


def _parts(made: Model) -> Iterator[Part]:
    counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, parameter in made.named_parameters():
        counts[name.partition(".")[0]][not parameter.requires_grad] += parameter.numel()
    return (Part(name, *count) for name, count in counts.items())


def _frozen(part: Part) -> str:
    if part.trained and part.frozen:
        return f"{part.trained:,} trained, {part.frozen:,} frozen"
    return "trained" if part.trained else "frozen"


def _step(recipe: Recipe, made: Model) -> Step:
    near = all(source.kind == "shards" and "://" not in (source.shards or "://") for source in recipe.sources)
    records = _records(recipe, near=near)
    if not near:
        most = {source.name: _longest(source.max_tokens or recipe.max_tokens, made) for source in recipe.sources}
        return Step(records, sum(count * most[name] for name, count in records.items()), None, None)
    means = {source.name: _means(recipe, source, made) for source in recipe.sources}
    return Step(records, *(sum(count * means[name][which] for name, count in records.items()) for which in range(3)))


def _means(recipe: Recipe, source: Source, made: Model) -> list[float]:
    """Of a record of this source: positions, those that are trained on, pictures. One that is left out has none: its place is empty."""
    found = [(0, 0, 0)]
    with contextlib.suppress(ShardError):  # told when the record is read
        for seen in tokens.seen(replace(recipe, sources=(source,)), SAMPLE):
            shown = made.fit(seen.rendered or Rendered())
            found.append((_positions(shown, made), sum(label != IGNORE for label in shown.labels), len(shown.images)))
    return [sum(column) / max(1, len(found) - 1) for column in zip(*found, strict=True)]


def _records(recipe: Recipe, *, near: bool) -> dict[str, float]:
    """Of each source in a step."""
    if recipe.mixture.draw == "every":
        return {source.name: float(source.batch_size) for source in recipe.sources}
    if near:
        shares = sources.mixture(recipe, sources.open_sources(recipe)).asked()
    else:
        given = {source.name: 1.0 if source.weight is None else source.weight for source in recipe.sources}
        shares = {name: weight / sum(given.values()) for name, weight in given.items()}
    size = recipe.mixture.batch_size or next(iter(recipe.sources)).batch_size
    return {name: size * share for name, share in shares.items()}


def _positions(rendered: Rendered, made: Model) -> int:
    return len(rendered.ids) - len(rendered.hidden) + len(rendered.images) * (made.patches - 1)


def _longest(max_tokens: int, made: Model) -> int:
    """Of a record with one picture."""
    return min(max_tokens + made.patches - 1, languages.positions(made.language))


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _numel(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)
