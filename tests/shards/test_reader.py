"""Ours by number and key; and everybody else's: tarfile, GNU tar, webdataset, HF datasets, each with every record and every picture."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import shards
from schemas import RequestError, ShardError
from schemas.record import decode
from shards.show import show
from tests.shards.damage import MEMBER, edited, reindexed, restated
from tests.shards.records import captioned, everything, several

Found = dict[str, tuple[Any, dict[str, bytes]]]


@pytest.fixture(scope="module")
def expected(written: Path) -> Found:
    """Key to (record, member suffix to bytes), read with tarfile and json alone."""
    found: Found = {}
    for path in sorted(written.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = member.name.split(".", 1)
                data = tar.extractfile(member)
                assert data is not None
                json_or_none, files = found.get(key, (None, {}))
                if suffix == "json":
                    found[key] = json.loads(data.read()), files
                else:
                    found[key] = json_or_none, {**files, suffix: data.read()}
    assert list(found) == [f"000000-{row:08d}" for row in (0, 1, 2, 5, 6, 7, 8)]
    return found


def test_every_record_in_order_by_number_and_by_key(written: Path, expected: Found) -> None:
    data = shards.open(written)

    assert len(data) == 7
    assert [sample.key for sample in data] == list(expected)
    for number, (key, (record, files)) in enumerate(expected.items()):
        for sample in (data[number], data[number - 7], data.get(key)):
            assert sample.record == decode(json.dumps(record).encode())
            assert {name: bytes(sample.member(f"{key}.{name}")) for name in files} == files
    assert bytes(data[0].image(1)) == expected["000000-00000000"][1]["1.png"]
    assert bytes(data[0].map(0)) == expected["000000-00000000"][1]["0.parts.png"]


@pytest.mark.parametrize("number", [7, -8, 10**9])
def test_a_number_that_is_not_there_is_an_index_error(written: Path, number: int) -> None:
    with pytest.raises(IndexError):
        shards.open(written)[number]


@pytest.mark.parametrize("key", ["000000-00000003", "000000-00000009", "000001-00000000", "", "000000-"])
def test_a_key_that_is_not_there_is_a_key_error(written: Path, key: str) -> None:
    with pytest.raises(KeyError):
        shards.open(written).get(key)


def test_a_row_of_a_shard_that_is_not_there_is_an_index_error(written: Path) -> None:
    shard = shards.open(written).shards[0]

    for row in (-1, len(shard)):
        with pytest.raises(IndexError):
            shard[row]


def test_a_member_that_is_not_there_is_a_key_error(written: Path) -> None:
    with pytest.raises(KeyError):
        shards.open(written)[0].member("000000-00000000.7.jpg")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_webdataset_reads_every_record_and_picture(written: Path, expected: Found) -> None:
    import webdataset

    assert webdataset.__version__.startswith("0.2.")
    urls = [str(path) for path in sorted(written.glob("*.tar"))]
    found = {row["__key__"]: row for row in webdataset.WebDataset(urls, shardshuffle=False)}
    gc.collect()

    assert list(found) == list(expected)
    for key, (record, files) in expected.items():
        assert json.loads(found[key]["json"]) == record
        assert {name: found[key][name] for name in files} == files


HF = """
import json, sys
from datasets import load_dataset
for row in load_dataset(sys.argv[1], split="train", streaming=True):
    row = dict(row)
    pictures = {k: v["bytes"].hex() for k, v in row.items() if isinstance(v, dict) and "bytes" in v and k != "json" and v["bytes"]}
    print(json.dumps([row["__key__"], row["json"], pictures]))
