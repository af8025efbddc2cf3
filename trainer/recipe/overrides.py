"""What a command line puts into a recipe's table before it is read: `--source NAME=PLACE`, `--set a.b=value`."""

from __future__ import annotations

import tomllib
from typing import Any

from schemas import RequestError
from trainer.recipe.names import nearest


def put_source(table: dict[str, Any], argument: str, *, open_list: bool) -> None:
    """`NAME=PLACE`: into the source of that name, or held-out source; a new one where the list is open. Raises RequestError."""
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
        raise RequestError(f"--source {name}: expected one of the recipe's sources, {', '.join(names)}{nearest(name, names)}")
    listed.append({"name": name, "shards": place})


def put_setting(table: dict[str, Any], argument: str) -> None:
    """`a.b=value`, TOML or else a text. Raises RequestError where there is no table to put it into."""
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
