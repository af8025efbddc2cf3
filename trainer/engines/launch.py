"""Which rank this process is, and of how many: as torchrun, the deepspeed launcher or SLURM's srun state it.

All three end in torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), which torch and DeepSpeed read.
"""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping
from typing import NamedTuple


class Place(NamedTuple):
    """0 of 1 where nobody launched anything."""

    rank: int
    ranks: int
    local: int  # among the ranks of this machine


def place(environ: MutableMapping[str, str] = os.environ) -> Place:
    """This process. What srun states is written down under torchrun's names."""
    if "RANK" not in environ and _tasks(environ) > 1 and "SLURM_PROCID" in environ:
        environ.update(_slurm(environ))
    return Place(*(int(environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))))


def launched(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process, be it as the only rank."""
    place(environ)
    return "RANK" in environ


def first_host(nodes: str) -> str:
    """Of a node list as SLURM writes it: gpu[003-006,9],login1 begins with gpu003."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group() if first else nodes)


def _tasks(environ: MutableMapping[str, str]) -> int:
    """Of the step that srun started, not of the job around it."""
    return int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1)


def _slurm(environ: MutableMapping[str, str]) -> dict[str, str]:
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST") or "127.0.0.1"
    job = int(environ.get("SLURM_JOB_ID", "0")) + int(environ.get("SLURM_STEP_ID", "0"))  # a port of its own for each step
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": str(_tasks(environ)),
        "LOCAL_RANK": environ.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": environ.get("MASTER_ADDR") or first_host(nodes),
        "MASTER_PORT": environ.get("MASTER_PORT") or str(20000 + job % 10000),
    }
