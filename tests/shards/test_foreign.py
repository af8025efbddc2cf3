"""Tars made elsewhere, indexed in place: they get random access and are checked like ours, and nobody rewrites them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shards
from schemas import RequestError, ShardError
from shards import executor, foreign
from shards.check import check
from shards.place import at
from shards.sidecars import sidecars
from shards.stats import stats
from tests.ceph import S3
from tests.shards.foreign_tars import CAPTIONS, any_tar, by_webdataset, document, img2dataset, img2dataset_rows, openflamingo
from tests.shards.records import picture


def files(place: Path) -> dict[str, str]:
    """sha256 of every file, by name."""
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in place.rglob("*") if path.is_file()}


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "shards", *map(str, arguments)], capture_output=True, text=True, timeout=120, env=environment
    )


def test_img2dataset_s_tars_become_captioned_pictures(tmp_path: Path) -> None:
    place = img2dataset(tmp_path)
    made = foreign.index(place)
    assert made.problems == []
    assert made.manifest.layout == "img2dataset"
    assert made.manifest.totals == {"read": 8, "written": 8, "rejected": 0, "images": 8}
    data = shards.open(place)
    assert len(data) == 8
    for row, sample in enumerate(data.shards[0]):
        record = sample.record
        assert sample.key == record.key == f"000000-{row:08d}"
        assert [part.text for part in record.turns[0].parts] == [None, *([CAPTIONS[row]] if CAPTIONS[row] else [])]
        assert record.turns[0].role == "text"
        image = record.images[0]
        assert (image.width, image.height, image.format, image.origin) == (8 + row, 6, "jpg", f"https://example.org/00000{row:04d}.jpg")
        assert image.similarity == 0.25 + row / 100
        assert record.language == "en"
        assert bytes(sample.image(0)) == picture(8 + row, 6, seed=row)
        assert json.loads(record.meta) == {
            "id": f"00000{row:04d}",
            "url": image.origin,
            "original_width": 80,
            "original_height": 60,
        }
        assert json.loads(bytes(sample.member(f"00000{row:04d}.json")))["caption"] == CAPTIONS[row]


def test_records_are_found_by_number_and_by_key(tmp_path: Path) -> None:
    foreign.index(img2dataset(tmp_path))
    data = shards.open(tmp_path)
    assert json.loads(data[6].record.meta)["id"] == "000010001"
    assert data.get("000001-00000001").key == data[6].key
    with pytest.raises(KeyError):
        data.get("000001-00000003")


def test_openflamingo_s_documents_become_interleaved_records(tmp_path: Path) -> None:
    pictures = [picture(9, 5, seed=n) for n in range(3)]
    python_s = repr(document(pictures[2])["image_info"][0]["image_base64"].encode())  # what its script wrote before July 2023
    sequence = {"is_gpt": True, "example": "See _!_IMAGE1_!_ here.", "image_map": {"_!_IMAGE1_!_": {"base64_image": python_s}}}
    documents = [
        document(*pictures[:2], matched=[2, 0]),
        document(None, pictures[1]),
        document(python_s, matched=[9]),
        sequence,
        document(),
    ]
    openflamingo(tmp_path / "000000000.tar", documents)
    made = foreign.index(tmp_path)
    assert made.manifest.layout == "openflamingo-mmc4"
    assert made.manifest.images_dropped == {"image_missing": 1}
    records = [sample.record for sample in shards.open(tmp_path)]
    parts = [[part.image if part.text is None else part.text for part in record.turns[0].parts] for record in records]
    assert parts == [
        [1, "One. ", "Two. ", 0, "Three."],
        ["One. ", 0, "Two. ", "Three."],
        [0, "One. ", "Two. ", "Three."],
        ["See ", 0, " here."],
        ["One. ", "Two. ", "Three."],
    ]
    assert [image.similarity for image in records[0].images] == pytest.approx([0.12, 0.2])
    assert json.loads(records[2].meta)["unplaced"] == [0]
    sample = shards.open(tmp_path)[0]
    assert [bytes(sample.image(n)) for n in range(2)] == pictures[:2]
    with pytest.raises(IndexError):
        sample.image(2)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_tars_give_the_same_bytes_for_any_number_of_workers(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "WORTH", 1)  # bytes for which a process is begun
    once = img2dataset(tmp_path / "once", [2, 3, 1])
    foreign.index(once)
    other = img2dataset(tmp_path / "other", [2, 3, 1])
    for path in once.glob("*.tar"):
        (other / path.name).write_bytes(path.read_bytes())  # the writer states the time
    before = files(other)
    for _ in range(2):  # indexing again is harmless
        foreign.index(other, workers=workers)
    assert files(other) == files(once)
    assert before.items() <= files(other).items()


def test_img2dataset_s_own_parquet_and_other_files_are_left_alone(tmp_path: Path) -> None:
    place = img2dataset(tmp_path, [3])
    rows = pa.table({"key": ["a", "b", "c", "d"], "status": ["success", "success", "failed_to_download", "success"]})
    pq.write_table(rows, place / "00000.parquet")
    (place / "README.md").write_text("mine")
    before = files(place)
    assert foreign.index(place).problems == []
    assert before.items() <= files(place).items()
    assert set(files(place)) - set(before) == {"manifest.json", "_index/00000.parquet", "_index/rejects.parquet"}
    assert check(place, deep=True).ok


def test_what_is_no_record_is_counted_by_reason(tmp_path: Path) -> None:
    rows = img2dataset_rows(0, 8)
    rows[0]["jpg"] = b"<html>"
    rows[1]["jpg"] = rows[1]["jpg"][:40]
    rows[2]["json"] = b'{"width": 1, "height": 6}'
    rows[3]["json"] = b"[]"
    rows[4]["json"] = b"{"
    rows[5] = {"__key__": "00005", "txt": b"no picture"}
    rows[6]["json"] = b'{"similarity": NaN, "caption": null}'
    rows[6]["txt"] = b"from the txt"
    by_webdataset(tmp_path / "00000.tar", rows)
    members = [(f"{row['__key__']}.{name}", row[name]) for row in img2dataset_rows(1, 2) for name in ("jpg", "txt")]
    (tmp_path / "00001.tar").write_bytes(any_tar([*members[:2], members[1], *members[2:], ("caption", b"no key")]))
    made = foreign.index(tmp_path)
    assert made.problems == []
    assert made.manifest.totals == {"read": 10, "written": 3, "rejected": 7, "images": 3}
    assert made.manifest.rejected == {
        "duplicate_member": 1,
        "image_format": 1,
        "image_missing": 1,
        "image_truncated": 1,
        "json": 1,
        "schema": 1,
        "size_differs": 1,
    }
    data = shards.open(tmp_path)
    assert [sample.key for sample in data] == ["000000-00000006", "000000-00000007", "000001-00000001"]
    assert data[0].record.turns[0].text() == "from the txt"
    assert data[0].record.images[0].similarity is None
    assert check(tmp_path, deep=True).ok
    assert stats(tmp_path)["families"]["members_ignored"] == {"no_key": 1}
    ledger = pq.read_table(tmp_path / "_index" / "rejects.parquet").to_pylist()
    assert [(row["file"], row["row"], row["reason"]) for row in ledger[-2:]] == [
        ("00000.tar", 5, "image_missing"),
        ("00001.tar", 0, "duplicate_member"),
    ]


def damaged(path: Path, how: str) -> int:
    """Damage the third of five samples' header, or what is behind it; the offset."""
    data = bytearray(path.read_bytes())
    at = data.index(b"000000002.jpg\0") & ~511
    if how == "header bit":
        data[at + 125] ^= 1
    path.write_bytes(data[:at] if how == "cut at a header" else data[: at + 700] if how == "cut in a picture" else data)
    return at + 512 if how == "cut in a picture" else at


