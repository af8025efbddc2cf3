"""A recipe from a TOML file or under its shipped name."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

from schemas import RequestError
from trainer.recipe import overrides, typed
from trainer.recipe.keys import Recipe
from trainer.recipe.names import nearest
from trainer.recipe.ranges import check

SHIPPED = Path(__file__).parent.parent / "recipes"


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
        overrides.put_source(table, argument, open_list=open_list)
    for argument in settings:
        overrides.put_setting(table, argument)
    recipe = typed.read(Recipe, table, f"{path}: ")
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
    raise RequestError(f"recipe {name}: expected a file or one of {', '.join(shipped())}, found neither{nearest(name, shipped())}")
