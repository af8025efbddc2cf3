"""python -m tests.bench [NAME ...] [--quick] [--write FILE]: ours beside a peer in the same run, as ratios.

Each module of this folder with a function `measure(quick)` is one benchmark; it yields Figures. Peers and ours take turns, the median of
the rounds counts.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from tests.bench.figure import Figure

HERE = Path(__file__).parent
NAMES = ("write", "decode", "check", "read")


def main() -> int:
    """1 where a figure falls short of its target."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="which (default: all)")
    parser.add_argument("--quick", action="store_true", help="a small input and one round: to see that it runs")
    parser.add_argument("--write", type=Path, help="keep the table in this file")
    options = parser.parse_args()
    figures: list[Figure] = []
    for name in options.names or NAMES:
        for figure in importlib.import_module(f"tests.bench.{name}").measure(options.quick):
            print(figure.line(), flush=True)
            figures.append(figure)
    if options.write and not options.quick:
        options.write.write_text(report(figures))
    return 0 if all(figure.met for figure in figures) else 1


def report(figures: list[Figure]) -> str:
    """RESULTS.md: the machine, then a row a figure."""
    packages = ("webdataset", "pyarrow", "pillow", "msgspec", "xxhash", "isal")
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
        "",
    ]
    return "\n".join(lines)


def machine() -> str:
    """Processor, cores, memory and the instructions that decide how fast sha256 is."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    sha = "with" if " sha_ni" in info else "without"
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {sha} SHA instructions"


if __name__ == "__main__":
    sys.exit(main())
