"""The recipe: what a TOML file may say, and nothing else.

An unknown key is an error that names the file, the key and its nearest neighbour; so is a wrong type or a value out of range. A
relative path is relative to the working directory.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from schemas import RequestError

SHIPPED = Path(__file__).parent / "recipes"

Template = Literal["plain", "v1", "chatml", "qwen", "llama2", "llama3", "mistral", "chat", "flamingo"]


@dataclass(frozen=True, kw_only=True)
class TokenizerChoice:
    """A folder with a tokenizer.json or tokenizer.model. `form` is how spaces are treated: trainer/tokenizer.py."""

    path: str | None = None
    form: Literal["auto", "llama", "file"] = "auto"
    bos: str | None = None  # null: what the folder says
    eos: str | None = None
    add: tuple[str, ...] = ()  # special tokens to add where the folder has none of that name, in this order, behind the last id


@dataclass(frozen=True, kw_only=True)
class Family:
    """Which file of trainer/ the model is built by: trainer/llava.py, trainer/flamingo.py."""

    family: Literal["llava", "flamingo"] = "llava"


@dataclass(frozen=True, kw_only=True)
class VisionTower:
    """A tower of transformers (a folder of weights, or the configuration of a new one), or one of open_clip's by name."""

    weights: str | None = None  # of open_clip: a tag of the name's (openai, laion2b_s32b_b82k), or a file
    config: dict[str, Any] = field(default_factory=dict)
    open_clip: str | None = None  # ViT-L-14
    select_layer: int = -2  # an index into the hidden states; 0 is the patch embedding
    select_feature: Literal["patch", "cls_patch"] = "patch"
    post_norm: bool = False  # the tower's last norm too, where select_layer is -1


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """Any causal language model that transformers knows: a folder of weights, or the configuration of a new one.

    A folder may also hold Qwen (the first), or a LLaVA whose language model is wanted: trainer/language.py.
    """

    weights: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Projector:
    """From the tower's width to the language model's."""

    kind: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu"
    weights: str | None = None  # mm_projector.bin, other_params.bin, or a checkpoint that holds a projector


@dataclass(frozen=True, kw_only=True)
class Flamingo:
    """Perceiver resampler and gated cross-attention, where the family is flamingo. The defaults are OpenFlamingo's."""

    every: int = 1  # a cross-attention before every so many layers of the language model
    attend: Literal["immediate", "all"] = "immediate"  # text sees the picture just before it, or all before it
    depth: int = 6  # layers of the resampler
    latents: int = 64  # positions that a picture becomes
    heads: int = 8
    head_width: int = 64
    weights: str | None = None  # OpenFlamingo's checkpoint.pt, or our trained.safetensors


@dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA on the language model, whose own weights are then frozen. rank = 0: none."""

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all",)  # last words of module names; all: every linear layer but the head. Qwen's own names work
    weights: str | None = None  # a folder with adapter_model.bin or adapter_model.safetensors to go on from


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Preprocessing. Size, mean and std are the tower's own where they are null."""

    image_aspect_ratio: Literal["square", "pad"] = "square"
    size: int | None = None  # pixels
    mean: tuple[float, ...] | None = None  # of 0..1, red green blue
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters with values of their own; a parameter is in the first group that it fits: trainer/patterns.py."""

    match: str  # projector, language.*.layers.0, *.bias
    lr: float | None = None  # null: the optimizer's
    weight_decay: float | None = None  # of all that fit, biases too; null: what optimizer.decay says of each


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW: trainer/optimizer.py."""

    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay: Literal["matrices", "transformers", "openflamingo"] = "matrices"  # what decays
    groups: tuple[ParameterGroup, ...] = ()
    max_grad_norm: float = 1.0  # 0: gradients are not clipped


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warmup, then cosine or linear to 0, or constant; counted in optimizer steps."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0  # of all steps, rounded up; used where warmup_steps is 0


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """The parts that are not trained, and what fits these patterns: trainer/patterns.py."""

    vision: bool = True
    projector: bool = False
    language: bool = False
    match: tuple[str, ...] = ()  # not trained either
    thaw: tuple[str, ...] = ()  # trained all the same


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How a step is drawn from the sources: trainer/mixture.py."""

    draw: Literal["every", "one", "mixed"] = "every"
    batch_size: int | None = None  # records per optimizer step, of all sources together, where draw is one or mixed; null: the sources'
    micro_batch_size: int | None = None  # records that a rank holds at once where draw is one or mixed; null: all of its share
    groups: dict[str, Any] = field(default_factory=dict)  # where draw is one: weights of groups; empty: what their sources weigh together
    group_steps: int = 32  # where draw is mixed: records of so many steps are grouped by modality and length; 1: not grouped


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Reading ahead: trainer/loader.py."""

    workers: int = 2  # threads a rank; 0: read when asked
    prefetch: int = 2  # steps that are read ahead
    timeout: float = 600.0  # seconds that a step may be waited for
    cache: str | None = None  # a folder on a local disk, for shards of object storage; shared by the ranks of a machine
    cache_bytes: int = 100 * 2**30
    dct_scaling: bool = True  # JPEGs are decoded at a half, quarter or eighth where that is enough; never under compat


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run goes on from: trainer/checkpoint.py."""

    every: int = 1000  # optimizer steps; 0: none
    keep: int = 2  # the newest so many
    trial: bool = True  # one is written, read back and removed behind the first step: a disk that is too small is told then


@dataclass(frozen=True, kw_only=True)
class BadRecords:
    """How many a source may have before the run ends: shards/budget.py."""

    rate: float = 0.01  # of the last 10,000 that a rank has read; and of all, those of shards that are missing or damaged as a whole
    run: int = 32  # so many in a row are one too many


@dataclass(frozen=True, kw_only=True)
class Log:
    """log.jsonl and the plot are always written."""

    tensorboard: bool = True  # where it is installed
    wandb: bool = False  # WANDB_MODE=offline writes its files and needs no login
    project: str = "shardweave"  # at wandb
    name: str | None = None  # at wandb; null: the run folder's


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What a model computes in: trainer/precision.py. Weights that are trained and the optimizer's state are float32."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = False  # float32 products of matrices on a GPU, with 10 bits of mantissa
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"  # auto: flash attention on a GPU in 16 bits, if installed


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How the ranks work together: trainer/engine.py."""

    kind: Literal["auto", "single", "ddp", "fsdp", "deepspeed"] = "auto"  # auto: deepspeed where it is configured, ddp under a launcher
    timeout: float = 600.0  # seconds that a rank waits for the others
    activation_checkpointing: bool = False  # layers of the language model are computed again in the backward pass: less memory
    reshard_after_forward: bool = True  # of fsdp: layers are put away between the passes, too
    cpu_offload: bool = False  # of fsdp: parts, gradients and the optimizer's state are kept in the machine's memory
    deepspeed: str | dict[str, Any] | None = None  # DeepSpeed's configuration: a JSON or YAML file, or a table; null: ZeRO-2


