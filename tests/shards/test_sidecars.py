"""Sidecars: what other readers want, byte for byte as their own tools make it, and read by them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import shards
from schemas import RequestError
from shards import foreign
from shards.sidecars import sidecars
from tests.shards.foreign_tars import any_tar, by_webdataset, img2dataset, img2dataset_rows
from tests.shards.records import everything, picture, several

PEERS = ".venv-peers"  # what `make bench-peers` makes: megatron-energon, wids, webdataset 1
READERS = Path(__file__).with_name("peer_readers.py")


class Seen(NamedTuple):
    """A sample of a tar, as Python's tarfile sees it."""

    key: str
    start: int
    parts: list[tuple[str, int, int]]  # suffix, offset and size of the payload
    files: dict[str, str]  # sha256 by suffix


def seen(path: Path) -> tuple[list[Seen], int]:
    """Its samples, and where the last member ends."""
    found: list[Seen] = []
    with tarfile.open(path) as tar:
        for member in tar:
            parted = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", member.name)
            assert parted
            if not found or found[-1].key != parted[1]:
                found.append(Seen(parted[1], member.offset, [], {}))
            content = tar.extractfile(member)
            assert content
            found[-1].parts.append((parted[2], member.offset_data, member.size))
            found[-1].files[parted[2]] = hashlib.sha256(content.read()).hexdigest()
        return found, tar.offset


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished data set in several shards, with all sidecars."""
    place = tmp_path_factory.mktemp("sidecars") / "ours"
    shards.write(place, [everything(), *several(12)], shard_bytes=14_336)
    sidecars(place, ["energon", "wids", "dali"])
    assert len(list(place.glob("*.tar"))) > 2
    return place


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars made elsewhere, indexed, with all sidecars; the first and the fourth sample of the first tar are no records."""
    place = img2dataset(tmp_path_factory.mktemp("sidecars") / "indexed", [5, 3], stats=False)
    rows = img2dataset_rows(0, 5)
    rows[0]["jpg"] = rows[3]["jpg"] = b"<html>"
    by_webdataset(place / "00000.tar", rows)
    foreign.index(place)
    sidecars(place, ["energon", "wids", "dali"])
    return place


