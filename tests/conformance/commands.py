"""The real commands, in processes of their own, and what they left on disk, read by code that is none of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]


class Stored(NamedTuple):
    """A record as a tar holds it: its JSON and its other members' bytes."""

    key: str
    record: dict[str, Any]
    files: dict[str, bytes]


@dataclass(frozen=True)
class Conversion:
    """One folder of samples that went through check, convert and check --deep."""

    source: str
    inputs: tuple[str, ...]  # the flags that name them
    place: Path
    status: int  # of convert
    counted: dict[str, Any]  # what `pipelines check --json` said
    verdict: dict[str, Any]  # what `shards check --deep --json` said
    verdict_status: int

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """manifest.json."""
        return json.loads((self.place / "manifest.json").read_bytes())

    @cached_property
    def records(self) -> dict[str, Stored]:
        """Every record by key, shard by shard, in the order of the tars."""
        return {stored.key: stored for shard in sorted(self.place.glob("*.tar")) for stored in read_tar(shard)}

    @cached_property
    def rejects(self) -> dict[str, dict[str, Any]]:
        """The rows of rejects.parquet by key."""
        return {row["key"]: row for row in pq.read_table(self.place / "rejects.parquet").to_pylist()}

    @property
    def annotations(self) -> list[Path]:
        """The annotation files and folders that were given."""
        flags = ("--annotations", "--captions", "--instances", "--keypoints", "--panoptic")
        return [Path(value) for flag, value in zip(self.inputs[::2], self.inputs[1::2], strict=True) if flag in flags]


def converted(source: str, inputs: Sequence[str | Path], place: Path, *options: str, verify: str = "decode") -> Conversion:
    """Convert with the real command; `inputs` is flag, value, flag, value, ..."""
    given = tuple(map(str, inputs))
    out = ("--verify", verify, "--out", str(place), "--workers", "1")
    with ThreadPoolExecutor(2) as pool:  # neither needs the other
        counting = pool.submit(command, "pipelines", "check", source, *given, "--json", statuses=(0, 1))
        convert = command("pipelines", "convert", source, *given, *options, *out, statuses=(0, 1))
        counted = counting.result()
    verdict = command("shards", "check", str(place), "--deep", "--json", statuses=(0, 1))
    return Conversion(
        source=source,
        inputs=given,
        place=place,
        status=convert.returncode,
        counted=json.loads(counted.stdout),
        verdict=json.loads(verdict.stdout),
        verdict_status=verdict.returncode,
    )


def command(module: str, *arguments: str, statuses: Sequence[int] = (0,)) -> subprocess.CompletedProcess[str]:
    """python -m MODULE ..., which must end with one of these statuses."""
    ran = python("-m", module, *arguments)
    assert ran.returncode in statuses, f"{module} {' '.join(arguments)}: exit status {ran.returncode}\n{ran.stderr[-4000:]}"
    assert "Traceback" not in ran.stderr, ran.stderr[-4000:]
    return ran


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process. What it compiles is kept for those that follow, even where the environment says not to: that halves their time."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    variables |= {"PYTHONPYCACHEPREFIX": str(ROOT / ".pytest_cache" / "pycache"), **environment}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True)


def read_tar(path: Path) -> Iterator[Stored]:
    """The records of a tar: members that follow each other and share what stands before the first dot, the JSON last."""
    with tarfile.open(path, "r:") as tar:
        files: dict[str, bytes] = {}
        for member in tar:
            key, _, suffix = member.name.partition(".")
            assert all(name.startswith(f"{key}.") for name in files), f"{path.name}: {member.name} stands between {list(files)}"
            data = cast(IO[bytes], tar.extractfile(member)).read()
            if suffix == "json":
                yield Stored(key, json.loads(data), files)
                files = {}
            else:
                files[member.name] = data
        assert not files, f"{path.name} ends without the JSON of {list(files)}"
