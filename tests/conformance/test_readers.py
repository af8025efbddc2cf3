"""Shards read back by readers that are not ours: each gets every record and every picture."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import webdataset

from tests.conformance.commands import Conversion, python
from tests.conformance.conftest import CONVERTERS
from tests.conformance.oracle import Sample

STREAM = """
import hashlib, json, sys
from datasets import load_dataset
for place in sys.argv[1:]:
    for row in load_dataset(place, split="train", streaming=True):
        files = {name: value for name, value in row.items() if name not in ("__key__", "__url__", "json") and value is not None}
        hashes = {name: hashlib.sha256(value["bytes"]).hexdigest() for name, value in files.items()}
        print(json.dumps([place, row["__key__"], row["json"], hashes]))
"""


Rows = dict[str, tuple[dict[str, Any], dict[str, str]]]  # record and picture hashes by key


def expected(conversion: Conversion) -> Rows:
    """Record and picture hashes by key, member names without the key."""
    return {key: (stored.record, hashes(key, stored.files)) for key, stored in conversion.records.items()}


def hashes(key: str, files: dict[str, bytes]) -> dict[str, str]:
    """sha256 by what follows the key in the member's name."""
    return {name.removeprefix(f"{key}."): hashlib.sha256(data).hexdigest() for name, data in files.items()}


def shards(conversion: Conversion) -> list[Path]:
    return sorted(conversion.place.glob("*.tar"))


def member_names(conversion: Conversion) -> set[str]:
    """As the records themselves name their members."""
    records = {key: stored.record for key, stored in conversion.records.items()}
    named = {one["member"] for record in records.values() for one in (*record["images"], *record["maps"])}
    return named | {f"{key}.json" for key in records}


def test_gnu_tar_lists_and_unpacks_every_member(sample: list[Sample], tmp_path: Path) -> None:
    for number, one in enumerate(sample):
        folder = tmp_path / str(number)
        folder.mkdir()
        listed: list[str] = []
        for shard in shards(one.conversion):
            listed += subprocess.run(["tar", "tf", str(shard)], check=True, capture_output=True, text=True).stdout.splitlines()
            unpacked = subprocess.run(["tar", "xf", str(shard), "-C", str(folder)], check=True, capture_output=True, text=True)
            assert not unpacked.stderr

        assert len(listed) == len(set(listed))
        assert set(listed) == {path.name for path in folder.iterdir()} == member_names(one.conversion)
        for key, stored in one.conversion.records.items():
            assert json.loads((folder / f"{key}.json").read_bytes()) == stored.record
            assert all((folder / name).read_bytes() == data for name, data in stored.files.items())


def test_python_s_tarfile_sees_plain_ustar(sample: list[Sample]) -> None:
    for one in sample:
        for shard in shards(one.conversion):
            with tarfile.open(shard, "r|") as tar:
                for member in tar:
                    assert member.isreg()
                    assert not member.pax_headers
                    assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                    assert len(member.name.encode("ascii")) <= 100


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")  # webdataset leaves files open
def test_webdataset_gets_every_record_and_every_picture(sample: list[Sample]) -> None:
    for one in sample:
        found = {}
        for row in webdataset.WebDataset(list(map(str, shards(one.conversion))), shardshuffle=False, nodesplitter=None):
            files = {name: data for name, data in row.items() if not name.startswith("__") and name != "json"}
            found[row["__key__"]] = json.loads(row["json"]), hashes(row["__key__"], files)

        assert found == expected(one.conversion)


def test_hf_datasets_streams_every_record_and_every_picture(sample: list[Sample], streamed: dict[str, Rows]) -> None:
    for one in sample:
        found = streamed[str(one.conversion.place)]

        assert sorted(found) == sorted(one.conversion.records)
        for key, (record, files) in expected(one.conversion).items():
            assert found[key][1] == files
            assert differences(found[key][0], record) == []


@pytest.fixture(scope="session")
def streamed(data: Path, samples: Callable[[str], list[Sample]]) -> dict[str, Rows]:
    """What HF datasets gets out of every folder, all in one process: importing it costs more than reading."""
    places = [str(one.conversion.place) for name in CONVERTERS if (data / name).is_dir() for one in samples(name)]
    ran = python("-c", STREAM, *places, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    assert ran.returncode == 0, ran.stderr[-4000:]
    found: dict[str, Rows] = {place: {} for place in places}
    for place, key, record, files in map(json.loads, ran.stdout.splitlines()):
        found[place][key] = record, files
    return found


def differences(found: Any, wanted: Any, where: str = "") -> Iterable[str]:
    """Where two JSON values differ."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [line for name in wanted.keys() | found.keys() for line in differences(found.get(name), wanted.get(name), f"{where}.{name}")]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [line for at, (a, b) in enumerate(zip(found, wanted, strict=True)) for line in differences(a, b, f"{where}[{at}]")]
    return [] if found == wanted else [f"{where}: expected {wanted!r}, found {found!r}"]
