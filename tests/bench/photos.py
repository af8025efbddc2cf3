"""Photos: a folder of real JPEGs of about 107 kB in the median, and the LLaVA annotations that refer to them."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import folder


@contextlib.contextmanager
def photos(number: int) -> Iterator[Path]:
    """A temporary folder with images/000000.jpg ... and rows.json. Repeats the 200 photographs of the sample data."""
    data = folder("SHARDWEAVE_DATA", "../shared/data")
    if data is None:
        raise SystemExit("bench: no photographs: SHARDWEAVE_DATA names no folder")
    kinds = sorted((data / "photos").iterdir())
    root = Path(tempfile.mkdtemp(prefix="shardweave-bench-"))
    try:
        (root / "images").mkdir()
        names = [f"{i:06d}.jpg" for i in range(number)]
        for i, name in enumerate(names):
            shutil.copyfile(kinds[i % len(kinds)], root / "images" / name)
        rows = [{"id": name, "image": name, "conversations": _turns()} for name in names]
        (root / "rows.json").write_text(json.dumps(rows))
        yield root
    finally:
        shutil.rmtree(root)


def _turns() -> list[dict[str, str]]:
    return [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A photograph."}]
