"""Layouts: how tars made elsewhere hold their records. One module a layout, found by listing this folder.

A layout is a module with two functions, `known` and `make`; its name with hyphens is what `--layout` and the manifest say. It sees the
members of one sample by suffix, and nothing else, so the same bytes always make the same record.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, cast

from schemas import Record
from shards.sink import Buffer
from shards.writer import name_members

Members = Mapping[str, Buffer]  # payload by suffix


class Made(NamedTuple):
    """A record, its pictures' bytes, and the pictures that it does without, by reason."""

    record: Record
    files: Sequence[Buffer]
    dropped: Mapping[str, int]


class Layout(Protocol):
    """What a layout's module has."""

    def known(self, members: Members) -> bool:
        """Whether these members look like a sample of this layout."""
        ...

    def make(self, id: str, members: Members) -> Made:
        """The record of the sample whose key in the tar is `id`. Raises Reject."""
        ...


def names() -> list[str]:
    """Of all layouts."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def find(name: str) -> Layout:
    """The layout of this name. Raises KeyError where there is none."""
    if name not in names():
        raise KeyError(name)
    return cast(Layout, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))


def read(name: str, key: str, id: str, members: Members) -> Made:
    """The record under our key, its pictures named as format 1 names them. Raises Reject."""
    made = find(name).make(id, members)
    name_members(made.record, key)
    return made
