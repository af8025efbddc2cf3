"""Discover: the sources are the modules of this folder whose class is called by the module's name. There is no list to edit."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

from pipelines.source import Source
from schemas import RequestError


def sources() -> dict[str, type[Source]]:
    """Every source by name."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    found = {name: _source(name) for name in names}
    return {name: source for name, source in found.items() if source is not None}


def source(name: str) -> type[Source]:
    """The source of this name. Raises RequestError, with the nearest name, where there is none."""
    found = _source(name) if _listed(name) else None
    if found is not None:
        return found
    near = difflib.get_close_matches(name, sources(), 1, 0.4)
    raise RequestError(f"{name}: expected one of {', '.join(sources())}{f'; did you mean {near[0]}?' if near else ''}")


def exists(name: str) -> bool:
    """Whether there is a source of this name."""
    return _listed(name) and _source(name) is not None


def _listed(name: str) -> bool:
    return name.isidentifier() and (Path(__file__).parent / f"{name}.py").exists()


def _source(name: str) -> type[Source] | None:
    module = importlib.import_module(f"pipelines.{name}")
    classes = (item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__)
    return next((item for item in classes if getattr(item, "name", None) == name), None)
