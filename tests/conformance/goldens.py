"""The ledger of the reference outputs: every file and case of a system is compared by some test, or the run fails.

A case is a line of a .jsonl file, or a table in a list of tables of a .json file, under whatever keys that list lies. It is called by its
`case_id` or `batch_id`, else by its position, behind the keys that lead to it: "cases/3", "examples/basicvlm-p0".
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(os.path.abspath(os.environ.get("SHARDWEAVE_GOLDEN") or Path(__file__).parents[2] / "../shared/golden"))
SYSTEMS = ("openflamingo", "llava", "basicvlm")
DOCUMENTS = ("README.md", "MANIFEST.json")
LATER = {
    "cogvlm/*": "CogVLM2 is not built yet",
    "glamm/*": "GLaMM is not built yet",
    "llava/anyres_*": "tiled pictures, of LLaVA 1.6, are not built yet",
    "llava/model_*anyres/*": "tiled pictures, of LLaVA 1.6, are not built yet",
}
DEFAULT, COMPAT = "default", "compat"

_compared: defaultdict[str, dict[str, set[str]]] = defaultdict(dict)  # file -> case ("": all of it) -> modes


def compared(path: Path, case: str = "", mode: str = "") -> None:
    """A test compares this case, or all that lie under it, or the whole file. mode: DEFAULT or COMPAT, where the two differ."""
    _compared[_name(path)].setdefault(case, set()).add(mode)


def content(path: Path) -> Any:
    """The JSON of a file; a list of what is in its lines for .jsonl; nothing where it is not there."""
    if not path.is_file():
        return [] if path.suffix == ".jsonl" else {}
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()] if path.suffix == ".jsonl" else json.loads(text)


def tables(path: Path, where: str = "") -> dict[str, Any]:
    """The cases of a file by name, or those of them whose name begins with `where`; none where there is no such file."""
    if path.suffix not in (".json", ".jsonl"):
        return {}
    return {name: table for name, table in _tables(content(path), "") if name.startswith(where)}


def missing(system: str) -> list[str]:
    """Files and cases of a system that no test has compared."""
    found = []
    for path in _files(system):
        seen = _compared.get(_name(path), {})
        if not seen:
            found.append(_name(path))
        else:
            found += [f"{_name(path)}: {case}" for case in tables(path) if not _notes(path, case)]
    return found


def summary() -> Iterator[str]:
    """A line a system: what there is of it and what was compared; then what is not wanted yet."""
    for system in (system for system in SYSTEMS if (ROOT / system).is_dir()):
        files = _files(system)
        every = [(path, case) for path in files for case in tables(path) or [""]]
        modes = Counter(mode for path, case in every for mode in _notes(path, case))
        left = len(missing(system))
        by_mode = "".join(f", {modes[mode]} in mode {mode}" for mode in (DEFAULT, COMPAT) if modes[mode])
        done = "all compared" if not left else f"{left} files or cases NOT compared"
        yield f"{system}: {len(files)} files, {len(every)} cases{by_mode}: {done}"
    for pattern, reason in LATER.items():
        if found := [path for path in sorted(ROOT.glob("*/**/*")) if path.is_file() and fnmatch(_name(path), pattern)]:
            yield f"{pattern}: {len(found)} files for later: {reason}"


def _notes(path: Path, case: str) -> set[str]:
    """The modes in which a case was compared."""
    seen = _compared.get(_name(path), {})
    return {mode for name, modes in seen.items() if name in ("", case) or case.startswith(f"{name}/") for mode in modes}


def _files(system: str) -> list[Path]:
    """What is to be compared of a system."""
    every = (path for path in sorted((ROOT / system).rglob("*")) if path.is_file() and path.name not in DOCUMENTS)
    return [path for path in every if not any(fnmatch(_name(path), pattern) for pattern in LATER)]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tables(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _tables(item, f"{where}{key}/")
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield f"{where}{item.get('case_id', item.get('batch_id', number))}", item
