"""Where conversions are tried."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.conversion import MEMORY


@pytest.fixture(scope="module")
def ground() -> Iterator[Path]:
    """A folder in memory where there is one: what is tried here is the order of things, and a slow disk tries it less often."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)
