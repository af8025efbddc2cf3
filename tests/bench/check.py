"""`pipelines check llava` on 665,000 records of 10 turns, beside json.load and os.path.exists, each in a process of its own.

Memory is the highest RssAnon of the process, sampled; the slope is measured between half of the rows and all of them.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.figure import Figure

ROWS, NAMES, ROUNDS = 665_000, 100_000, 3
PEER = """
import json, os, sys
rows = json.load(open(sys.argv[1]))
missing = sum(not os.path.exists(os.path.join(sys.argv[2], row["image"])) for row in rows if "image" in row)
print(missing)
"""


def measure(quick: bool = False) -> Iterator[Figure]:
    """Seconds and anonymous memory of the whole command, start of Python included."""
    rows = 20_000 if quick else ROWS
    with tree(rows) as root:
        seconds: tuple[list[float], list[float]] = ([], [])
        memory: tuple[list[float], list[float]] = ([], [])
        for _ in range(1 if quick else ROUNDS):
            for index, command in enumerate((ours(root, "rows.json"), peer(root))):
                taken, anonymous = watched(command)
                seconds[index].append(taken)
                memory[index].append(anonymous / 1e6)
        _, half = watched(ours(root, "half.json"))
    what = f"pipelines check llava, {rows:,} rows against {NAMES:,} names"
    yield Figure(what, "s", tuple(seconds[0]), tuple(seconds[1]), "json.load + os.path.exists", 0.25, below=True)
    yield Figure(f"{what}: anonymous memory", "MB", tuple(memory[0]), (150.0,), "allowed", 1.0, below=True)
    slope = (memory[0][-1] * 1e6 - half) / (rows - rows // 2)
    yield Figure(f"{what}: for each further row", "bytes", (max(slope, 0.0),), (128.0,), "allowed", 1.0, below=True)


def ours(root: Path, name: str) -> list[str]:
    arguments = ["check", "llava", "--annotations", str(root / name), "--images", str(root / "images"), "--json"]
    return [sys.executable, "-m", "pipelines", *arguments]


def peer(root: Path) -> list[str]:
    return [sys.executable, "-c", PEER, str(root / "rows.json"), str(root / "images")]


def watched(command: Sequence[str]) -> tuple[float, int]:
    """Seconds, and the highest anonymous memory in bytes."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    highest = [0]
    watcher = threading.Thread(target=watch, args=(process, highest))
    watcher.start()
    if process.wait() not in (0, 1):
        raise SystemExit(f"bench: {' '.join(command)} failed")
    seconds = time.perf_counter() - began
    watcher.join()
    return seconds, highest[0]


def watch(process: subprocess.Popen[bytes], highest: list[int]) -> None:
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    highest[0] = max(highest[0], int(line.split()[1]) * 1024)
        time.sleep(0.01)


@contextlib.contextmanager
def tree(rows: int) -> Iterator[Path]:
    """rows.json (2 kB a row), half.json and images/ with empty files: only names are looked at."""
    root = Path(tempfile.mkdtemp(prefix="shardweave-bench-"))
    try:
        for i in range(NAMES):
            path = root / "images" / f"{i % 10}" / f"{i:012d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        write_rows(root / "rows.json", rows)
        write_rows(root / "half.json", rows // 2)
        yield root
    finally:
        shutil.rmtree(root)


def write_rows(path: Path, rows: int) -> None:
    chance = random.Random(0)
    words = "the a of picture shows people standing near water with red blue large small objects in front behind".split()  # noqa: SIM905 - a list of twenty
    with path.open("w") as file:
        file.write("[\n")
        for i in range(rows):
            file.write((",\n" if i else "") + json.dumps(row(i, chance, words)))
        file.write("\n]\n")


def row(i: int, chance: random.Random, words: Sequence[str]) -> dict[str, object]:
    """One row; a hundredth of the pictures does not exist."""
    number = chance.randrange(NAMES) if chance.random() > 0.01 else NAMES + i
    text = " ".join(chance.choices(words, k=30))
    turns = [{"from": ("human", "gpt")[t % 2], "value": ("<image>\n" if t == 0 else "") + text} for t in range(10)]
    return {"id": str(i), "image": f"{number % 10}/{number:012d}.jpg", "conversations": turns}
