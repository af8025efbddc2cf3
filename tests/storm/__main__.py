"""python -m tests.storm [--seconds N | --mutations N] [--kills N] [--seed S] [--case TRIAL:SEED] [--write FILE]: bad weather, as a table.

Inputs and places are harmed at random and given to the real commands (tests/storm/trials.py); commands are killed at random
(tests/storm/kills.py). Everything that was wrong is printed with the TRIAL:SEED that does it again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench.part import rewrite
from tests.storm.table import Rows, harmed, killed
from tests.storm.watch import ROOT, Child

TRIALS = (
    "llava", "llava_packed", "coco", "coco_packed", "mmc4", "mmc4_packed", "visual_genome", "laion", "laion", "grand", "grand_packed",
    "place", "place", "converted", "stopped", "img2dataset", "openflamingo", "indexed", "recipe",
)  # fmt: skip


def main() -> int:
    """1 where something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000, metavar="N", help="harmed files (default: 10,000)")
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="kill -9 (default: 200)")
    parser.add_argument("--seconds", type=float, help="as many as so many seconds allow, at most these")
    parser.add_argument("--seed", type=int, help="of everything (default: a random one, which is printed)")
    parser.add_argument("--trials", default=",".join(dict.fromkeys(TRIALS)), help="only these")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--case", metavar="TRIAL:SEED", help="only this case, again")
    parser.add_argument("--write", type=Path, help="keep the tables in this file, beside what else stands there")
    options = parser.parse_args()
    if options.case:
        name, _, seed = options.case.partition(":")
        with Child() as child:
            print(json.dumps(child.case(name, int(seed)), indent=1))
        return 0
    seed = secrets.randbelow(10**9) if options.seed is None else options.seed
    print(f"storm: seed {seed}", file=sys.stderr, flush=True)
    rows, began = Rows(), time.monotonic()
    until = began + options.seconds if options.seconds else None
    wanted = [name for name in TRIALS if name in options.trials.split(",")]
    parts: list[str] = []
    if options.mutations:
        harm(itertools.islice(cases(wanted, seed), options.mutations), rows, options.jobs, until)
        parts.append(harmed(rows, seed, time.monotonic() - began))
    if options.kills:
        began = time.monotonic()
        kill(options.kills, seed, rows, s3=True)
        parts.append(killed(rows, seed, time.monotonic() - began))
    for part in parts:
        print(part)
        if options.write:
            rewrite(options.write, part)
    return int(bool(rows.wrong))


def cases(names: Sequence[str], seed: int) -> Iterator[tuple[str, int]]:
    """Trial and seed of a case after the other: of each trial its share, no case twice."""
    for number in itertools.count():
        for at, name in enumerate(names):
            yield name, seed * 1_000_000 + number * len(names) + at


def harm(wanted: Iterator[tuple[str, int]], rows: Rows, jobs: int, until: float | None = None) -> None:
    """Run these cases, until then at most."""
    lock = threading.Lock()

    def work(_: int) -> None:
        with Child() as child:
            while until is None or time.monotonic() < until:
                with lock:
                    case = next(wanted, None)
                if case is None:
                    return
                found = child.case(*case)
                with lock:
                    rows.add(f"{case[0]}:{case[1]}", found)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, range(jobs)))


def kill(kills: int, seed: int, rows: Rows, *, s3: bool) -> None:
    """Kill so often, in a process of its own: it forks, which a process with threads should not."""
    module = "from tests.storm.kills import main; main()"  # with -m, every worker of every run would import all of it anew
    given = [sys.executable, "-c", module, "--kills", str(kills), "--seed", str(seed), *(["--s3"] if s3 else [])]
    with subprocess.Popen(given, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found: dict[str, Any] = json.loads(line)
            rows.struck(found)
    if process.returncode:
        rows.wrong.append(f"kills: exit status {process.returncode}")
        print(rows.wrong[-1], file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
