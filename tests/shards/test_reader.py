"""Ours by number and key; and everybody else's: tarfile, GNU tar, webdataset, HF datasets, each with every record and every picture."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def test_a_tar_that_is_cut_while_it_is_mapped_is_an_error_and_does_not_kill_the_process(written: Path, tmp_path: Path) -> None:
    data = shards.open(shutil.copytree(written, tmp_path / "place"))
    shard = data.shards[1]
    assert shard[0].record
    os.truncate(tmp_path / "place" / shard.name, 512)

    for read in (lambda: shard[len(shard) - 1], lambda: list(shard)):
        with pytest.raises(ShardError, match=r"000000-001\.tar: shard size: expected \d+, found 512, cut while it was read"):
            read()


def _flip(tar: Path, at: int) -> None:
    data = bytearray(tar.read_bytes())
    data[at] ^= 1
    tar.write_bytes(data)


def _cut(tar: Path, at: int) -> None:
    os.truncate(tar, at)


# Of 000000-001.tar, whose second record begins at 2560 with the header of its picture, its JSON's header at 3584.
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut at a header": (lambda tar: _cut(tar, 2560), r"000000-001\.tar: shard size: expected \d+, found 2560"),
    "cut inside a header": (lambda tar: _cut(tar, 2760), r"000000-001\.tar: shard size: expected \d+, found 2760"),
    "cut between members": (lambda tar: _cut(tar, 3584), r"000000-001\.tar: shard size: expected \d+, found 3584"),
    "cut inside a picture": (lambda tar: _cut(tar, 3100), r"000000-001\.tar: shard size: expected \d+, found 3100"),
    "a bit of a header": (lambda tar: _flip(tar, 2570), r"000000-001\.tar 000000-0000000\d: record altered: expected crc32"),
    "a bit of a picture": (lambda tar: _flip(tar, 3100), r"000000-001\.tar 000000-0000000\d: record altered: expected crc32"),
    "missing": (Path.unlink, r"000000-001\.tar: shard missing: expected \d+ bytes, found no such file"),
    "a folder": (lambda tar: (tar.unlink(), tar.mkdir()), r"000000-001\.tar: shard unreadable: expected \d+ bytes, found Is a directory"),
    "another shard": (lambda tar: shutil.copy(tar.with_name("000000-000.tar"), tar), r"000000-001\.tar: shard size"),
    "another shard of this size": (
        lambda tar: tar.write_bytes(tar.with_name("000000-000.tar").read_bytes()[: tar.stat().st_size]),
        r"000000-001\.tar 000000-0000000\d: record altered",
    ),
    "the index of another tar": (
        lambda tar: (shutil.copy(tar.with_name("000000-000.parquet"), tar.with_suffix(".parquet")), restated(tar.parent)),
        r"000000-001\.tar: tar size in the index",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_the_other_shards_are_read(written: Path, tmp_path: Path, damage: str) -> None:
    place = shutil.copytree(written, tmp_path / "place")
    inflict, said = DAMAGE[damage]
    inflict(place / "000000-001.tar")
    data, whole = shards.open(place), shards.open(written)

    with pytest.raises(ShardError, match=said):
        list(data)
    for shard, intact in zip(data.shards, whole.shards, strict=True):
        for row in range(len(shard)):
            with contextlib.suppress(ShardError) if shard.name == "000000-001.tar" else contextlib.nullcontext():
                assert bytes(shard[row].image(0)) == bytes(intact[row].image(0))


def test_a_record_is_decoded_when_it_is_asked_for(written: Path, tmp_path: Path) -> None:
    place = shutil.copytree(written, tmp_path / "place")
    sample = shards.open(place)[1]
    reindexed(place, {"members": _with_json_elsewhere(place)})
    expected = bytes(shards.open(written)[0].image(0))

    sample = shards.open(place)[0]

    assert sample.key == "000000-00000000"
    assert bytes(sample.image(0)) == expected
    with pytest.raises(ShardError, match=r"000000-000\.tar 000000-00000000: record unreadable"):
        _ = sample.record


def _with_json_elsewhere(place: Path) -> list[dict[str, Any]]:
    """The members of the first record, the last of them not where it is."""
    members = [{"name": name, "offset": offset, "size": size} for name, offset, size in shards.open(place).shards[0].members(0)]
    return [*members[:-1], members[-1] | {"size": 10}]


def test_samples_outlive_their_data_set(written: Path, expected: Found) -> None:
    with shards.open(written) as data:
        samples = list(data)
    del data
    gc.collect()

    assert [sample.key for sample in samples] == list(expected)
    assert [bytes(sample.image(0)) for sample in samples] == [bytes(sample.image(0)) for sample in shards.open(written)]
    assert [sample.record.key for sample in samples] == list(expected)


def test_a_picture_or_map_that_is_not_there_is_an_index_error(written: Path) -> None:
    sample = shards.open(written)[0]
    assert (len(sample.record.images), len(sample.record.maps)) == (2, 2)

    for ask, position in ((sample.image, 2), (sample.image, -1), (sample.map, 2), (sample.map, -1)):
        with pytest.raises(IndexError):
            ask(position)


def test_random_access_keeps_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards.write(tmp_path, several(30), shard_bytes=4_000)
    data = shards.open(tmp_path)
    assert len(data.shards) == 30
    monkeypatch.setattr("shards.reader.OPEN", 4)
    before = len(os.listdir("/proc/self/fd"))

    keys = [data[number].key for number in range(30)] + [data.get(f"000000-{number:08d}").key for number in range(30)]

    assert keys == [f"000000-{number:08d}" for number in range(30)] * 2
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    assert [sample.key for sample in data] == keys[:30]
    assert len(os.listdir("/proc/self/fd")) <= before


def test_many_threads_read_one_data_set(written: Path) -> None:
    data = shards.open(written)
    expected = [bytes(sample.image(0)) for sample in shards.open(written)]
    numbers = [number % 7 for number in range(2000)]

    def read(number: int) -> bytes:
        if number == 3:
            data.close()
        return bytes(data[number].image(0))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, numbers)) == [expected[number] for number in numbers]


def test_a_data_set_pickles(written: Path, expected: Found) -> None:
    assert [sample.key for sample in pickle.loads(pickle.dumps(shards.open(written)))] == list(expected)


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
        shards.open(place)[0].member("names are read when they are asked for")


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
