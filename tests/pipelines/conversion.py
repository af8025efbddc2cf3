"""A conversion of LLaVA rows that are made up: its input, its command, what it left, and a program that kills it again and again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import shards
from shards.check import check
from tests.shards.records import picture

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a slow disk would be most of the time
# Compiling pandas and pyarrow anew in each of forty processes would be most of the time.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def pictured(upstream: Path, number: int) -> tuple[list[Any], Path]:
    """So many rows, and the folder with a picture of each, no two alike."""
    images = upstream / "images"
    images.mkdir(parents=True)
    for n in range(number):
        (images / f"{n}.jpg").write_bytes(picture(24, 16, n))
    return [row(n, f"{n}.jpg") for n in range(number)], images


def row(id: int, image: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"Picture {id}."}]
    return {"id": id, "image": image, "conversations": turns}


def laid(upstream: Path, rows: list[Any]) -> Path:
    """The input, with these rows."""
    (upstream / "rows.json").write_text(json.dumps(rows))
    return upstream


def arguments(upstream: Path, out: object, *more: object) -> list[str]:
    given = ["convert", "llava", "--annotations", upstream / "rows.json", "--images", upstream / "images", "--out", out]
    return [str(one) for one in (*given, "--shard-bytes", "8KiB", *more)]


def files(place: Path) -> dict[str, bytes]:
    """Every file of a place, hidden ones too."""
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def manifest(place: Path) -> dict[str, Any]:
    return json.loads((place / "manifest.json").read_bytes())


def adds_up(place: Path) -> None:
    found = manifest(place)
    totals = found["totals"]
    assert totals["read"] == totals["written"] + totals["rejected"]
    assert totals["written"] == sum(shard["records"] for shard in found["shards"]) == len(shards.open(place))
    assert totals["rejected"] == sum(found["rejected"].values()) == pq.read_table(place / "rejects.parquet").num_rows
    assert totals["images"] == sum(shard["images"] for shard in found["shards"])
    assert check(place, deep=True).problems == []


def key(row: int) -> str:
    """Of the row of an input whose units are of 3."""
    return f"{row // 3:06d}-{row % 3:08d}"


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# Forked from a process that has everything imported, so that the kills land in the work.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from pipelines.__main__ import main
import pipelines.llava, pipelines.ingest
out, times, *arguments = sys.argv[1:]
chance = random.Random(0)

def conversion():
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 9
        try:
            status = main(arguments)
        finally:
            os._exit(status)
    return child

began = time.monotonic()
_, status = os.waitpid(conversion(), 0)
took, landed = time.monotonic() - began, 0
assert status == 0
os.rename(out, out + ".first")
while landed < int(times):
    child = conversion()
    time.sleep(chance.uniform(0, took / 4))
    os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    landed += status == signal.SIGKILL
    if (Path(out) / "manifest.json").exists():
        print("whole", flush=True)
        os.rename(out, f"{out}.{landed}")
_, status = os.waitpid(conversion(), 0)
assert status == 0, status
"""
