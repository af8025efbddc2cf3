"""Run: a list of URLs into a folder of downloads, or on from where a run of the same stopped.

    NNNNN.parquet        the ledger of a shard (pipelines.download.ledger), written last
    NNNNN.tar            its pictures, as img2dataset lays them out; or images/..., files by name
    NNNNN_stats.json     its counts
    _download/           whose run this is (run.json, as in a data set), its sums (summary.json), and what is being made

First every shard that is not done: that has no ledger, whose tar is shorter than its ledger says, or of whose URLs not one gave a picture.
Then those that failed are asked for again, as --retry says. Every other file in the folder is nobody's business.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from tqdm import tqdm

from pipelines.download import hosts, ledger
from pipelines.download.batch import VERSIONS
from pipelines.download.crew import Crew, Lost
from pipelines.download.fetch import Rules
from pipelines.download.ledger import Standing
from pipelines.download.options import Download
from pipelines.download.outlet import IMAGES, mend
from pipelines.download.robots import NAME
from pipelines.download.status import SUCCESS
from pipelines.download.worker import HOSTS, Job, Shard
from schemas import RequestError, SourceError
from shards import durable, run
from shards.write import VERSION

OURS = "_download"
SUMMARY = "summary.json"
USUAL = 10_000  # URLs that a shard's deadline is meant for
log = logging.getLogger(__name__)


class Numbered(Protocol):
    """A shard of a list."""

    @property
    def number(self) -> int:
        """Which."""
        ...


class Listed(Protocol):
    """URLs in shards."""

    files: bool  # pictures are kept as files, under their keys

    def content(self) -> dict[str, Any]:
        """What makes it this list and no other."""
        ...

    def shards(self) -> Sequence[Any]:
        """All of them, Numbered, in order."""
        ...

    def tables(self, shards: Sequence[Any]) -> Iterator[tuple[Any, pa.Table]]:
        """These shards with their rows: url, key (null where it has no name), and what else is kept. Raises SourceError."""
        ...


def download(listed: Listed, folder: Path, options: Download) -> None:
    """Have the pictures of all URLs that give one in the folder, and a row a URL in its ledgers.

    Raises RequestError and SourceError: the list, the folder or img2dataset is not what it should be; a shard of which nothing came; a
    shard whose process hung or died twice.
    """
    _refuse_others(folder)
    content = {"urls": listed.content(), "img2dataset": options.settings.deciding}
    with run.claimed(folder / OURS, content):
        if listed.files:
            (folder / IMAGES).mkdir(exist_ok=True)
        work = folder / OURS / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            _Run(listed, folder, work, options).run()
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _refuse_others(folder: Path) -> None:
    if not folder.is_dir() or (folder / OURS / run.RUN).exists():
        return
    for name in sorted(path.name for path in folder.iterdir()):
        if re.fullmatch(r"\d+(\.tar|\.parquet|_stats\.json)", name):
            raise RequestError(f"{folder}: expected a folder for downloads, found {name} of somebody else's (read them by --annotations)")


class _Run:
    def __init__(self, listed: Listed, folder: Path, work: Path, options: Download) -> None:
        self._listed, self._folder, self._work, self._options = listed, folder, work, options
        self._shards = listed.shards()
        self._said: dict[int, Standing] = {}
        self._lost: dict[int, str] = {}
        self._changed = False

    def run(self) -> None:
        durable.remove_leftovers(self._folder)
        missing = [shard for shard in self._shards if not self._done(shard.number)]
        with self._crew() as crew:
            self._pass(crew, self._given(missing), len(missing), "download")
            retried = self._options.retried
            again = [number for number, said in self._said.items() if not said.failed and retried.of(said.counts, said.once)]
            tasks = (Shard(number, self._seconds(self._said[number].urls), retried) for number in again)
            self._pass(crew, tasks, len(again), "retry")
        self._tell()

    def _done(self, number: int) -> bool:
        """Whether its ledger stands, and its tar. What a kill left behind the tar's end is cut off."""
        said = ledger.standing(self._folder, number)
        if said is None or (said.tar is not None and not mend(ledger.path(self._folder, number, ".tar"), said.tar)):
            return False
        stats = ledger.path(self._folder, number, "_stats.json")
        if not stats.exists() or not stats.stat().st_size:
            ledger.stats(self._folder, number, said)
        self._said[number] = said
        return not said.failed

    def _given(self, shards: Sequence[Numbered]) -> Iterator[Shard]:
        """Tasks, made when a process is free for them."""
        for shard, rows in self._listed.tables(shards):
            path = ledger.path(self._work, shard.number, ".feather")
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
                writer.write_table(rows)
            yield Shard(shard.number, self._seconds(rows.num_rows))

    def _seconds(self, urls: int) -> float:
        return self._options.shard_deadline * max(1, -(-urls // max(USUAL, self._options.settings.number_sample_per_shard)))

    def _pass(self, crew: Crew[Shard, Standing], tasks: Iterable[Shard], total: int, what: str) -> None:
        if not total:
            return
        if find_spec("img2dataset") is None:
            raise RequestError(f"downloads: expected {VERSIONS}, found none: pip install 'shardweave[download]'")
        began = time.monotonic()
        with _bar(total, what) as bar:
            for shard, found in crew.run(tasks):
                if isinstance(found, Lost):
                    self._lost[shard.number] = found.why
                else:
                    self._note(shard, found)
                bar.update()
        log.info("%s: %d shards in %.2f s", what, total, time.monotonic() - began)

    def _crew(self) -> Crew[Shard, Standing]:
        options, settings = self._options, self._options.settings
        table, processes = self._work / HOSTS, settings.processes_count
        hosts.create(table, processes)
        contact = f" (+{options.contact})" if options.contact else ""
        rules = Rules(
            f"{NAME}/{VERSION}{contact}", settings.timeout, settings.retries, options.allow_private, settings.ignore_ssl_certificate
        )
        job = Job(self._folder, self._work, self._listed.files, settings, rules, options.host_requests, options.host_rate)
        return Crew(job, processes, self._work, lambda process: hosts.forget(table, processes, process))

    def _note(self, shard: Shard, found: Standing) -> None:
        self._said[shard.number], self._changed = found, True
        if found.failed and not any(said.counts.get(SUCCESS) for said in self._said.values()):
            raise SourceError(self._nothing(shard.number))  # nor will the next millions

    def _nothing(self, number: int) -> str:
        counts = self._said[number].counts
        hint = ": is there a network?" if set(counts) <= {"name_resolution", "connection", "timeout"} else ""
        where = ledger.path(self._folder, number, "")
        return f"{where}: expected at least one picture, found that all {self._said[number].urls} URLs failed ({_by_status(counts)}){hint}"

    def _tell(self) -> None:
        """The sums; and an error where a shard is not done."""
        if self._lost:
            number, why = min(self._lost.items())
            more = f", and {len(self._lost) - 1} more" if len(self._lost) > 1 else ""
            where = ledger.path(self._folder, number, "")
            raise RequestError(
                f"{where}: expected its URLs within the shard's deadline, found that {why}, twice{more}; the same command goes on"
            )
        numbers = [shard.number for shard in self._shards]
        failed = [number for number in numbers if self._said[number].failed]
        if failed:
            more = f" (and so did those of {len(failed) - 1} more shards)" if len(failed) > 1 else ""
            raise SourceError(self._nothing(failed[0]) + more)
        log.info("%s: %s", self._folder, _sentence(self._summary(numbers)))

    def _summary(self, numbers: Sequence[int]) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        for number in numbers:
            counts.update(self._said[number].counts)
        sums: dict[str, Any] = {"urls": counts.total(), "downloaded": counts.pop(SUCCESS, 0), "failed": dict(sorted(counts.items()))}
        path = self._folder / OURS / SUMMARY
        known = {} if self._changed else _read(path)
        if {name: known.get(name) for name in sums} == sums and "exact_duplicates" in known:
            return known
        sums["exact_duplicates"] = ledger.duplicates(self._folder, numbers, self._work)
        durable.write(path, json.dumps(sums, indent=1).encode())
        return sums


def _read(path: Path) -> dict[str, Any]:
    """The sums of before; none where they can not be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sentence(summary: dict[str, Any]) -> str:
    failed = sum(summary["failed"].values())
    why = f" ({_by_status(summary['failed'])})" if failed else ""
    sums = f"{summary['urls']:,} URLs = {summary['downloaded']:,} downloaded + {failed:,} failed{why}"
    return f"{sums}; {summary['exact_duplicates']:,} exact duplicates"


def _by_status(counts: dict[str, int]) -> str:
    return ", ".join(f"{status} {number:,}" for status, number in Counter(counts).most_common(8))


def _bar(total: int, what: str) -> tqdm[Any]:
    return tqdm(total=total, desc=what, unit="shard", disable=None, file=sys.stderr)