@pytest.fixture(params=["ours", "indexed"])
def place(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def tars(place: Path) -> list[Path]:
    return sorted(place.glob("*.tar"))


def rows(place: Path, table: str) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(place / ".nv-meta" / "index.sqlite")
    try:
        return database.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3, 4").fetchall()
    finally:
        database.close()


def test_energon_s_tar_idx_holds_where_each_sample_begins_and_the_last_one_ends(place: Path) -> None:
    for path in tars(place):
        samples, end = seen(path)
        wanted = [*(sample.start for sample in samples), end]
        assert path.with_suffix(".tar.idx").read_bytes() == struct.pack(f"<{len(wanted)}Q", *wanted)


def test_energon_s_database_has_a_row_for_each_sample_and_each_part(place: Path) -> None:
    samples, parts = [], []
    excluded = json.dumps((place / ".nv-meta" / "split.yaml").read_text())
    for number, path in enumerate(tars(place)):
        found, end = seen(path)
        ends = [*(sample.start for sample in found[1:]), end]
        for at, (sample, stop) in enumerate(zip(found, ends, strict=True)):
            samples.append((number, sample.key, at, sample.start, stop - sample.start))
            if f"{path.name}/{sample.key}" not in excluded:
                parts += [(number, at, *part) for part in sample.parts]
    assert rows(place, "samples") == sorted(samples)
    assert rows(place, "sample_parts") == sorted(parts)
    assert len(samples) == len(seen(tars(place)[0])[0]) + sum(len(seen(path)[0]) for path in tars(place)[1:])


def test_energon_s_folder_is_the_one_that_prepare_makes(ours: Path) -> None:
    folder = ours / ".nv-meta"
    names = [path.name for path in tars(ours)]
    counts = {path.name: len(seen(path)[0]) for path in tars(ours)}
    assert sorted(path.name for path in folder.iterdir()) == [".info.json", "dataset.yaml", "index.sqlite", "index.uuid", "split.yaml"]
    assert json.loads((folder / ".info.json").read_text()) == {"energon_version": "7.4.1", "shard_counts": counts}
    assert (folder / "dataset.yaml").read_text() == "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    train = "".join(f'  - "{name}"\n' for name in names)
    assert (folder / "split.yaml").read_text() == f"exclude: []\nsplit_parts:\n  train:\n{train}  val: []\n  test: []\n"
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", (folder / "index.uuid").read_text())
    database = sqlite3.connect(folder / "index.sqlite")
    found = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    database.close()
    assert found == {
        "samples",
        "sample_parts",
        "sqlite_autoindex_samples_1",
        "idx_samples_by_tar_and_idx",
        "idx_sample_parts_seq",
        "idx_sample_parts_full",
    }


def test_samples_that_are_no_records_are_excluded_for_energon(indexed: Path) -> None:
    text = (indexed / ".nv-meta" / "split.yaml").read_text()
    assert text.startswith('exclude:\n- "00000.tar/000000000"\n- "00000.tar/000000003"\nsplit_parts:\n')
    assert json.loads((indexed / ".nv-meta" / ".info.json").read_text())["shard_counts"] == {"00000.tar": 5, "00001.tar": 3}


def test_wids_json_lists_shards_by_name_with_their_samples(place: Path) -> None:
    found = json.loads((place / "wids.json").read_text())
    assert (found["__kind__"], found["wids_version"]) == ("wids-shard-index-v1", 1)
    assert found["shardlist"] == [
        {"url": path.name, "nsamples": len(seen(path)[0]), "filesize": path.stat().st_size} for path in tars(place)
    ]


def test_md5_sums_are_there_when_they_are_asked_for(ours: Path, tmp_path: Path) -> None:
    place = shutil.copytree(ours, tmp_path / "place")
    sidecars(place, ["wids"], md5=True)
    sums = [shard["md5sum"] for shard in json.loads((place / "wids.json").read_text())["shardlist"]]
    assert sums == [hashlib.md5(path.read_bytes()).hexdigest() for path in tars(place)]


def test_dali_s_idx_has_a_line_a_sample(place: Path) -> None:
    excluded = (place / ".nv-meta" / "split.yaml").read_text()
    for path in tars(place):
        samples = [sample for sample in seen(path)[0] if f"{path.name}/{sample.key}" not in excluded]
        lines = [" ".join(f"{suffix} {at} {size} {sample.key}.{suffix}" for suffix, at, size in sample.parts) for sample in samples]
        assert path.with_suffix(".idx").read_text() == "\n".join([f"v1.2 {len(samples)}", *lines, ""])


def test_the_same_place_gives_the_same_bytes(ours: Path, tmp_path: Path) -> None:
    place = shutil.copytree(ours, tmp_path / "place")
    again = sidecars(place, ["energon", "wids", "dali"])
    assert len(set(again)) == len(again)
    assert {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()} == {
        str(path.relative_to(ours)): path.read_bytes() for path in ours.rglob("*") if path.is_file()
    }


def test_no_tar_is_read_for_them(ours: Path, tmp_path: Path) -> None:
    place = shutil.copytree(ours, tmp_path / "place")
    for path in [*tars(place), *place.glob("*.idx")]:
        path.unlink()
    sidecars(place, ["energon", "wids", "dali"])
    assert all((place / path.name).read_bytes() == path.read_bytes() for path in ours.glob("*.idx"))


def test_what_a_reader_can_not_have_is_one_line(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--for: expected some of energon, wids, dali, found spark"):
        sidecars(ours, ["energon", "spark"])
    again = tmp_path / "again"
    for name in ("00000.tar", "00001.tar"):
        by_webdataset(again / name, img2dataset_rows(0, 2))
    foreign.index(again)
    with pytest.raises(RequestError, match="energon: expected keys that occur once in the data set, found one again: 000000000"):
        sidecars(again, ["energon"])
    long = tmp_path / "long"
    long.mkdir()
    (long / "a.tar").write_bytes(any_tar([(f"{'k' * 120}.jpg", picture()), (f"{'k' * 120}.txt", b"x")], tarfile.PAX_FORMAT))
    foreign.index(long)
    with pytest.raises(RequestError, match=r"wids: a\.tar: expected names of at most 100 bytes"):
        sidecars(long, ["wids"])


Files = dict[str, dict[str, str]]  # sha256 by suffix, by key


def stored(place: Path) -> Files:
    """What is in the tars."""
    return {sample.key: sample.files for path in tars(place) for sample in seen(path)[0]}


def through(python: Path | str, wanted: dict[Path, dict[str, Files]]) -> dict[Path, dict[str, Files]]:
    """What each reader gives of each place; one process for all, because importing them costs more than reading."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    arguments = [f"{place}={','.join(readers)}" for place, readers in wanted.items()]
    ran = subprocess.run([python, READERS, *arguments], capture_output=True, text=True, timeout=240, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found: dict[Path, dict[str, Files]] = {}
    for line in ran.stdout.splitlines():
        if line.startswith("ROW "):
            place, reader, key, files = json.loads(line[4:])
            rows = found.setdefault(Path(place), {}).setdefault(reader, {})
            assert key not in rows
            rows[key] = files
    return found


def test_webdataset_wids_and_hf_datasets_read_every_record(ours: Path, indexed: Path) -> None:
    pictures = {key: {suffix: digest for suffix, digest in files.items() if suffix != "json"} for key, files in stored(ours).items()}
    wanted = {
        ours: {"webdataset": stored(ours), "wids": stored(ours), "datasets": pictures},
        indexed: {"webdataset": stored(indexed), "wids": stored(indexed)},
    }
    assert through(sys.executable, wanted) == wanted


def test_energon_and_the_newest_of_the_others_read_every_record(ours: Path, indexed: Path, root: Path) -> None:
    """The sidecars are held to energon's format above in any case."""
    python = root / PEERS / "bin" / "python"
    if not python.exists():
        pytest.skip("no megatron-energon: make bench-peers makes its environment")
    records = {key: files for key, files in stored(indexed).items() if key not in ("000000000", "000000003")}
    wanted = {
        place: {"webdataset": stored(place), "wids": stored(place), "energon": given, "energon_by_key": stored(place)}
        for place, given in ((ours, stored(ours)), (indexed, records))
    }
    assert through(python, wanted) == wanted
