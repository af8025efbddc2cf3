"""What lies on disk, told by readers that are none of ours: tarfile, GNU tar, pyarrow, hashlib, zlib, xxhash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

import shards
from schemas import RecordError, Reject, RequestError, record
from schemas.record import decode, encode
from shards.check import check
from shards.manifest import ShardInfo
from shards.writer import UnitWriter
from tests.shards.records import Item, captioned, everything, items, picture, several


def manifest(place: Path) -> dict[str, Any]:
    return json.loads((place / "manifest.json").read_bytes())


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_data_set_is_these_files(written: Path) -> None:
    tars = [f"000000-00{n}" for n in range(len(manifest(written)["shards"]))]

    assert len(tars) >= 2
    expected = [f"{tar}.{suffix}" for tar in tars for suffix in ("parquet", "tar")]
    assert names(written) == sorted(["README.md", "_units", *expected, "manifest.json", "rejects.parquet", "run.json"])
    assert names(written / "_units") == ["000000.json"]


def test_members_are_plain_ustar_in_order_and_the_json_is_last(written: Path) -> None:
    with tarfile.open(written / "000000-000.tar", "r:") as tar:
        members = tar.getmembers()

    assert [member.name for member in members][:5] == [
        "000000-00000000.0.jpg",
        "000000-00000000.1.png",
        "000000-00000000.0.parts.png",
        "000000-00000000.0.panoptic.png",
        "000000-00000000.json",
    ]
    assert [member.name for member in members][5:7] == ["000000-00000001.0.jpg", "000000-00000001.json"]
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) == (0, 0, 0, "", "", 0o444)
        assert member.isreg()
        assert not member.pax_headers


def test_the_bytes_are_those_that_gnu_tar_writes(tmp_path: Path) -> None:
    item = captioned("x")
    shards.write(tmp_path / "out", [item])

    files = {"000000-00000000.0.jpg": item.files[0], "000000-00000000.json": encode(item.record)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    flags = ["--format=ustar", "--numeric-owner", "--owner=0", "--group=0", "--mtime=@0", "--mode=0444", "-b1"]
    theirs = subprocess.run(["tar", *flags, "-C", tmp_path, "-cf", "-", *files], capture_output=True, check=True).stdout

    assert (tmp_path / "out/000000-000.tar").read_bytes() == theirs


def test_gnu_tar_lists_the_same(written: Path) -> None:
    listed = subprocess.run(["tar", "--utc", "-tvf", written / "000000-001.tar"], capture_output=True, text=True, check=True).stdout

    lines = [re.split(r"\s+", line) for line in listed.splitlines()]
    with tarfile.open(written / "000000-001.tar") as tar:
        expected = [[str(member.size), member.name] for member in tar]
    assert [[line[2], line[-1]] for line in lines] == expected
    assert {(line[0], line[1], line[3]) for line in lines} == {("-r--r--r--", "0/0", "1970-01-01")}


def test_pictures_are_upstreams_bytes(tmp_path: Path) -> None:
    given = list(several(3))
    shards.write(tmp_path / "out", given)

    with tarfile.open(tmp_path / "out/000000-000.tar") as tar:
        found = [member.read() for name in tar.getnames() if name.endswith(".jpg") and (member := tar.extractfile(name))]
    assert found == [item.files[0] for item in given]


def test_a_shard_is_cut_before_the_record_that_would_exceed_its_bytes(tmp_path: Path) -> None:
    # A record takes 512 + 1024 for its picture and 512 + 512 for its JSON, a tar 1024 at its end: three make 8704.
    assert all(512 < len(item.files[0]) <= 1024 for item in several(7))

    for shard_bytes, cut in ((8704, [3, 3, 1]), (8703, [2, 2, 2, 1]), (1024, [1] * 7), (1 << 30, [7])):
        made = shards.write(tmp_path / str(shard_bytes), several(7), shard_bytes=shard_bytes)
        assert [shard.records for shard in made.shards] == cut
        assert [shard.bytes for shard in made.shards] == [1024 + 2560 * n for n in cut]


def test_hashes_are_of_the_bytes_that_lie_there_whatever_their_size(tmp_path: Path) -> None:
    given = []
    for size in (5_000_001, 1, 4_194_304, 4096, 4097, 9_999_999):  # more and less than is written, mapped or joined at once
        item = captioned()
        item.record.images[0].bytes = size
        given.append(item._replace(files=[bytes([size % 251]) * size]))

    made = shards.write(tmp_path, given, shard_bytes=12_000_000)

    assert [shard.records for shard in made.shards] == [5, 1]
    for shard in made.shards:
        data = (tmp_path / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    assert [bytes(sample.image(0)) for sample in shards.open(tmp_path)] == [item.files[0] for item in given]


def test_empty_shards_are_not_written(tmp_path: Path) -> None:
    made = shards.write(tmp_path / "none", [])
    assert made.totals == {"read": 0, "written": 0, "rejected": 0, "images": 0}

    refused = shards.write(tmp_path / "refused", [captioned(language="?")])
    assert refused.totals == {"read": 1, "written": 0, "rejected": 1, "images": 0}
    for name in ("none", "refused"):
        assert names(tmp_path / name) == ["README.md", "_units", "manifest.json", "rejects.parquet", "run.json"]
        assert len(shards.open(tmp_path / name)) == 0


def test_a_unit_that_ends_in_an_error_leaves_nothing_but_whole_shards(tmp_path: Path) -> None:
    def broken() -> None:
        with UnitWriter(tmp_path, 0, 4096) as writer:
            for row, item in enumerate(several(3)):
                writer.add(row, *item)
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        broken()

    whole = [f"000000-00{part}.{suffix}" for part in (0, 1) for suffix in ("parquet", "tar")]
    assert names(tmp_path) in (whole[:2], whole)  # the first, and the second if it was settled by then


def test_an_index_that_can_not_be_written_is_what_is_told(tmp_path: Path) -> None:
    (tmp_path / "000000-000.parquet").mkdir()

    def blocked() -> None:
        with UnitWriter(tmp_path, 0) as writer:
            writer.add(0, *captioned())
            writer.close()

    with pytest.raises(IsADirectoryError, match="parquet"):
        blocked()
    assert names(tmp_path) == ["000000-000.parquet"]


def test_more_shards_of_a_unit_than_a_name_has_digits_for_are_refused(tmp_path: Path) -> None:
    with UnitWriter(tmp_path, 0) as writer:
        writer.shards = [ShardInfo("000000-000.tar", 1, 1, 1, "", "")] * 1000

        with pytest.raises(RequestError, match="shard-bytes"):
            writer.add(0, *captioned())


@pytest.mark.parametrize(
    ("reason", "item"),
    [
        ("payloads", captioned()._replace(files=[])),
        ("payloads", captioned()._replace(maps=[picture(format="png")])),
        ("image_bytes", captioned()._replace(files=[b"short"])),
        ("map_png", everything()._replace(maps=[b"", b""])),
        ("map_size", everything()._replace(maps=[picture(9, 6, 0, "png", "L"), picture(8, 6, 0, "png")])),
        ("map_size", everything()._replace(maps=[picture(8, 6, 0, "bmp"), picture(8, 6, 0, "png")])),
        ("map_encoding", everything()._replace(maps=[picture(8, 6, 0, "png"), picture(8, 6, 0, "png")])),
        ("text_unicode", captioned("\ud800")),
        ("types", captioned(7)),  # pyright: ignore[reportArgumentType] - what the test is about
        ("types", Item(record.record("s", turns=[record.turn("text", [record.text_part("x")])], meta={"a": 1}, language=7), [], [])),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_only_the_writer_can_see_has_a_reason_too(tmp_path: Path, reason: str, item: Item) -> None:
    with UnitWriter(tmp_path, 0) as writer, pytest.raises(RecordError) as caught:
        writer.add(0, *item)

    assert caught.value.reason == reason
    assert names(tmp_path) == []


@given(st.lists(items(), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_any_valid_record_survives_write_and_read_unchanged(tmp_path_factory: pytest.TempPathFactory, given: list[Item]) -> None:
    place = tmp_path_factory.mktemp("any")
    made = shards.write(place, given, shard_bytes=8192)
    assert made.totals["written"] == len(given), made.rejected

    for sample, item in zip(shards.open(place), given, strict=True):
        assert sample.record == item.record
        assert [bytes(sample.image(n)) for n in range(len(item.files))] == item.files
        assert [bytes(sample.map(n)) for n in range(len(item.maps))] == item.maps
        stored = bytes(sample.member(f"{sample.key}.json"))
        assert encode(decode(stored)) == stored
    assert check(place, deep=True).problems == []


def test_whole_numbers_become_floats_where_the_record_says_so(tmp_path: Path) -> None:
    item = captioned(regions=[record.region("r", 0, box=[0, 1, 2, 3])])
    shards.write(tmp_path, [item])

    stored = bytes(shards.open(tmp_path)[0].member("000000-00000000.json"))

    assert b'"box":[0.0,1.0,2.0,3.0]' in stored
    assert encode(decode(stored)) == stored


def test_records_that_were_read_can_be_written_again(tmp_path: Path) -> None:
    first = shards.write(tmp_path / "a", [everything(), *several(3)])

    again = shards.write(
        tmp_path / "b",
        (
            (
                sample.record,
                [sample.image(n) for n in range(len(sample.record.images))],
                [sample.map(n) for n in range(len(sample.record.maps))],
            )
            for sample in shards.open(tmp_path / "a")
        ),
    )

    assert again.fingerprint == first.fingerprint


def test_the_index_says_where_everything_is_and_what_it_hashes_to(written: Path) -> None:
    place = written
    for shard in manifest(place)["shards"]:
        tar = (place / shard["name"]).read_bytes()
        table = pq.read_table(place / shard["name"].replace(".tar", ".parquet"))
        assert table.schema.metadata[b"tar_bytes"] == str(len(tar)).encode()
        assert table.schema.metadata[b"tar_sha256"] == hashlib.sha256(tar).hexdigest().encode()
        with tarfile.open(place / shard["name"]) as opened:
            members = {member.name: (member.offset_data, member.size) for member in opened}
        listed = {}
        end = 0
        for row in table.to_pylist():
            assert row["offset"] == end
            end = row["offset"] + row["length"]
            assert row["crc32"] == zlib.crc32(tar[row["offset"] : end])
            names = [member["name"] for member in row["members"]]
            assert names[-1] == row["key"] + ".json"
            assert all(name.startswith(row["key"] + ".") for name in names)
            listed |= {member["name"]: (member["offset"], member["size"]) for member in row["members"]}
            for image, name in zip(row["images"], names, strict=False):
                start, size = members[name]
                assert image["xxh3"] == xxhash.xxh3_128(tar[start : start + size]).digest()
                assert image["bytes"] == size
        assert listed == members
        assert end == len(tar) - 1024


def test_a_rows_other_columns_by_hand(written: Path) -> None:
    first, second = pq.read_table(written / "000000-000.parquet").to_pylist()[:2]

    assert (first["key"], first["source"], first["source_id"], first["regions"]) == ("000000-00000000", "made", "7", 2)
    assert first["text_length"] == len("a dog runs") + len("two")
    assert [(image["width"], image["height"], image["similarity"]) for image in first["images"]] == [(8, 6, 0.25), (5, 4, None)]
    assert (second["key"], second["source_id"], second["text_length"], second["regions"]) == ("000000-00000001", "id0", 9, 0)


def test_rejects_are_a_table_of_where_and_why(written: Path) -> None:
    rows = pq.read_table(written / "rejects.parquet").to_pylist()

    assert [(row["file"], row["row"], row["key"], row["reason"]) for row in rows] == [
        ("made", 3, "000000-00000003", "language"),
        ("made", 4, "000000-00000004", "text_unicode"),
    ]
    assert "not a language" in rows[0]["detail"]


def test_the_manifest_adds_up_and_knows_every_hash(written: Path) -> None:
    found = manifest(written)

    assert list(found)[:6] == ["format", "source", "options", "inputs", "versions", "shards"]
    assert (found["format"], found["source"], found["options"]["shard_bytes"]) == (1, "made", 14_336)
    assert found["totals"] == {"read": 9, "written": 7, "rejected": 2, "images": 8}
    assert (found["rejected"], found["images_dropped"], found["regions_dropped"]) == ({"language": 1, "text_unicode": 1}, {}, {})
    assert set(found["versions"]) >= {"pyarrow", "pillow"}
    for shard in found["shards"]:
        assert list(shard) == ["name", "records", "images", "bytes", "sha256", "index_sha256"]
        tar, index = written / shard["name"], written / shard["name"].replace(".tar", ".parquet")
        assert shard["sha256"] == hashlib.sha256(tar.read_bytes()).hexdigest()
        assert shard["index_sha256"] == hashlib.sha256(index.read_bytes()).hexdigest()
        assert shard["bytes"] == tar.stat().st_size
    assert sum(shard["records"] for shard in found["shards"]) == 7
    assert sum(shard["images"] for shard in found["shards"]) == 8
    assert found["rejects"] == {"rows": 2, "sha256": hashlib.sha256((written / "rejects.parquet").read_bytes()).hexdigest()}


def test_the_manifests_own_hash_is_of_its_bytes_with_the_64_digits_set_to_0(written: Path) -> None:
    data = (written / "manifest.json").read_bytes()
    stated = json.loads(data)["manifest_sha256"]

    assert len(stated) == 64
    assert data.count(stated.encode()) == 1
    assert hashlib.sha256(data.replace(stated.encode(), b"0" * 64)).hexdigest() == stated


def test_the_datas_fingerprint_is_of_the_shards_alone(written: Path, tmp_path: Path) -> None:
    found = manifest(written)
    rows = [[shard[name] for name in ("name", "records", "bytes", "sha256", "index_sha256")] for shard in found["shards"]]
    assert found["fingerprint"] == hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    assert shards.write(tmp_path / "a", several(2)).fingerprint == shards.write(tmp_path / "b", several(2), source="b").fingerprint
    assert shards.write(tmp_path / "c", several(3)).fingerprint != shards.write(tmp_path / "d", several(2)).fingerprint


def test_the_dataset_card_names_the_tars_and_every_suffix(written: Path) -> None:
    text = (written / "README.md").read_text()

    header = text.split("---\n")[1]
    assert "path: '*.tar'" in header
    features = re.findall(r"^  - name: (\S+)$", header, re.M)
    assert features == ["__key__", "__url__", "json", "0.jpg", "0.panoptic.png", "0.parts.png", "1.png"]
    assert re.findall(r"^    - name: (\S+)$", header, re.M) == list(everything().record.__struct_fields__)


FORKED = """
import os, sys
import shards
from tests.shards.records import several

