"""Patterns over the names of a model's parameters: what is frozen by name, what is in which group of the optimizer.

A pattern is a glob, and `*` is any text, dots too. It fits a parameter, or everything inside a module: `projector`, `*.bias`,
`language.model.layers.0`, `language.*.gated_cross_attn_layer`. The names are those of `trained.safetensors`.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable

from schemas import RequestError


def matching(pattern: str, names: Iterable[str], where: str) -> list[str]:
    """The parameters that the pattern fits, in order. Raises RequestError, with the nearest name, where there are none.

    `where`: the key of the recipe, which the message begins with.
    """
    names = list(names)
    fits = re.compile(f"{fnmatch.translate(pattern)}|{fnmatch.translate(pattern + '.*')}")
    if found := [name for name in names if fits.match(name)]:
        return found
    near = difflib.get_close_matches(pattern.rstrip(".*"), _modules(names), n=1, cutoff=0.0)
    told = f" (nearest: {near[0]})" if near else ""
    raise RequestError(f"{where} {pattern}: expected a pattern of the model's parameters, found none that it fits{told}")


def _modules(names: Iterable[str]) -> list[str]:
    """The names, and those of all modules that they are in."""
    pieces = [name.split(".") for name in names]
    return list(dict.fromkeys(".".join(words[:count]) for words in pieces for count in range(1, len(words) + 1)))