@pytest.mark.parametrize("how", ["header bit", "cut at a header", "cut in a picture"])
def test_a_damaged_tar_is_named_with_its_offset_and_the_others_are_indexed(how: str, tmp_path: Path) -> None:
    offset = damaged(img2dataset(tmp_path) / "00000.tar", how)
    made = foreign.index(tmp_path)
    assert [problem.shard for problem in made.problems] == ["00000.tar", "00000.tar"]
    assert f"byte {offset}" in made.problems[0].expected
    assert "whole samples stand before it" in made.problems[0].found
    assert made.problems[1].expected == "5, as 00000_stats.json says"
    assert [info.name for info in made.manifest.shards] == ["00001.tar"]
    assert [json.loads(sample.record.meta)["id"] for sample in shards.open(tmp_path)] == ["000010000", "000010001", "000010002"]
    assert [problem.what for problem in check(tmp_path).problems] == ["stranger"]


def test_the_command_names_damage_in_one_line_and_ends_with_1(tmp_path: Path) -> None:
    offset = damaged(img2dataset(tmp_path) / "00000.tar", "header bit")
    ran = command("index", tmp_path, "--workers", "2")
    assert ran.returncode == 1
    assert f"00000.tar: tar damaged: expected a tar header at byte {offset}" in ran.stdout
    assert "Traceback" not in ran.stderr
    found = json.loads(command("index", tmp_path, "--json").stdout)
    assert (found["layout"], found["records"], found["shards"]) == ("img2dataset", 3, 1)
    assert [problem["shard"] for problem in found["problems"]] == ["00000.tar", "00000.tar"]


