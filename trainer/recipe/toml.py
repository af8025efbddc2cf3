"""A recipe as TOML."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from trainer.recipe.keys import Recipe


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
    return [f"{key} = {written(value)}" for key, value in table.items() if value is not None]


def written(value: Any) -> str:
    """A value as TOML writes it; nothing in it may be null."""
    if isinstance(value, dict):
        items = (f"{json.dumps(str(key))} = {written(item)}" for key, item in value.items() if item is not None)
        return "{ " + ", ".join(items) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(written(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
