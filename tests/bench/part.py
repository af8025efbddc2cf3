"""Parts of a page of figures: each command that fills one rewrites its own, and leaves the others as they stand."""

from __future__ import annotations

import re
from pathlib import Path


def rewrite(path: Path, part: str) -> None:
    """Put a part, which begins with its heading `# ...`, in the place of the one with this heading, or behind all others."""
    text = path.read_text() if path.exists() else ""
    heading = part.partition("\n")[0]
    parts = [one for one in re.split(r"(?m)^(?=# )", text) if one.strip()]
    new = part.rstrip() + "\n"
    found = [one.partition("\n")[0] for one in parts]
    parts = [new if one == heading else old.rstrip() + "\n" for one, old in zip(found, parts, strict=True)]
    path.write_text("\n".join(parts if heading in found else [*parts, new]))
