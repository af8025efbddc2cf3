"""The manifest of every conversion against the bytes on disk: what it counts, what it hashes, what the indexes say."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import xxhash

from tests.conformance.commands import Conversion
from tests.conformance.oracle import Sample

KEYS = {"format", "source", "options", "inputs", "versions", "shards", "totals", "rejected", "images_dropped", "regions_dropped"}
KEYS |= {"rejects", "fingerprint", "manifest_sha256"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_was_read_is_what_was_written_and_what_was_rejected(sample: list[Sample]) -> None:
    for one in sample:
        manifest, conversion = one.conversion.manifest, one.conversion
        totals = manifest["totals"]

        assert manifest.keys() >= KEYS
        assert (manifest["format"], manifest["source"]) == (1, conversion.source)
        assert totals["read"] == totals["written"] + totals["rejected"] == len(one.items)
        assert totals["written"] == len(conversion.records) == sum(shard["records"] for shard in manifest["shards"])
        assert totals["rejected"] == len(conversion.rejects) == sum(manifest["rejected"].values())
        assert manifest["rejected"] == Counter(row["reason"] for row in conversion.rejects.values())
        assert totals["images"] == sum(shard["images"] for shard in manifest["shards"])
        assert totals["images"] == sum(len(stored.record["images"]) for stored in conversion.records.values())


def test_every_hash_in_the_manifest_is_that_of_the_file(sample: list[Sample]) -> None:
    for one in sample:
        place, manifest = one.conversion.place, one.conversion.manifest
        ledger = place / "rejects.parquet"

        assert manifest["rejects"] == {"rows": len(one.conversion.rejects), "sha256": sha256(ledger)}
        assert sorted(shard["name"] for shard in manifest["shards"]) == sorted(path.name for path in place.glob("*.tar"))
        for shard in manifest["shards"]:
            tar = place / shard["name"]
            assert (tar.stat().st_size, sha256(tar)) == (shard["bytes"], shard["sha256"])
            assert sha256(tar.with_suffix(".parquet")) == shard["index_sha256"]


def test_the_fingerprint_is_the_hash_of_the_shards_alone(sample: list[Sample]) -> None:
    for one in sample:
        manifest = one.conversion.manifest
        rows = [[shard[name] for name in ("name", "records", "bytes", "sha256", "index_sha256")] for shard in manifest["shards"]]

        assert manifest["fingerprint"] == hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def test_the_manifest_s_own_hash_is_of_its_bytes_with_zeros_in_its_place(sample: list[Sample]) -> None:
    for one in sample:
        data = (one.conversion.place / "manifest.json").read_bytes()
        stated = one.conversion.manifest["manifest_sha256"].encode()

        assert data.count(stated) == 1
        assert hashlib.sha256(data.replace(stated, b"0" * 64)).hexdigest() == stated.decode()


def test_the_inputs_are_named_and_hashed(sample: list[Sample]) -> None:
    for one in sample:
        named = {entry["name"]: entry for entry in one.conversion.manifest["inputs"]}

        for path in one.conversion.annotations:
            assert path.name in named
            assert path.is_dir() or named[path.name]["sha256"] == sha256(path)


def test_the_index_says_where_everything_stands_in_the_tar(sample: list[Sample]) -> None:
    for one in sample:
        for shard in one.conversion.manifest["shards"]:
            compare_index(one.conversion, shard)


def compare_index(conversion: Conversion, shard: dict[str, Any]) -> None:
    """Every row of a shard's index against the tar as Python's tarfile sees it."""
    path = conversion.place / shard["name"]
    table, data = pq.read_table(path.with_suffix(".parquet")), path.read_bytes()
    metadata = {name.decode(): value.decode() for name, value in table.schema.metadata.items() if name.startswith(b"tar_")}
    with tarfile.open(path) as tar:
        members = {member.name: (member.offset_data, member.size) for member in tar}

    assert metadata == {"tar_bytes": str(shard["bytes"]), "tar_sha256": shard["sha256"]}
    assert table.num_rows == shard["records"]
    assert [(one["name"], (one["offset"], one["size"])) for row in table["members"].to_pylist() for one in row] == list(members.items())
    for row in table.to_pylist():
        record = conversion.records[row["key"]].record
        texts = [part["text"] or "" for turns in (record, *record["choices"]) for turn in turns["turns"] for part in turn["parts"]]

        assert zlib.crc32(data[row["offset"] : row["offset"] + row["length"]]) == row["crc32"]
        assert (row["source"], row["regions"], row["text_length"]) == (record["source"], len(record["regions"]), sum(map(len, texts)))
        assert len(row["images"]) == len(record["images"])
        for indexed, image in zip(row["images"], record["images"], strict=True):
            offset, size = members[image["member"]]
            assert indexed["xxh3"] == xxhash.xxh3_128_digest(data[offset : offset + size])
            assert [indexed[name] for name in ("width", "height", "bytes", "similarity")] == [
                image[name] for name in ("width", "height", "bytes", "similarity")
            ]
