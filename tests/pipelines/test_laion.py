"""img2dataset's output, quirk by quirk."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.check import check
from pipelines.laion import Laion
from pipelines.source import Sample
from schemas import Reject, SourceError, validate

KEY = "000000-00000000"
SIZE = {"width": 32, "height": 24, "original_width": 640, "original_height": 480}


def success(key: str, caption: str | None = "a bus", **fields: Any) -> dict[str, Any]:
    """A row of the parquet."""
    said = {"caption": caption, "url": f"http://x/{key}.jpg", "key": key, "status": "success", "error_message": None}
    return {**said, **SIZE, "exif": "{}", "sha256": "00" * 32, **fields}


def failure(key: str, status: str = "failed_to_download", message: str = "HTTP Error 404:\nNot Found") -> dict[str, Any]:
    return {**success(key), "status": status, "error_message": message, **dict.fromkeys(SIZE), "exif": None, "sha256": None}


class Output:
    """An img2dataset output folder in the making."""

    def __init__(self, folder: Path, photo: Callable[..., bytes]) -> None:
        self.folder, self.photo = folder, photo
        folder.mkdir()

    def shard(self, number: int, rows: Sequence[dict[str, Any]], members: dict[str, bytes] | None = None, *, stats: bool = True) -> Path:
        """Write a shard; members in the order given, by default those of the rows that succeeded, backwards. Its tar."""
        name = f"{number:05d}"
        done = [row for row in rows if row["status"] == "success"]
        if members is None:
            members = {file: data for row in reversed(done) for file, data in self.members(row).items()}
        pq.write_table(pa.Table.from_pylist(list(rows)), self.folder / f"{name}.parquet")
        if stats:
            (self.folder / f"{name}_stats.json").write_text(json.dumps({"count": len(rows), "successes": len(done)}))
        return write_tar(self.folder / f"{name}.tar", members)

    def members(self, row: dict[str, Any]) -> dict[str, bytes]:
        key = row["key"]
        text = {f"{key}.txt": (row["caption"] or "").encode()} if "caption" in row else {}
        return {f"{key}.jpg": self.photo(32, 24, int(key)), **text, f"{key}.json": b"{}"}

    def source(self, **options: Any) -> Laion:
        return Laion(annotations=(self.folder,), **options)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar as webdataset's writer makes it: a float mtime, and so a PAX header before every member."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1795232985.25
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def output(tmp_path: Path, photo: Callable[..., bytes]) -> Output:
    return Output(tmp_path / "output", photo)


def outcomes(source: Laion, limit: int | None = None) -> list[Sample | Reject]:
    """What each row becomes; every record is valid."""
    found: list[Sample | Reject] = []
    for unit in source.units(limit):
        for row in source.rows(unit):
            try:
                found.append(_validated(source.sample(row)))
            except Reject as reject:
                found.append(reject)
    return found


def _validated(sample: Sample) -> Sample:
    sample.record.key = KEY
    for index, image in enumerate(sample.record.images):
        image.member = f"{KEY}.{index}.{image.format}"
    validate(sample.record)
    return sample


def only(source: Laion) -> Sample:
    (sample,) = outcomes(source)
    if isinstance(sample, Reject):
        raise sample
    return sample


def reasons(source: Laion) -> list[str]:
    return [found.reason if isinstance(found, Reject) else "written" for found in outcomes(source)]


def test_a_row_becomes_its_picture_and_then_its_caption_untouched(output: Output, photo: Callable[..., bytes]) -> None:
    output.shard(0, [success("00007", " a bus \n")])

    sample = only(output.source())

    (turn,) = sample.record.turns
    assert turn.role == "text"
    assert [(part.image, part.text) for part in turn.parts] == [(0, None), (None, " a bus \n")]
    image = sample.record.images[0]
    assert (image.origin, image.width, image.height, image.similarity) == ("http://x/00007.jpg", 32, 24, None)
    assert sample.files == [photo(32, 24, 7)]
    expected = {"id": "00007", "url": "http://x/00007.jpg", "original_width": 640, "original_height": 480}
    assert json.loads(sample.record.meta) == expected
    assert not sample.counts


def test_every_row_finds_its_picture_whatever_the_order_of_the_members(output: Output, photo: Callable[..., bytes]) -> None:
    output.shard(0, [success("00002", "two"), success("00001", "one"), success("00003", "three")])

    found = outcomes(output.source())

    assert [sample.files[0] for sample in found if isinstance(sample, Sample)] == [photo(32, 24, seed) for seed in (2, 1, 3)]


def test_a_row_that_failed_is_a_reject_with_img2datasets_own_status(output: Output) -> None:
    output.shard(
        0, [success("00001"), failure("00002"), failure("00003", "failed_to_resize", "Image decoding error"), failure("00004", "?!")]
    )

    found = outcomes(output.source())

    assert reasons(output.source()) == ["written", "failed_to_download", "failed_to_resize", "status_unknown"]
    assert isinstance(found[1], Reject)
    assert found[1].detail == "HTTP Error 404: Not Found: http://x/00002.jpg"


def test_columns_of_laion_are_kept_where_they_have_a_place(output: Output) -> None:
    extra = {
        "similarity": 0.3125,
        "LANGUAGE": "en",
        "NSFW": "UNLIKELY",
        "punsafe": 0.5,
        "pwatermark": float("nan"),
        "LICENSE": "?",
        "hash": 9,
    }
    output.shard(0, [success("00001", **extra), success("00002", **extra | {"LANGUAGE": "nolang", "similarity": float("nan")})])

    first, second = outcomes(output.source())

    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert (first.record.language, first.record.images[0].similarity) == ("en", 0.3125)
    assert (second.record.language, second.record.images[0].similarity) == (None, None)
    meta = json.loads(first.record.meta)
    assert (meta["NSFW"], meta["punsafe"], meta["pwatermark"], meta["LICENSE"]) == ("UNLIKELY", 0.5, None, "?")
    assert not {"hash", "sha256", "exif"} & meta.keys()


def test_webp_and_png_members_are_pictures_too(output: Output, photo: Callable[..., bytes]) -> None:
    members = {"00001.webp": photo(32, 24, 1, "WEBP"), "00002.png": photo(32, 24, 2, "PNG")}
    output.shard(0, [success("00001"), success("00002")], members)

    assert [sample.record.images[0].format for sample in outcomes(output.source()) if isinstance(sample, Sample)] == ["webp", "png"]


def test_a_null_caption_is_looked_for_in_the_tar_and_may_be_nowhere(output: Output, photo: Callable[..., bytes]) -> None:
    pictures = {f"0000{n}.jpg": photo(32, 24, n) for n in (1, 2, 3)}
    output.shard(0, [success(f"0000{n}", None) for n in (1, 2, 3)], {**pictures, "00001.txt": "ein Bäcker".encode(), "00003.txt": b"\xff"})

    first, second, third = outcomes(output.source())

    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert isinstance(third, Reject)
    assert first.record.turns[0].text() == "ein Bäcker"
    assert [(part.image, part.text) for part in second.record.turns[0].parts] == [(0, None)]
    assert third.reason == "caption"


def test_a_success_that_the_tar_lacks_is_a_reject(output: Output, photo: Callable[..., bytes]) -> None:
    output.shard(0, [success("00001"), success("00002")], {"00001.jpg": photo(32, 24, 1)})

    assert reasons(output.source()) == ["written", "image_missing"]


def test_a_cut_tar_loses_rows_by_name_and_is_noted_once(output: Output) -> None:
    tar = output.shard(0, [success(f"0000{n}") for n in range(1, 6)])
    with tarfile.open(tar) as opened:
        members = [(member.name, member.offset_data) for member in opened]
    middle = dict(members)["00002.jpg"]
    tar.write_bytes(tar.read_bytes()[: middle + 100])

    found = outcomes(output.source())

    assert reasons(output.source()) == ["image_missing", "image_missing", "written", "written", "written"]
    assert [sample.counts for sample in found if isinstance(sample, Sample)] == [{("notes", "tar_cut"): 1}, {}, {}]
    assert isinstance(found[0], Reject)
    assert "00000.tar" in found[0].detail
    assert "cut off" in found[0].detail


@pytest.mark.parametrize("kept", [0, 100, 1536])
def test_a_tar_without_a_single_named_picture_is_an_error(output: Output, kept: int) -> None:
    tar = output.shard(0, [success("00001"), success("00002")])
    tar.write_bytes(tar.read_bytes()[:kept])

    with pytest.raises(SourceError, match=r"00000\.tar: expected 2 pictures that its parquet names, found none of them \(cut off: "):
        outcomes(output.source())


def test_pictures_that_no_row_names_are_noted(output: Output, photo: Callable[..., bytes]) -> None:
    pictures = {f"0000{n}.{suffix}": photo(32, 24, n) for n, suffix in ((1, "jpg"), (2, "jpg"), (3, "jpg"))}
    output.shard(0, [success("00001"), failure("00002")], {**pictures, "00001.png": b"x"})

    assert [sample.counts for sample in outcomes(output.source()) if isinstance(sample, Sample)] == [{("notes", "unnamed_picture"): 3}]


def test_a_shard_without_stats_or_with_others_is_noted(output: Output) -> None:
    output.shard(0, [success("00001")], stats=False)
    output.shard(1, [success("00001")])
    (output.folder / "00001_stats.json").write_text('{"count": 5, "successes": 5}')

    counts = [sample.counts for sample in outcomes(output.source()) if isinstance(sample, Sample)]

    assert counts == [{("notes", "no_stats"): 1}, {("notes", "stats_differ"): 1}]


@pytest.mark.parametrize("stats", [True, False])
def test_a_shard_that_failed_altogether_is_an_error(output: Output, stats: bool) -> None:
    output.shard(0, [success("00001")])
    output.shard(1, [failure("00101"), failure("00102", "failed_to_resize"), failure("00103")], stats=stats)

    with pytest.raises(
        SourceError, match=r"00001: expected at least one picture, .* all 3 rows failed \(failed_to_download 2, failed_to_resize 1"
    ):
        output.source().look(output.source().units(None), map)


@pytest.mark.parametrize(("gone", "beside"), [("00001.tar", "00001.parquet"), ("00001.parquet", "00001.tar")])
def test_half_a_shard_is_an_error(output: Output, gone: str, beside: str) -> None:
    output.shard(0, [success("00001")])
    output.shard(1, [success("00101")])
    (output.folder / gone).unlink()

    with pytest.raises(SourceError, match=rf"{gone}: expected it beside {beside}, found nothing"):
        output.source().units(None)


def test_strangers_in_the_folder_do_no_harm(output: Output) -> None:
    output.shard(0, [success("00001")])
    (output.folder / "sizes.json").write_text("{}")
    (output.folder / "_tmp").mkdir()
    (output.folder / "notes.tar").write_bytes(b"no tar")

    assert len(output.source().units(None)) == 1


def test_shards_come_in_order_of_name_and_a_limit_counts_rows(output: Output) -> None:
    for number in (2, 0, 1):
        output.shard(number, [success(f"{number:03d}0{row}") for row in range(4)])

    units = output.source().units(6)

    assert [(unit.stem.name, unit.rows) for unit in units] == [("00000", 4), ("00001", 2)]
    assert len(outcomes(output.source(), 6)) == 6
    assert not any(sample.counts for sample in outcomes(output.source(), 6) if isinstance(sample, Sample))


def test_a_key_that_comes_again_is_a_reject(output: Output) -> None:
    output.shard(0, [failure("00001"), success("00001"), success("00001", "another")])

    assert reasons(output.source()) == ["failed_to_download", "written", "duplicate_key"]


def test_a_picture_of_another_size_than_its_row_says_is_a_reject(output: Output) -> None:
    output.shard(0, [success("00001", width=33), success("00002", width=None, height=None)])

    assert reasons(output.source()) == ["size_differs", "written"]


def test_a_bad_picture_is_a_reject(output: Output, photo: Callable[..., bytes]) -> None:
    cut = photo(32, 24, 1)[:-200]
    output.shard(0, [success("00001"), success("00002")], {"00001.jpg": cut, "00002.jpg": photo(32, 24, 2)})

    assert reasons(output.source()) == ["image_truncated", "written"]


def test_a_picture_in_the_place_of_a_url_is_not_kept_in_meta(output: Output) -> None:
    output.shard(0, [success("00001", url="data:image/jpeg;base64," + "A" * 100_000)])

    sample = only(output.source())

    assert sample.record.images[0].origin is None
    assert "url" not in json.loads(sample.record.meta)
    assert sample.counts == {("mended", "meta_dropped"): 1}


def test_a_shard_without_captions_is_pictures_alone(output: Output) -> None:
    row = success("00001")
    del row["caption"]
    output.shard(0, [row])

    assert len(only(output.source()).record.turns[0].parts) == 1


def test_what_is_no_output_folder_is_an_error(tmp_path: Path, output: Output) -> None:
    (tmp_path / "rows.json").write_text("[]")
    pq.write_table(pa.table({"URL": ["http://x"], "TEXT": ["a"]}), output.folder / "00000.parquet")
    (output.folder / "00000.tar").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "train.jsonl").write_text("{}")

    for path, message in (
        (tmp_path / "nowhere", "expected a folder that img2dataset wrote, found No such file"),
        (tmp_path / "rows.json", "expected a folder that img2dataset wrote, found Not a directory"),
        (tmp_path / "empty", r"expected img2dataset's shards .* found train\.jsonl"),
        (output.folder, r"expected img2dataset's columns url, key and status, found URL \(string\), TEXT"),
    ):
        with pytest.raises(SourceError, match=message):
            Laion(annotations=(path,)).units(None)


def test_a_cut_parquet_is_an_error(output: Output) -> None:
    output.shard(0, [success("00001")])
    parquet = output.folder / "00000.parquet"
    parquet.write_bytes(parquet.read_bytes()[:-10])

    with pytest.raises(SourceError, match=r"00000\.parquet: expected a parquet file, found "):
        output.source().units(None)


def test_check_counts_members_of_the_tars(output: Output, photo: Callable[..., bytes]) -> None:
    pictures = {"00001.png": photo(32, 24, 1, "PNG"), "00009.jpg": photo(32, 24, 9), "00001.json": b"{}"}
    output.shard(0, [success("00001"), failure("00002"), success("00003")], pictures)

    found = check(output.source())

    assert (found["records"], found["image_references"], found["unreferenced_files"]) == (3, 2, 1)
    assert found["images"] == {"distinct": 2, "present": 1, "missing": 1, "other_suffix": 0}
    assert found["missing_by_folder"] == {"00000.tar": 1}
    assert found["examples"]["unreferenced"] == ["00000.tar/00009.jpg"]


def test_several_folders_are_one_input_whose_names_do_not_meet(tmp_path: Path, photo: Callable[..., bytes]) -> None:
    for name in ("one", "two"):
        Output(tmp_path / name, photo).shard(0, [success("00001", name)])
    source = Laion(annotations=(tmp_path / "one", tmp_path / "two"))

    assert [name for name, _ in source.names()] == ["one/00000.tar/00001.jpg", "two/00000.tar/00001.jpg"]
    assert [list(names) for names in source.references()] == [["one/00000.tar/00001.jpg"], ["two/00000.tar/00001.jpg"]]
    assert [row.file for unit in source.units(None) for row in source.rows(unit)] == ["one/00000.parquet", "two/00000.parquet"]


def test_the_source_its_units_and_its_rows_travel_to_workers(output: Output, photo: Callable[..., bytes]) -> None:
    output.shard(0, [success("00001")])
    source = output.source()
    units = source.units(None)

    source, (unit,) = pickle.loads(pickle.dumps((source, units)))
    (row,) = source.rows(unit)
    source.sample(row)

    assert source.sample(pickle.loads(pickle.dumps(row))).files == [photo(32, 24, 1)]
