"""A JSON object in a file that comes with weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas import RequestError


def read(path: Path) -> dict[str, Any]:
    """Raises RequestError where the file holds something else."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{path}: expected JSON, found {error}") from error
    if not isinstance(table, dict):
        raise RequestError(f"{path}: expected a JSON object, found {type(table).__name__}")
    return table
