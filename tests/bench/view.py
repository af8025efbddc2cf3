"""The page over 1,000 simulated shards of 10,000 records, ours alone: the first page, a record, what browsing holds, what a page weighs.

A fresh process a round serves it, and is asked by HTTP: python -m tests.bench.view PLACE. Nothing is cold but the process.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass

from tests.bench.figure import Figure
from tests.bench.peers.protocol import resident
from tests.bench.readers import ROOT, NotThere, empty_folder
from tests.bench.simulated import simulate

ROUNDS, SHARDS, RECORDS = 3, 1_000, 10_000
LOOKED, WARM, BROWSED = 100, 100, 400  # records that are timed; pages after which memory is looked at, and again
FILTERS = ("", "images_min=1", "images_min=2", "source=bench&text_length_min=9", "longest_side_min=17")


@dataclass
class Answer:
    """What a process found: seconds, of a record milliseconds, MB, kB."""

    first: float  # from opening to the first page
    record: float  # the median
    slowest: float
    grown: float  # memory, anonymous and shared
    page: float  # the heaviest, with style and script


def measure(quick: bool = False) -> Iterator[Figure]:
    """Each against what is allowed."""
    shards, records = (50, 1_000) if quick else (SHARDS, RECORDS)
    with empty_folder("simulated") as folder:
        simulate(folder, shards, records)
        answers = [_asked(str(folder)) for _ in range(1 if quick else ROUNDS)]
    where = f"view, {shards:,} shards x {records:,} records"
    yield _allowed(f"{where}: first page", "s", [one.first for one in answers], 1.0)
    yield _allowed(f"{where}: a record and its picture", "ms", [one.record for one in answers], 100)
    yield _allowed(f"{where}: the slowest of {LOOKED} records", "ms", [one.slowest for one in answers], 100)
    yield _allowed(f"{where}: memory that {BROWSED} more pages add", "MB", [one.grown for one in answers], 16)
    yield _allowed(f"{where}: the heaviest page before images", "kB", [one.page for one in answers], 300)


def _allowed(what: str, unit: str, found: list[float], most: float) -> Figure:
    return Figure(what, unit, tuple(found), (most,), "allowed", 1.0, below=True)


def _asked(place: str) -> Answer:
    command = [sys.executable, "-m", "tests.bench.view", place]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise NotThere(done.stderr.strip().splitlines()[-1][:200])
    return Answer(**json.loads(done.stdout))


def look(place: str) -> Answer:
    """Serve it, and ask."""
    from shards import reader
    from shards.view import app
    from shards.view.desk import Desk
    from shards.view.pages import Pages, View

    began = time.perf_counter()
    with reader.open(place) as data:
        listening = app.listen(0)
        server = app.server(Pages(View(Desk(data))))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            with closing(http.client.HTTPConnection(app.HOST, listening.getsockname()[1], timeout=60)) as connection:
                return _looked(lambda path: _get(connection, path), len(data), began)
        finally:
            server.should_exit = True
            thread.join(30)
            listening.close()


def _looked(get: Callable[[str], bytes], total: int, began: float) -> Answer:
    chance = random.Random(0)
    get("/")
    first = time.perf_counter() - began
    times = sorted(_timed(get, chance.randrange(total)) for _ in range(LOOKED))
    memory = []
    for pages in (WARM, BROWSED):
        for _ in range(pages // 2):
            get(f"/record/{chance.randrange(total)}")
            get(f"/?at={chance.randrange(total)}&{chance.choice(FILTERS)}")
        memory.append(resident(os.getpid()))
    while b"data-go-on" in (numbers := get("/numbers")):
        pass
    pages = [numbers, get("/"), get("/record/0"), get("/rejects")]
    assets = sum(len(get(f"/static/{name}")) for name in ("view.css", "view.js"))
    return Answer(first, times[LOOKED // 2], times[-1], memory[1] - memory[0], (max(map(len, pages)) + assets) / 1000)


def _timed(get: Callable[[str], bytes], number: int) -> float:
    began = time.perf_counter()
    get(f"/record/{number}")
    get(f"/picture/{number}/0")
    return 1000 * (time.perf_counter() - began)


def _get(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{path}: expected 200, found {answer.status}: {body[:200]!r}")
    return body


if __name__ == "__main__":
    print(json.dumps(asdict(look(sys.argv[1]))), flush=True)
    os._exit(0)
