"""Reading from object storage: Ceph's gateway on this machine, one process, every byte looked at, nothing kept from an earlier run.

Each reader as its documentation says: ours by ranges, because what is read once needs no cache; webdataset presigned URLs through curl,
HF datasets s3fs, energon the multi-storage client, litdata and mosaicml-streaming into their caches. What ours costs when it brings whole
shards into its cache, hashed, is told beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.bench.faults import service, upload
from tests.bench.figure import OURS, Figure, fastest
from tests.bench.readers import NotThere, Reader, empty_folder, in_turns, made, read, readers
from tests.bench.workload import SMALL

ROUNDS, RECORDS = 3, 10_000
CACHED = f"{OURS}, cached"


def measure(quick: bool = False) -> Iterator[Figure]:
    """Records a second of an epoch, opening included, and seconds from opening to the first batch."""
    given = replace(SMALL, records=1000) if quick else replace(SMALL, records=RECORDS)
    with service() as s3:
        if s3 is None:
            raise NotThere("no S3 service here")
        places: dict[str, str] = {}
        found = [reader for reader in readers() if reader.s3]
        for reader in found:
            places[reader.name] = f"{s3.bucket()}/data"
            upload(made(reader, given), places[reader.name])
        cached = replace(found[0], name=CACHED)
        places[CACHED] = places[found[0].name]
        rounds = in_turns([*found, cached], 1 if quick else ROUNDS, lambda reader: once(reader, places[reader.name], s3.environment))
    what = f"read {given.records:,} records of {given.name} from S3, 1 process, every byte checked"
    through = {figure: tuple(values.pop(CACHED, ())) for figure, values in rounds.items()}
    yield fastest(what, "records/s", rounds["rate"], 1.3)
    yield fastest(f"{what}: first batch", "s", rounds["first"], None, below=True)
    if through["rate"]:
        yield Figure(f"{what}, into the cache", "records/s", through["rate"], tuple(rounds["rate"][OURS]), "shardweave, by ranges", None)


def once(reader: Reader, place: str, environment: dict[str, str]) -> dict[str, float]:
    """An epoch, with an empty cache."""
    with empty_folder("cache") as cache:
        keeps = reader.caches and reader.module != "webdataset" and reader.name != OURS
        answer = read(reader, place, environment, cache=cache if keeps else None, seconds=20)
    whole = answer["records"] + 64
    return {"rate": whole / (answer["seconds"] + answer["first"]), "first": answer["first"]}
