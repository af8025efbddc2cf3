"""A value of TOML as the type that its key has. Every error names the key and what was found there."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

from schemas import RequestError
from trainer.recipe.names import nearest


def read(kind: Any, value: Any, where: str) -> Any:
    """The value as this type. `where` ends in ": " for the file itself, then in the key."""
    if dataclasses.is_dataclass(kind):
        return _read_table(typing.cast(type, kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        tables = [argument for argument in arguments if isinstance(value, dict) and typing.get_origin(argument) is dict]
        return None if value is None else read([*tables, *arguments][0], value, where)
    if origin is Literal:
        if value in arguments:
            return value
        names = [str(argument) for argument in arguments]
        raise RequestError(f"{where}: expected one of {', '.join(names)}, found {value!r}{nearest(str(value), names)}")
    if origin is tuple:
        items = _typed(list, "a list", value, where)
        return tuple(read(arguments[0], item, f"{where}.{label(item, n)}") for n, item in enumerate(items))
    if origin is dict:
        return _typed(dict, "a table", value, where)
    if kind is float:
        return float(_typed((int, float), "a number", value, where))
    return _typed(kind, {int: "a whole number", str: "a text", bool: "true or false"}[kind], value, where)


def label(item: Any, number: int) -> str:
    """What an item of a list is called in a key: a source by its name."""
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
            raise RequestError(f"{_key(where, key)}: unknown key{nearest(key, list(fields))}")
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise RequestError(f"{_key(where, name)}: expected a value, found none")
    hints = typing.get_type_hints(kind)
    return kind(**{key: read(hints[key], item, _key(where, key)) for key, item in table.items()})


def _key(where: str, key: str) -> str:
    return f"{where}{key}" if where.endswith(": ") else f"{where}.{key}"
