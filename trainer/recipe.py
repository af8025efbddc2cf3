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


@dataclass(frozen=True, kw_only=True)
class TokenizerChoice:
    """A folder with a tokenizer.json or tokenizer.model. `form` is how spaces are treated: trainer/tokenizer.py."""

    path: str | None = None
    form: Literal["auto", "llama", "file"] = "auto"
    bos: str | None = None  # null: what the folder says
    eos: str | None = None


@dataclass(frozen=True, kw_only=True)
class VisionTower:
    """A CLIP or SigLIP tower: a folder of weights, or the configuration of a new one."""

    weights: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    select_layer: int = -2  # an index into the hidden states; 0 is the patch embedding
    select_feature: Literal["patch", "cls_patch"] = "patch"


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """Any causal language model that transformers knows: a folder of weights, or the configuration of a new one."""

    weights: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Projector:
    """From the tower's width to the language model's."""

    kind: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Preprocessing. Size, mean and std are the tower's own where they are null."""

    image_aspect_ratio: Literal["square", "pad"] = "square"
    size: int | None = None  # pixels
    mean: tuple[float, ...] | None = None  # of 0..1, red green blue
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW. Weight decay is for matrices; vectors (biases, norms) have none."""

    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # 0: gradients are not clipped


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warmup, then cosine to 0 or constant; counted in optimizer steps."""

    kind: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0  # of all steps, rounded up; used where warmup_steps is 0


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """The parts that are not trained."""

    vision: bool = True
    projector: bool = False
    language: bool = False


@dataclass(frozen=True, kw_only=True)
class Source:
    """Shards, and how much of a step is theirs."""

    name: str
    shards: str | None = None  # a PLACE
    batch_size: int = 16  # records per optimizer step
    loss_multiplier: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. Every field has a default except where the run needs it: then it is asked for by name."""

    out: str | None = None  # the run folder
    seed: int = 0
    steps: int = 100  # optimizer steps
    device: str = "cpu"
    threads: int = 0  # of torch on the CPU; 0: its own choice
    max_bad_records: int = 100  # more than these: the run stops
    template: Literal["plain", "v1"] = "v1"
    compat: Literal["none", "llava"] = "none"
    max_tokens: int = 2048  # a picture counts as one
    tokenizer: TokenizerChoice = field(default_factory=TokenizerChoice)
    vision: VisionTower = field(default_factory=VisionTower)
    projector: Projector = field(default_factory=Projector)
    language: LanguageModel = field(default_factory=LanguageModel)
    pictures: Pictures = field(default_factory=Pictures)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    freeze: Freeze = field(default_factory=Freeze)
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
    for argument in sources:
        _put_source(table, argument, open_list=open_list)
    for argument in settings:
        _put_setting(table, argument)
    recipe = _read(Recipe, table, f"{path}: ")
    _check(recipe, str(path))
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
    for source in listed:
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
        return None if value is None else _read(arguments[0], value, where)
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


def _check(recipe: Recipe, path: str) -> None:
    _at_least(path, 1, steps=recipe.steps, max_tokens=recipe.max_tokens)
    _at_least(path, 0, seed=recipe.seed, threads=recipe.threads, max_bad_records=recipe.max_bad_records)
    schedule, optimizer = recipe.schedule, recipe.optimizer
    _at_least(f"{path}: schedule", 0, warmup_steps=schedule.warmup_steps, warmup_ratio=schedule.warmup_ratio)
    _at_least(f"{path}: optimizer", 0, lr=optimizer.lr, weight_decay=optimizer.weight_decay, max_grad_norm=optimizer.max_grad_norm)
    _numbers(path, "optimizer.betas", optimizer.betas, 2)
    for name, numbers in (("pictures.mean", recipe.pictures.mean), ("pictures.std", recipe.pictures.std)):
        _numbers(path, name, numbers, 3)
    names = [source.name for source in recipe.sources]
    for source in recipe.sources:
        _at_least(f"{path}: sources.{source.name}", 1, batch_size=source.batch_size)
        _at_least(f"{path}: sources.{source.name}", 0, loss_multiplier=source.loss_multiplier)
        if names.count(source.name) > 1:
            raise RequestError(f"{path}: sources: expected different names, found {source.name} twice")


def _at_least(where: str, least: int, **values: float) -> None:
    for name, value in values.items():
        if not least <= value < float("inf"):  # refuses nan too
            raise RequestError(f"{where}: {name}: expected at least {least}, found {value}")


def _numbers(path: str, name: str, numbers: tuple[float, ...] | None, count: int) -> None:
    if numbers is not None and len(numbers) != count:
        raise RequestError(f"{path}: {name}: expected {count} numbers, found {len(numbers)}")
