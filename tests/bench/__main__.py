"""python -m tests.bench [NAME ...] [--quick] [--go-on] [--write FILE]: ours beside a peer in the same run, as ratios.

Each module of this folder with a function `measure(quick)` is one benchmark; it yields Figures. Peers and ours take turns, the median of
the rounds counts. What a benchmark found is kept in the scratch folder ($TMPDIR/shardweave-bench) when it is through: the table has the
last figures of all, and --go-on leaves out what was measured already.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from tests.bench.figure import Figure
from tests.bench.readers import NotThere
from tests.bench.workload import scratch

HERE = Path(__file__).parent
NAMES = (
    *("write", "decode", "check", "read", "undecoded", "decoded", "stored", "start", "plan", "view"),
    *("wait", "padding", "loop_overhead", "planning", "scale", "ray", "download"),
)


def main() -> int:
    """1 where a figure falls short of its target."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="which (default: all)")
    parser.add_argument("--quick", action="store_true", help="a small input and one round: to see that it runs")
    parser.add_argument("--go-on", action="store_true", help="leave out the benchmarks whose figures an earlier run has kept")
    parser.add_argument("--write", type=Path, help="keep the table in this file")
    options = parser.parse_args()
    figures: list[Figure] = []
    for name in options.names or NAMES:
        if not (options.go_on and kept(name).exists()):
            figures += measured(name, options.quick)
    if options.write and not options.quick:
        options.write.write_text(report([figure for name in NAMES for figure in read(kept(name))]))
    return 0 if all(figure.met for figure in figures) else 1


def measured(name: str, quick: bool) -> list[Figure]:
    """The figures of one benchmark, kept unless it was only to see that it runs."""
    figures: list[Figure] = []
    print(f"{name}: load {os.getloadavg()[0]:.2f}", file=sys.stderr, flush=True)
    try:
        for figure in importlib.import_module(f"tests.bench.{name}").measure(quick):
            print(figure.line(), flush=True)
            figures.append(figure)
    except NotThere as error:
        print(f"-     {name}: {error}", flush=True)
        return []
    if not quick:
        kept(name).write_text(json.dumps([asdict(figure) for figure in figures]))
    return figures


def kept(name: str) -> Path:
    """Where the last figures of a benchmark are."""
    folder = scratch() / "figures"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.json"


def read(path: Path) -> list[Figure]:
    """What `measured` kept there, nothing where it kept none."""
    rows = json.loads(path.read_text()) if path.exists() else []
    return [Figure(**{**row, "ours": tuple(row["ours"]), "peer": tuple(row["peer"])}) for row in rows]


def report(figures: list[Figure]) -> str:
    """RESULTS.md: the machine, then a row a figure, then what every peer did."""
    packages = ("webdataset", "pyarrow", "pillow", "msgspec", "xxhash", "isal", "numpy", "torch", "obstore")
    lines = [
        "# Benchmark results",
        "",
        f"`make bench` on {machine()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + ". Ours and the peer took turns in one run; medians, in brackets the lowest and highest round.",
        "",
        "| what | ours | peer | ratio | target | met |",
        "|---|---|---|---|---|---|",
        *(figure.row() for figure in figures),
    ]
    if rows := [row for figure in figures if figure.others for row in figure.other_rows()]:
        lines += ["", "## Every peer", "", "| what | peer | found |", "|---|---|---|", *rows]
    return "\n".join([*lines, ""])


def machine() -> str:
    """Processor, cores, memory and the instructions that decide how fast sha256 is."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    sha = "with" if " sha_ni" in info else "without"
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {sha} SHA instructions"


if __name__ == "__main__":
    sys.exit(main())