shards.write(sys.argv[1] + "/parent", several(40), shard_bytes=8 << 10)
child = os.fork()
if child == 0:
    shards.write(sys.argv[1] + "/child", several(40), shard_bytes=8 << 10)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_of_a_process_that_has_written_may_write(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", FORKED, str(tmp_path)], start_new_session=True) as process:
        try:
            assert process.wait(60) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    assert manifest(tmp_path / "child")["fingerprint"] == manifest(tmp_path / "parent")["fingerprint"]


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shards.write(tmp_path / name, [everything(), *several(5)], shard_bytes=8192)

    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


def test_a_place_that_holds_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")

    with pytest.raises(RequestError, match=r"thesis\.tex"):
        shards.write(tmp_path, several(1))
    assert names(tmp_path) == ["thesis.tex"]


def test_a_finished_data_set_is_not_written_over(tmp_path: Path) -> None:
    first = shards.write(tmp_path, several(2))

    with pytest.raises(RequestError, match="finished"):
        shards.write(tmp_path, several(3))
    assert manifest(tmp_path)["fingerprint"] == first.fingerprint


def test_a_write_that_failed_may_be_made_again_with_other_records(tmp_path: Path) -> None:
    def failing() -> Iterator[Item]:
        yield from several(40)
        raise Reject("upstream", "gone")

    with pytest.raises(Reject):
        shards.write(tmp_path, failing(), shard_bytes=4096)
    assert not (tmp_path / "manifest.json").exists()
    assert list(tmp_path.glob("*.tar"))

    shards.write(tmp_path, several(2), shard_bytes=4096)
    assert check(tmp_path, deep=True).problems == []
    assert len(list(tmp_path.glob("*.tar"))) == 2


def test_files_of_a_run_that_was_killed_before_its_run_json_do_not_block(tmp_path: Path) -> None:
    (tmp_path / "_units").mkdir()
    (tmp_path / ".run.json.new.123.part").write_text("{")

    assert shards.write(tmp_path, several(1)).totals["written"] == 1
    assert not list(tmp_path.glob(".*"))


def test_a_file_url_is_a_directory(tmp_path: Path) -> None:
    shards.write(f"file://{tmp_path}/out", several(1))

    assert len(shards.open(f"file://{tmp_path}/out")) == 1