"""


def test_hf_datasets_reads_every_record_and_picture(written: Path, expected: Found, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", HF, written], env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [key for key, _, _ in rows] == list(expected)
    for key, record, pictures in rows:
        assert record == expected[key][0]
        assert {name: bytes.fromhex(data) for name, data in pictures.items()} == expected[key][1]


def test_gnu_tar_extracts_every_member(written: Path, expected: Found, tmp_path: Path) -> None:
    for path in sorted(written.glob("*.tar")):
        subprocess.run(["tar", "-C", tmp_path, "-xf", path], check=True)

    for key, (record, files) in expected.items():
        assert json.loads((tmp_path / f"{key}.json").read_bytes()) == record
        assert {name: (tmp_path / f"{key}.{name}").read_bytes() for name in files} == files
    assert len(list(tmp_path.iterdir())) == 7 + sum(len(files) for _, files in expected.values())


def test_a_flipped_byte_names_shard_and_key(written: Path, tmp_path: Path) -> None:
    place = shutil.copytree(written, tmp_path / "place")
    tar = place / "000000-000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)

    with pytest.raises(ShardError, match=r"000000-000\.tar 000000-00000000: record altered"):
        shards.open(place)[0]
    assert shards.open(place)[1].key == "000000-00000001"


@pytest.mark.parametrize("change", ["cut", "missing", "empty"])
def test_a_tar_that_is_not_whole_is_never_a_shorter_epoch(written: Path, tmp_path: Path, change: str) -> None:
    place = shutil.copytree(written, tmp_path / "place")
    tar = place / "000000-001.tar"
    if change == "missing":
        tar.unlink()
    else:
        os.truncate(tar, 0 if change == "empty" else tar.stat().st_size - 512)

    with pytest.raises(ShardError, match=r"000000-001\.tar"):
        list(shards.open(place))


def test_an_altered_index_is_named_before_it_is_believed(written: Path, tmp_path: Path) -> None:
    place = shutil.copytree(written, tmp_path / "place")
    index = place / "000000-000.parquet"
    index.write_bytes(index.read_bytes().replace(b"000000", b"000001"))

    with pytest.raises(ShardError, match=r"000000-000\.parquet: index altered"):
        shards.open(place)[0]


def test_a_folder_without_a_manifest_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"manifest\.json"):
        shards.open(tmp_path)
    with pytest.raises(RequestError, match=r"manifest\.json"):
        shards.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change",
    [
        {"offset": -1},
        {"offset": 2**62},
        {"length": -5},
        {"length": 2**63 - 1},
        {"offset": 2**63 - 1, "length": 2**63 - 1},
        {"key": None},
        {"crc32": None},
        {"length": None},
        {"members": []},
        {"members": None},
        {"members": [{**MEMBER, "offset": -10}]},
        {"members": [{**MEMBER, "offset": 2**63 - 1}]},
        {"members": [{**MEMBER, "size": -1}]},
        {"members": [{**MEMBER, "size": 2**63 - 1}]},
        {"members": [{**MEMBER, "name": None}]},
        {"members": [{**MEMBER, "offset": 9000}]},
    ],
    ids=str,
)
def test_an_index_that_points_elsewhere_is_a_shard_error(written: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    place = shutil.copytree(written, tmp_path / "place")
    reindexed(place, change)

    with pytest.raises(ShardError, match=r"000000-000\.parquet: index"):
        shards.open(place)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../000000-000.tar"},
        {"name": "/etc/passwd"},
        {"name": ".tar"},
        {"name": "000000-001.tar"},
        {"name": "a/b.tar"},
        {"records": -1},
        {"records": 2**63},
        {"bytes": -1},
        {"records": "3"},
        {"records": None},
    ],
    ids=str,
)
def test_a_manifest_that_can_not_be_true_is_a_shard_error(written: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    place = shutil.copytree(written, tmp_path / "place")
    restated(place, **changes)

    with pytest.raises(ShardError, match=r"manifest\.json: manifest unreadable"):
        shards.open(place)


def test_more_records_than_the_index_has_is_a_shard_error(written: Path, tmp_path: Path) -> None:
    place = shutil.copytree(written, tmp_path / "place")
    restated(place, records=10**6)

    with pytest.raises(ShardError, match="index rows"):
        shards.open(place)[500_000]


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff\xfe", b'{"format": 1}', b"null"])
def test_a_manifest_that_is_none_is_a_shard_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)

    with pytest.raises(ShardError, match=r"manifest\.json"):
        shards.open(tmp_path)


def test_a_later_format_is_refused_by_name(tmp_path: Path) -> None:
    shards.write(tmp_path, several(1))
    edited(tmp_path, lambda found: found.update(format=2))

    with pytest.raises(ShardError, match="format: expected 1, found 2"):
        shards.open(tmp_path)


def test_show_can_not_drive_the_terminal(tmp_path: Path) -> None:
    item = everything()
    item.record.regions[0].id = item.record.expressions[0].regions[0] = item.record.relations[0].subject = "\x1b[2J"
    item.record.turns[0].parts[2].region = "\x1b[2J"
    for span in item.record.turns[0].spans:
        span.regions = ["\x1b[2J"]
    shards.write(tmp_path, [item, captioned("\x1b]0;owned\x07\nline")])

    for sample in shards.open(tmp_path):
        assert all(letter.isprintable() or letter == "\n" for letter in show(sample))