@dataclass(frozen=True, kw_only=True)
class Source:
    """Shards, and how much of a step is theirs."""

    name: str
    shards: str | None = None  # a PLACE
    kind: Literal["shards", "webdataset"] = "shards"  # webdataset: tars made elsewhere, by pattern: trainer/webdataset_source.py
    layout: str | None = None  # of webdataset; null: seen from the first sample
    batch_size: int = 16  # records per optimizer step over all ranks, where draw is every
    micro_batch_size: int | None = None  # records that a rank holds at once, where draw is every; null: all of its share
    weight: float | None = None  # where draw is one (null: 1) or mixed (null: as many as it has records)
    group: str | None = None  # where draw is one: a step is of one group; null: a group of its own
    resampled: bool = False  # drawn with replacement, every record at the same rate, instead of in epochs
    epoch_samples: int | None = None  # an epoch is so many of the records; null: all
    window: int = 16  # shards that are open at once: records are permuted within
    loss_multiplier: float = 1.0
    template: Template | None = None  # null: the recipe's
    max_tokens: int | None = None  # null: the recipe's
    task: Literal["interleaved", "caption"] = "interleaved"  # of template flamingo: trainer/flamingo_text.py
    min_similarity: float | None = None  # of template flamingo: a picture less like its sentence is left out
    min_images: int = 1  # of template flamingo, interleaved: records with fewer are left out
    max_images: int | None = None  # of template flamingo: the first so many in reading order
    keep_single: float = 1.0  # of template flamingo, interleaved: how often a record with one picture is kept
    flip: float = 0.0  # how often all pictures of a record are mirrored, left to right; refused where it has regions or maps


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Sources whose loss is measured and not trained on: trainer/held_out.py."""

    every: int = 0  # optimizer steps, and at the end; 0: only when `evaluate` is called
    records: int = 512  # the first so many of each; 0: all
    batch_size: int = 16  # records in a forward pass
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. Every field has a default except where the run needs it: then it is asked for by name."""

    out: str | None = None  # the run folder
    seed: int = 0
    steps: int = 100  # optimizer steps
    device: str = "cpu"
    threads: int = 0  # of torch on the CPU; 0: its own choice
    template: Template = "v1"
    system: str | None = None  # what the template says first; null: its own words
    compat: Literal["none", "llava", "openflamingo", "basicvlm"] = "none"
    max_tokens: int = 2048  # a picture counts as one
    loss_norm: Literal["global", "rank_mean"] = "global"  # what a token's loss is divided by: trainer/weighting.py
    model: Family = field(default_factory=Family)
    tokenizer: TokenizerChoice = field(default_factory=TokenizerChoice)
    vision: VisionTower = field(default_factory=VisionTower)
    projector: Projector = field(default_factory=Projector)
    language: LanguageModel = field(default_factory=LanguageModel)
    flamingo: Flamingo = field(default_factory=Flamingo)
    lora: Lora = field(default_factory=Lora)
    pictures: Pictures = field(default_factory=Pictures)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    freeze: Freeze = field(default_factory=Freeze)
    mixture: Mixture = field(default_factory=Mixture)
    loader: Loader = field(default_factory=Loader)
    bad_records: BadRecords = field(default_factory=BadRecords)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)
    engine: Engine = field(default_factory=Engine)
    precision: Precision = field(default_factory=Precision)
    held_out: HeldOut = field(default_factory=HeldOut)
    sources: tuple[Source, ...] = ()


def load(name: str, *, sources: Sequence[str] = (), settings: Sequence[str] = ()) -> Recipe:
    """The recipe of this file or shipped name, with `NAME=PLACE` sources and `a.b=value` settings put in.

    Raises RequestError: no such recipe, not TOML, an unknown key, a wrong type, a value out of range.
    """
    path = find(name)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: expected TOML, found {error}") from error
    open_list = not table.get("sources")  # a recipe that lists no sources takes any name; one that lists some takes only theirs
    named = [argument.partition("=")[0] for argument in sources]
    for name in named:
        if named.count(name) > 1:
            raise RequestError(f"--source {name}: expected it once, found it twice")
    for argument in sources:
        _put_source(table, argument, open_list=open_list)
    for argument in settings:
        _put_setting(table, argument)
    recipe = _read(Recipe, table, f"{path}: ")
    check(recipe, str(path))
    return recipe


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find(name: str) -> Path:
    """The recipe file of this path or shipped name."""
    if Path(name).is_file():
        return Path(name)
    if name in shipped():
        return SHIPPED / f"{name}.toml"
    raise RequestError(f"recipe {name}: expected a file or one of {', '.join(shipped())}, found neither{_nearest(name, shipped())}")


def as_toml(recipe: Recipe) -> str:
    """The recipe as TOML that `load` reads back to an equal recipe."""
    lines: list[str] = []
    tables: list[str] = []
    for key, value in dataclasses.asdict(recipe).items():
        if key == "sources":
            tables += [line for source in value for line in ("", "[[sources]]", *_lines(source))]
        elif isinstance(value, dict):
            tables += ["", f"[{key}]", *_lines(value)]
        else:
            lines += _lines({key: value})
    return "\n".join([*lines, *tables]) + "\n"


# What may differ between a run and the run that goes on from its checkpoint without anybody asking.
HARMLESS = ("out", "device", "threads", "loader.", "checkpoint.", "log.", "engine.", "held_out.")


def differences(was: Recipe, now: Recipe) -> dict[str, str]:
    """What changed, key by key: "was A, is B". Sources are told apart by name."""
    before, after = _flat("", dataclasses.asdict(was)), _flat("", dataclasses.asdict(now))
    keys = [key for key in (before | after) if before.get(key) != after.get(key)]
    return {key: f"was {_shown(before.get(key))}, is {_shown(after.get(key))}" for key in keys}


def harmless(key: str) -> bool:
    """Whether a run stays the same run with another value here. Pixels may differ with dct_scaling."""
    moved = key.startswith("sources.") and key.endswith(".shards")
    return (key.startswith(HARMLESS) and key != "loader.dct_scaling") or key.endswith("micro_batch_size") or moved


