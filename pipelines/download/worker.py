"""Worker: what a process of a download does with a shard: ask for its URLs, keep the pictures, write the ledger."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from pipelines.download import ledger
from pipelines.download.batch import Img2dataset
from pipelines.download.fetch import Fetcher, Rules
from pipelines.download.hosts import Hosts
from pipelines.download.ledger import Outcome, Standing
from pipelines.download.options import Settings
from pipelines.download.outlet import Files, Outlet, Tar, mend
from pipelines.download.status import Retry
from schemas import SourceError

HOSTS = "hosts"  # the table, in the folder of work


class Shard(NamedTuple):
    """A task: all URLs of a shard, which stand in work/NNNNN.feather, or (retry) some of those that failed."""

    number: int
    seconds: float
    retry: Retry | None = None


@dataclass(frozen=True)
class Job:
    """What every process needs to know. Called in a process, with its number: a Worker."""

    folder: Path
    work: Path
    files: bool  # pictures are files, not in tars
    settings: Settings
    rules: Rules
    host_requests: int
    host_rate: int

    def __call__(self, process: int) -> Worker:
        """In the process itself."""
        return Worker(self, process)


class Worker:
    """Shards through img2dataset. Raises RequestError where that is missing, OSError where there is no room."""

    def __init__(self, job: Job, process: int) -> None:
        self._job, self._own = job, job.work / str(process)
        self._own.mkdir(exist_ok=True)
        hosts = Hosts(job.work / HOSTS, job.settings.processes_count, process, job.host_requests, job.host_rate)
        self._img2dataset, self._fetcher = Img2dataset(job.settings, self._own), Fetcher(job.rules, hosts)

    def __call__(self, shard: Shard) -> Standing:
        """Its new standing, committed."""
        return self._again(shard, shard.retry) if shard.retry is not None else self._first(shard)

    def _first(self, shard: Shard) -> Standing:
        feather = ledger.path(self._job.work, shard.number, ".feather")
        with pa.memory_map(str(feather)) as file:
            rows = pa.ipc.open_file(file).read_all()
        ledger.path(self._job.folder, shard.number).unlink(missing_ok=True)  # it would speak of another tar
        outlet = self._outlet(shard)
        rows = ledger.joined(rows, self._asked(shard, rows, outlet))
        found = self._commit(shard, rows, outlet)
        feather.unlink()
        return found

    def _again(self, shard: Shard, retry: Retry) -> Standing:
        rows = ledger.read(self._job.folder, shard.number)
        chosen = ledger.again(rows, retry)
        outlet = self._outlet(shard)
        some = rows.drop_columns(ledger.RESULTS.names).take(pa.array(chosen, pa.int64()))
        return self._commit(shard, ledger.merged(rows, chosen, self._asked(shard, some, outlet)), outlet)

    def _asked(self, shard: Shard, rows: pa.Table, outlet: Outlet) -> list[Outcome]:
        deadline = time.monotonic() + shard.seconds
        return self._img2dataset.run(rows, outlet, lambda url: self._fetcher.picture(url, deadline)) if rows.num_rows else []

    def _commit(self, shard: Shard, rows: pa.Table, outlet: Outlet) -> Standing:
        said = ledger.write(self._job.folder, shard.number, rows, outlet.publish())
        ledger.stats(self._job.folder, shard.number, said)
        return said

    def _outlet(self, shard: Shard) -> Outlet:
        if self._job.files:
            return Files(self._job.folder, self._own)
        path = ledger.path(self._job.folder, shard.number, ".tar")
        said = ledger.standing(self._job.folder, shard.number) if shard.retry is not None else None
        if said is not None and not mend(path, said.tar or 0):
            raise SourceError(f"{path}: expected {said.tar} bytes as its ledger says, found fewer")
        return Tar(path, self._own, None if said is None else said.tar)