def test_the_commands_see_an_indexed_place_as_one_of_ours(tmp_path: Path) -> None:
    img2dataset(tmp_path)
    ran = command("index", tmp_path)
    assert (ran.returncode, ran.stdout.splitlines()[0]) == (0, "img2dataset: 8 records, 8 pictures in 2 tars")
    assert command("check", tmp_path, "--deep").stdout == "sound: 8 records, 8 pictures, every one decoded\n"
    shown = command("show", tmp_path, "--key", "000000-00000001").stdout
    assert "text: [image 0]zwei Züge" in shown
    assert stats(tmp_path)["sources"]["img2dataset"]["records"] == 8


def test_a_count_that_differs_from_img2dataset_s_own_is_a_problem(tmp_path: Path) -> None:
    place = img2dataset(tmp_path, [3, 3, 3])
    (place / "00000_stats.json").write_text('{"successes": 4}')
    (place / "00001_stats.json").write_text("{")
    pq.write_table(pa.table({"status": ["success"] * 2}), place / "00002.parquet")
    made = foreign.index(place)
    assert [(problem.shard, problem.what, problem.expected[:30], problem.found[:5]) for problem in made.problems] == [
        ("00000.tar", "samples", "4, as 00000_stats.json says", "3"),
        ("00001.tar", "00001_stats.json unreadable", "img2dataset's", "Input"),
        ("00002.tar", "samples", "2, as 00002.parquet says", "3"),
    ]
    assert len(shards.open(place)) == 9


def test_a_tar_that_was_altered_after_it_was_indexed_is_a_named_error(tmp_path: Path) -> None:
    foreign.index(img2dataset(tmp_path))
    path = tmp_path / "00000.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"000000001.jpg\0") + 600] ^= 1
    path.write_bytes(data)
    place = shards.open(tmp_path)
    assert place[0].record.images
    with pytest.raises(ShardError, match=r"00000\.tar 000000-00000001: record altered"):
        place[1].record  # noqa: B018
    assert [problem.shard for problem in check(tmp_path, deep=True).problems] == ["00000.tar", "00000.tar"]
    path.write_bytes(data[:-512])
    with pytest.raises(ShardError, match="shard size"):
        shards.open(tmp_path)[0].record  # noqa: B018


def test_tars_that_hold_no_record_are_named_and_not_indexed(tmp_path: Path) -> None:
    img2dataset(tmp_path, [2])
    (tmp_path / "00001.tar").write_bytes(any_tar([]))
    (tmp_path / "00002.tar").write_bytes(b"")
    by_webdataset(tmp_path / "00003.tar", [{"__key__": "a", "txt": b"x"}])
    (tmp_path / "0 4.tar").write_bytes(any_tar([]))
    made = foreign.index(tmp_path)
    assert [(problem.shard, problem.what) for problem in made.problems] == [
        ("0 4.tar", "tar name"),
        ("00001.tar", "records"),
        ("00002.tar", "tar damaged"),
        ("00003.tar", "records"),
    ]
    assert made.manifest.totals == {"read": 3, "written": 2, "rejected": 1, "images": 2}


