"""Pictures that break readers, each as a LLaVA row: every file is a record or a reject, and Pillow says which."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.conformance.commands import Conversion, Stored, converted
from tests.conformance.oracle import Folder, Item, Sample, compare, compare_counts, looked_at
from tests.conformance.raw_llava import item

FOLDERS = ("hard_images", "more_images")


@pytest.fixture(scope="module", params=FOLDERS)
def pictures(request: pytest.FixtureRequest, data: Path) -> Folder:
    """Every file of the folder but the table that describes them."""
    root = data / request.param
    if not root.is_dir():
        pytest.skip(f"no upstream samples: {data} has no {request.param}")
    return Folder(root)


@pytest.fixture(scope="module")
def rows(pictures: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An annotation file with a row for every picture."""
    said = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A picture."}]
    named = [name for name in pictures.names if not name.endswith(".tsv")]
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps([{"id": name, "image": name, "conversations": said} for name in named]))
    return path


@pytest.fixture(scope="module")
def decoded(pictures: Folder, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Converted with --verify decode."""
    items = [item(rows.name, number, row, pictures) for number, row in enumerate(json.loads(rows.read_bytes()))]
    return Sample(convert(pictures, rows, tmp_path_factory.mktemp("decode"), "decode"), items, [pictures])


@pytest.fixture(scope="module")
def measured(pictures: Folder, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """Converted with --verify header."""
    return convert(pictures, rows, tmp_path_factory.mktemp("header"), "header")


def convert(pictures: Folder, rows: Path, work: Path, verify: str) -> Conversion:
    return converted("llava", ["--annotations", rows, "--images", pictures.root], work / "out", verify=verify)


def by_name(conversion: Conversion) -> dict[str, Stored]:
    """Records by the file that they came from."""
    return {json.loads(stored.record["meta"])["id"]: stored for stored in conversion.records.values()}


def test_every_file_is_a_record_or_a_reject_and_pillow_says_which(decoded: Sample) -> None:
    compare(decoded.conversion, decoded.items)


def test_check_counts_them(decoded: Sample) -> None:
    compare_counts(decoded.conversion, decoded.items, *decoded.pictures)
    assert decoded.conversion.counted["images"]["missing"] == 0


def test_the_ledger_names_what_pillow_refuses(decoded: Sample) -> None:
    refused: list[Item] = [one for one in decoded.items if one.expected is None]
    reasons = {row["row"]: row["reason"] for row in decoded.conversion.rejects.values()}

    assert reasons.keys() == {one.row for one in refused}
    assert all(reason.startswith("image_") for reason in reasons.values())


def test_headers_alone_let_everything_pass_that_can_be_decoded(decoded: Sample, measured: Conversion) -> None:
    read, passed = by_name(decoded.conversion), by_name(measured)

    assert passed.keys() >= read.keys()
    assert len(passed) + len(measured.rejects) == len(decoded.items)
    for name, stored in read.items():
        assert stored.record["images"] == passed[name].record["images"]
        assert stored.files == passed[name].files


def test_headers_alone_still_store_the_file_s_own_bytes(pictures: Folder, measured: Conversion) -> None:
    for name, stored in by_name(measured).items():
        (data,) = stored.files.values()
        assert hashlib.sha256(data).digest() == hashlib.sha256((pictures.root / name).read_bytes()).digest()


def test_sizes_are_those_of_the_stored_pixels(measured: Conversion) -> None:
    for stored in measured.records.values():
        (image,), (data,) = stored.record["images"], stored.files.values()
        picture = looked_at(data)
        if picture is not None:
            assert (image["format"], image["width"], image["height"]) == picture[1:]


def test_a_deep_check_finds_nothing_wrong_with_what_was_decoded(decoded: Sample) -> None:
    assert decoded.conversion.verdict["problems"] == []
    assert decoded.conversion.verdict_status == 0