def _flat(where: str, value: Any) -> dict[str, Any]:
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        value = {_label(item, number): item for number, item in enumerate(value)}
    if not isinstance(value, dict):
        return {where: value}
    return {key: leaf for name, item in value.items() for key, leaf in _flat(f"{where}.{name}".lstrip("."), item).items()}


def _shown(value: Any) -> str:
    return "none" if value is None else _value(value)


def _lines(table: dict[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        items = (f"{json.dumps(str(key))} = {_value(item)}" for key, item in value.items() if item is not None)
        return "{ " + ", ".join(items) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _put_source(table: dict[str, Any], argument: str, *, open_list: bool) -> None:
    name, equals, place = argument.partition("=")
    if not (name and equals and place):
        raise RequestError(f"--source: expected NAME=PLACE, found {argument!r}")
    listed = table.setdefault("sources", [])
    if not (isinstance(listed, list) and all(isinstance(source, dict) for source in listed)):
        return  # told when the table is read
    held_out = table.get("held_out")
    measured = held_out.get("sources") if isinstance(held_out, dict) else None
    for source in [*listed, *(item for item in measured or [] if isinstance(item, dict))]:
        if source.get("name") == name:
            source["shards"] = place
            return
    if not open_list:
        names = [str(source.get("name")) for source in listed]
        raise RequestError(f"--source {name}: expected one of the recipe's sources, {', '.join(names)}{_nearest(name, names)}")
    listed.append({"name": name, "shards": place})


def _put_setting(table: dict[str, Any], argument: str) -> None:
    key, equals, text = argument.partition("=")
    if not (key and equals):
        raise RequestError(f"--set: expected a.b=value, found {argument!r}")
    *path, last = key.split(".")
    node: Any = table
    for name in path:
        node = _step_into(node, name, key)
    if not isinstance(node, dict):
        raise RequestError(f"--set {key}: expected a table above {last!r}, found {node!r}")
    node[last] = _parsed(text)


def _step_into(node: Any, name: str, key: str) -> Any:
    if isinstance(node, dict):
        return node.setdefault(name, {})
    for item in node if isinstance(node, list) else []:  # a source, by its name
        if isinstance(item, dict) and item.get("name") == name:
            return item
    raise RequestError(f"--set {key}: expected a table or a source called {name!r}, found none")


def _parsed(text: str) -> Any:
    """The TOML value, or the text itself where it is none: `--set tokenizer.path=/a/b` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def _read(kind: Any, value: Any, where: str) -> Any:
    """The value as this type. `where` ends in ": " for the file itself, then in the key."""
    if dataclasses.is_dataclass(kind):
        return _read_table(typing.cast(type, kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        tables = [argument for argument in arguments if isinstance(value, dict) and typing.get_origin(argument) is dict]
        return None if value is None else _read([*tables, *arguments][0], value, where)
    if origin is Literal:
        if value in arguments:
            return value
        names = [str(argument) for argument in arguments]
        raise RequestError(f"{where}: expected one of {', '.join(names)}, found {value!r}{_nearest(str(value), names)}")
    if origin is tuple:
        items = _typed(list, "a list", value, where)
        return tuple(_read(arguments[0], item, f"{where}.{_label(item, n)}") for n, item in enumerate(items))
    if origin is dict:
        return _typed(dict, "a table", value, where)
    if kind is float:
        return float(_typed((int, float), "a number", value, where))
    return _typed(kind, {int: "a whole number", str: "a text", bool: "true or false"}[kind], value, where)


def _label(item: Any, number: int) -> str:
    return str(item["name"]) if isinstance(item, dict) and "name" in item else str(number)


def _typed(kind: Any, called: str, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RequestError(f"{where}: expected {called}, found {value!r}")
    return value


def _read_table(kind: type, value: Any, where: str) -> Any:
    table = _typed(dict, "a table", value, where)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for key in table:
        if key not in fields:
            raise RequestError(f"{_key(where, key)}: unknown key{_nearest(key, list(fields))}")
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise RequestError(f"{_key(where, name)}: expected a value, found none")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _read(hints[key], item, _key(where, key)) for key, item in table.items()})


def _key(where: str, key: str) -> str:
    return f"{where}{key}" if where.endswith(": ") else f"{where}.{key}"


def check(recipe: Recipe, path: str) -> None:
    """Raises RequestError for a value out of range; `path` is what the message begins with."""
    _at_least(path, 1, steps=recipe.steps, max_tokens=recipe.max_tokens)
    _at_least(path, 0, seed=recipe.seed, threads=recipe.threads)
    _check_reading(recipe, path)
    schedule, optimizer = recipe.schedule, recipe.optimizer
    _at_least(f"{path}: schedule", 0, warmup_steps=schedule.warmup_steps, warmup_ratio=schedule.warmup_ratio)
    _at_least(f"{path}: optimizer", 0, lr=optimizer.lr, weight_decay=optimizer.weight_decay, max_grad_norm=optimizer.max_grad_norm)
    for number, group in enumerate(optimizer.groups):
        own = {"lr": group.lr, "weight_decay": group.weight_decay}
        _at_least(f"{path}: optimizer.groups.{number}", 0, **{key: value for key, value in own.items() if value is not None})
    _numbers(path, "optimizer.betas", optimizer.betas, 2)
    flamingo, lora = recipe.flamingo, recipe.lora
    sizes = {"depth": flamingo.depth, "latents": flamingo.latents, "heads": flamingo.heads, "head_width": flamingo.head_width}
    _at_least(f"{path}: flamingo", 1, every=flamingo.every, **sizes)
    _at_least(f"{path}: lora", 0, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
    for name, numbers in (("pictures.mean", recipe.pictures.mean), ("pictures.std", recipe.pictures.std)):
        _numbers(path, name, numbers, 3)
    names = [source.name for source in recipe.sources]
    for source in recipe.sources:
        sizes = {"batch_size": source.batch_size, "window": source.window}
        given = {"micro_batch_size": source.micro_batch_size, "epoch_samples": source.epoch_samples}
        _at_least(f"{path}: sources.{source.name}", 1, **sizes, **{key: value for key, value in given.items() if value is not None})
        _at_least(f"{path}: sources.{source.name}", 0, loss_multiplier=source.loss_multiplier, flip=source.flip)
        if source.flip > 1:
            raise RequestError(f"{path}: sources.{source.name}: flip: expected at most 1, found {source.flip}")
        if names.count(source.name) > 1:
            raise RequestError(f"{path}: sources: expected different names, found {source.name} twice")


def _check_reading(recipe: Recipe, path: str) -> None:
    mixture, loader = recipe.mixture, recipe.loader
    sizes = {"batch_size": mixture.batch_size, "micro_batch_size": mixture.micro_batch_size, "group_steps": mixture.group_steps}
    _at_least(f"{path}: mixture", 1, **{key: value for key, value in sizes.items() if value is not None})
    if mixture.draw == "every" and (mixture.batch_size or mixture.micro_batch_size):
        raise RequestError(f"{path}: mixture: expected batch sizes of the sources where draw is every, found one of the mixture")
    for name, weight in mixture.groups.items():
        _read(float, weight, f"{path}: mixture.groups.{name}")
    _at_least(f"{path}: loader", 0, workers=loader.workers)
    _at_least(f"{path}: loader", 1, prefetch=loader.prefetch, cache_bytes=loader.cache_bytes)
    _at_least(f"{path}: loader", 0.001, timeout=loader.timeout)
    _at_least(f"{path}: engine", 0.001, timeout=recipe.engine.timeout)
    _at_least(f"{path}: checkpoint", 0, every=recipe.checkpoint.every)
    _at_least(f"{path}: checkpoint", 1, keep=recipe.checkpoint.keep)
    _at_least(f"{path}: bad_records", 0, rate=recipe.bad_records.rate)
    _at_least(f"{path}: bad_records", 1, run=recipe.bad_records.run)
    held_out = recipe.held_out
    _at_least(f"{path}: held_out", 0, every=held_out.every, records=held_out.records)
    _at_least(f"{path}: held_out", 1, batch_size=held_out.batch_size)


def _at_least(where: str, least: float, **values: float) -> None:
    for name, value in values.items():
        if not least <= value < float("inf"):  # refuses nan too
            raise RequestError(f"{where}: {name}: expected at least {least}, found {value}")


def _numbers(path: str, name: str, numbers: tuple[float, ...] | None, count: int) -> None:
    if numbers is not None and len(numbers) != count:
        raise RequestError(f"{path}: {name}: expected {count} numbers, found {len(numbers)}")