def test_hostile_names_are_only_names(tmp_path: Path) -> None:
    rows = [
        ("../../etc/x.jpg", picture(seed=1)),
        ("../../etc/x.txt", b"out"),
        ("/absolute/y.jpg", picture(seed=2)),
        ("/absolute/y.txt", b"abs"),
    ]
    (tmp_path / "a.tar").write_bytes(any_tar(rows))
    foreign.index(tmp_path)
    found = {json.loads(sample.record.meta)["id"]: sample.record.turns[0].text() for sample in shards.open(tmp_path)}
    assert found == {"../../etc/x": "out", "/absolute/y": "abs"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_index", "a.tar", "manifest.json"]


def test_wrong_requests_are_one_line(tmp_path: Path, written: Path) -> None:
    with pytest.raises(RequestError, match="expected tars to index, found none"):
        foreign.index(tmp_path)
    (tmp_path / "a.tar").write_bytes(any_tar([("a.cls", b"7"), ("a.npy", b"x")]))
    with pytest.raises(RequestError, match="found a sample of cls, npy"):
        foreign.index(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"<html>" * 200)
    with pytest.raises(RequestError, match=r"found no sample in any tar \(a\.tar: expected a tar header at byte 0, "):
        foreign.index(tmp_path)
    with pytest.raises(RequestError, match="--layout: expected auto or one of img2dataset, openflamingo-mmc4, found 'x'"):
        foreign.index(tmp_path, layout="x")
    with pytest.raises(RequestError, match="found a finished data set"):
        foreign.index(written)
    (tmp_path / "manifest.json").write_text('{"mine": 1}')
    with pytest.raises(RequestError, match="found another"):
        foreign.index(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == '{"mine": 1}'


def test_tars_in_a_bucket_are_indexed_read_and_given_sidecars(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name, value in {**s3.environment, "HOME": str(tmp_path_factory.mktemp("home"))}.items():
        monkeypatch.setenv(name, value)
    bucket = f"{s3.bucket()}/laion"
    for path in img2dataset(tmp_path, [3, 2]).iterdir():
        at(bucket).upload(path.name, path)
    made = foreign.index(bucket, workers=2)
    assert (made.problems, made.manifest) == ([], foreign.index(tmp_path).manifest)
    with shards.open(bucket) as data:
        assert [sample.record for sample in data] == [sample.record for sample in shards.open(tmp_path)]
        assert bytes(data[4].image(0)) == picture(9, 6, seed=101)
    assert "00001.tar.idx" in sidecars(bucket, ["energon", "wids"])
    assert json.loads(at(bucket).read(".nv-meta/.info.json"))["shard_counts"] == {"00000.tar": 3, "00001.tar": 2}
    (damage, *_) = foreign.index(_cut(bucket)).problems
    assert (damage.shard, damage.what) == ("00000.tar", "tar damaged")


def _cut(bucket: str) -> str:
    at(bucket).write("00000.tar", at(bucket).read("00000.tar")[:3000])
    return bucket


DIES = """
import os, signal, sys
from shards import durable, foreign

real = durable.publish

def publish(path):
    if path.name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    real(path)

durable.publish = publish
foreign.index(sys.argv[1])
"""


@pytest.mark.parametrize("last", ["00001.parquet", "rejects.parquet", "manifest.json"])
def test_an_indexing_that_was_killed_is_done_again_to_the_same_bytes(last: str, tmp_path: Path) -> None:
    place, once = img2dataset(tmp_path / "place", [2, 3]), tmp_path / "once"
    shutil.copytree(place, once)
    foreign.index(once)
    killed = subprocess.run([sys.executable, "-c", DIES, place, last], capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not (place / "manifest.json").exists()
    with pytest.raises(RequestError, match="expected a finished data set, found no manifest"):
        shards.open(place)
    foreign.index(place)
    assert files(place) == files(once)  # and nothing that was half written is left
