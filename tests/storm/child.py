"""python -m tests.storm.child FOLDER BYTES: a process in which cases run one after another, until stdin ends.

A line in is ["case", TRIAL, SEED] or ["run", "pipelines" or "shards", ARGUMENTS]; a line out is what became of it, and how much memory it
took at its peak. The address space is limited to so many bytes more than the process has once everything is imported. What a crash leaves
is in FOLDER/stderr.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import re
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

from shards.processes import die_with
from tests.storm.told import capture
from tests.storm.trials import TRIALS, Judged, Trial, pipelines, shard

COMMANDS = {"pipelines": pipelines, "shards": shard}


def main() -> None:
    """Until stdin ends."""
    folder, limit = Path(sys.argv[1]), int(sys.argv[2])
    die_with(os.getppid())
    answers = capture(str(folder / "stderr"))
    faulthandler.enable(2)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    most = memory("VmSize") + limit
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    trials: dict[str, Trial] = {}
    for line in sys.stdin:
        kind, name, given = json.loads(line)
        if kind == "case" and name not in trials:
            trials[name] = TRIALS[name](folder / name)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = memory("VmRSS")
        found = _case(trials[name], name, given) if kind == "case" else COMMANDS[name](*given)._asdict()
        found["peak"] = max(0, memory("VmHWM") - before)
        os.write(answers, json.dumps(found).encode() + b"\n")


def _case(trial: Trial, name: str, seed: int) -> dict[str, Any]:
    try:
        return trial.case(seed)._asdict()
    except Exception:  # noqa: BLE001 - of the Python interface, whatever it is, it is what is looked for
        return Judged(f"{name}: Python interface", "refused", [f"traceback: {traceback.format_exc()}"])._asdict()


def memory(name: str) -> int:
    """Bytes, as the kernel counts them."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) << 10 if found else 0


if __name__ == "__main__":
    main()
