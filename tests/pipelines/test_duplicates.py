"""Duplicates: of equal records and pictures the first one stays, wherever they stand and whoever looks for them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shards
from pipelines import duplicates
from pipelines.__main__ import main
from pipelines.curation import Curation
from pipelines.duplicates import RECORD, Lost, Search
from pipelines.source import Row, Sample
from schemas import Expression, Reject, Segment, record
from shards import run
from shards.executor import Local
from shards.place import at
from tests.pipelines import conversion
from tests.pipelines.conversion import ENVIRONMENT, KILLER, MEMORY, adds_up, files, key, laid, manifest, pictured
from tests.shards.records import everything, picture

ROWS = 130  # 44 units of 3, the last of one


@pytest.fixture(scope="module")
def upstream(ground: Path) -> Path:
    """LLaVA rows of a picture each, all different but for those that are named here."""
    rows, images = pictured(ground / "upstream", ROWS)
    shutil.copy(images / "1.jpg", images / "copy.jpg")
    rows[4] = {**rows[1], "id": "other", "image": "copy.jpg"}  # says what row 1 says, in another unit, from another file
    rows[5]["image"] = "copy.jpg"  # row 1's picture and another text
    rows[10]["conversations"][1]["from"] = "nobody"  # refused, so that it takes nothing away from row 11
    rows[11]["image"] = "10.jpg"
    rows[31] = {**rows[30], "id": 31}  # the same in the same unit
    rows[50] = {**several("50.jpg", "1.jpg", "51.jpg"), "id": 50}
    rows[51]["image"] = "gone.jpg"
    rows[60] = {**several("1.jpg", "copy.jpg"), "id": 60}
    rows[70] = {"id": 70, "conversations": [{"from": "human", "value": "Who?"}]}
    rows[71] = {**rows[70], "id": 71}
    rows[100] = {**rows[4], "id": 100}
    return laid(ground / "upstream", rows)


def several(*names: str) -> dict[str, Any]:
    return {"image": list(names), "conversations": [{"from": "human", "value": "Look: " + "<image> and ".join(["", *names])}]}


def arguments(upstream: Path, out: Path, *more: object) -> list[str]:
    return conversion.arguments(upstream, out, "--max-reject-rate", 1, *more)


def rejects(place: Path) -> dict[int, tuple[str, str]]:
    """Reason and detail by row."""
    return {found["row"]: (found["reason"], found["detail"]) for found in pq.read_table(place / "rejects.parquet").to_pylist()}


SAME = f"expected another content than record {key(1)}, found the same"
RECORDS = {
    4: ("duplicate_record", SAME),
    31: ("duplicate_record", f"expected another content than record {key(30)}, found the same"),
    71: ("duplicate_record", f"expected another content than record {key(70)}, found the same"),
    100: ("duplicate_record", SAME),
}
TAKEN = ("duplicate_image", f"expected a picture that no earlier record has, found that of record {key(1)}")


@pytest.fixture(scope="module")
def records(upstream: Path, ground: Path) -> Path:
    assert main(arguments(upstream, ground / "records", "--workers", 1, "--duplicates", "records")) == 0
    return ground / "records"


@pytest.fixture(scope="module")
def images(upstream: Path, ground: Path) -> Path:
    assert main(arguments(upstream, ground / "images", "--workers", 1, "--duplicates", "images")) == 0
    return ground / "images"


def test_a_record_that_says_what_an_earlier_one_says_is_a_reject_that_names_it(records: Path) -> None:
    adds_up(records)

    assert {row: found for row, found in rejects(records).items() if row not in (10, 51)} == RECORDS
    assert manifest(records)["rejected"] == {"duplicate_record": 4, "image_missing": 1, "role": 1}
    assert manifest(records)["images_dropped"] == {}
    assert manifest(records)["options"]["duplicates"] == "records"


def test_a_picture_that_an_earlier_record_has_is_dropped_and_a_record_with_no_other_is_a_reject(images: Path) -> None:
    adds_up(images)

    assert {row: found for row, found in rejects(images).items() if row not in (10, 51)} == {**RECORDS, 5: TAKEN, 60: TAKEN}
    assert manifest(images)["rejected"] == {"duplicate_image": 2, "duplicate_record": 4, "image_missing": 1, "role": 1}
    assert manifest(images)["images_dropped"] == {"duplicate_image": 1}
    found = shards.open(images).get(key(50)).record
    assert [image.origin for image in found.images] == ["50.jpg", "51.jpg"]
    assert [part.text if part.image is None else part.image for part in found.turns[0].parts] == [
        "Look: ",
        0,
        " and 50.jpg",
        " and 1.jpg",
        1,
        " and 51.jpg",
    ]


def test_no_picture_is_lost_altogether_and_none_is_left_twice(records: Path, images: Path) -> None:
    def pictures(place: Path) -> list[bytes]:
        return [bytes(sample.image(n)) for sample in shards.open(place) for n in range(len(sample.record.images))]

    left = pictures(images)

    assert len(left) == len(set(left))
    assert set(left) == set(pictures(records))


def test_what_was_refused_for_another_reason_takes_nothing_away(images: Path) -> None:
    assert rejects(images)[10][0] == "role"
    assert shards.open(images).get(key(11)).record.images[0].origin == "10.jpg"


def test_without_the_flag_nothing_is_compared(upstream: Path, ground: Path) -> None:
    assert main(arguments(upstream, ground / "plain", "--workers", 1)) == 0

    found = manifest(ground / "plain")
    assert found["rejected"] == {"image_missing": 1, "role": 1}
    assert not {"duplicates", "shuffle"} & set(found["options"])


def test_a_picture_on_one_side_of_a_split_is_not_on_the_other(upstream: Path, images: Path, ground: Path) -> None:
    keys = []
    for side in ("train", "held-out"):
        split = ["--hold-out", 0.5, "--split", side]
        assert main(arguments(upstream, ground / side, "--workers", 1, "--duplicates", "images", *split)) == 0
        adds_up(ground / side)
        keys += [sample.key for sample in shards.open(ground / side)]

    assert sorted(keys) == [sample.key for sample in shards.open(images)]


@pytest.mark.parametrize("kind", ["records", "images"])
def test_two_workers_give_the_same_bytes(upstream: Path, ground: Path, kind: str, request: pytest.FixtureRequest) -> None:
    out = ground / f"two_{kind}"
    given = [sys.executable, "-m", "pipelines", *arguments(upstream, out, "--workers", 2, "--duplicates", kind)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)

    assert done.returncode == 0, done.stderr
    assert files(out) == files(request.getfixturevalue(kind))
    assert not (out / "_duplicates").exists()


def test_a_run_killed_at_10_moments_and_continued_gives_the_same_bytes(upstream: Path, images: Path, ground: Path) -> None:
    out = ground / "killed"
    given = [sys.executable, "-c", KILLER, str(out), "10", *arguments(upstream, out, "--workers", 1, "--duplicates", "images")]
    done = subprocess.run(given, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)

    assert done.returncode == 0, done.stderr
    for place in (out, *ground.glob("killed.*")):
        assert files(place) == files(images), place.name
        assert not (place / "_duplicates").exists()


def test_spills_that_are_there_are_not_made_again(upstream: Path, images: Path, ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, made = ground / "again", []
    spill = duplicates._Hashes.spill

    def counted(hashes: Any) -> bytes:
        made.append(hashes.read)
        if len(made) == 30:
            raise KeyboardInterrupt
        return spill(hashes)

    monkeypatch.setattr(duplicates._Hashes, "spill", counted)
    convert = arguments(upstream, out, "--workers", 1, "--duplicates", "images")
    assert main(convert) == 130
    assert main(convert) == 0

    assert len(made) == 44 + 1  # one was not finished
    assert files(out) == files(images)


def test_another_choice_is_another_run(upstream: Path, records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(upstream, records, "--duplicates", "images")) == 2
    assert "expected duplicates 'records' to go on, found 'images'" in capsys.readouterr().err


def test_a_wrong_choice_is_one_line(upstream: Path, ground: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(upstream, ground / "wrong", "--duplicates", "sounds"))

    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_a_record_says_is_its_pictures_text_regions_and_maps() -> None:
    def content(**changes: Any) -> bytes:
        item = everything()
        for name, value in changes.items():
            setattr(item.record, name, value)
        return duplicates._content(item.record, item.files, item.maps)

    assert content() == content(key="000001-00000002", source="other", meta='{"id":8}')
    changed = [
        content(language="de"),
        content(expressions=[Expression("the dog", ["r2"])]),
        content(regions=everything().record.regions[:1]),
        content(turns=[record.turn("user", [record.image_part(0)])]),
        duplicates._content(everything().record, everything().files[::-1], everything().maps),
        duplicates._content(everything().record, everything().files, everything().maps[::-1]),
    ]
    item = everything()
    item.record.maps[1].segments = [Segment(3, "cat", 7, False)]
    changed.append(duplicates._content(item.record, item.files, item.maps))
    assert len({content(), *changed}) == 8


@cache
def small(number: int) -> bytes:
    return picture(2, 2, number)


@dataclass(frozen=True, kw_only=True)
class Made:
    """Items are the numbers of their pictures and a text, or None: a reject."""

    name: ClassVar[str] = "made"
    items: list[tuple[list[int], str] | None] = field(default_factory=list)

    def rows(self, unit: range) -> Iterator[Row]:
        return (Row("made", number, self.items[number]) for number in unit)

    def sample(self, row: Row) -> Sample:
        if row.data is None:
            raise Reject("bad")
        numbers, text = row.data
        data = [small(number) for number in numbers]
        images = [record.image(width=2, height=2, format="jpg", bytes=len(one)) for one in data]
        said = record.turn("text", [*map(record.image_part, range(len(data))), record.text_part(text)])
        return Sample(record.record("made", images=images, turns=[said], meta={"id": row.number}), data)


Items = list[tuple[list[int], str] | None]


def expected(items: Items, units: list[range], kind: str) -> list[Lost]:
    """By the definition, one item after the other."""
    first: dict[object, str] = {}
    found: list[Lost] = []
    for number, unit in enumerate(units):
        found.append({})
        for index, item in enumerate(unit):
            if (said := items[item]) is None:
                continue
            hashes = [(tuple(said[0]), said[1]), *(said[0] if kind == "images" else ())]
            for place, one in enumerate(hashes, RECORD):
                winner = first.setdefault(one, mine := f"{number:06d}-{index:08d}#{place}")
                if winner != mine:
                    found[-1].setdefault(index, {})[place] = winner.partition("#")[0]
    return found


made = st.lists(st.none() | st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from("ab")), min_size=1, max_size=30)


@settings(max_examples=40)
@given(made, st.integers(1, 7), st.sampled_from(duplicates.KINDS), st.sampled_from([1000, 1 << 26]))
def test_of_any_items_in_any_units_the_first_stays_however_few_hashes_are_compared_at_a_time(
    items: Items, size: int, kind: str, together: int
) -> None:
    units = [range(start, min(start + size, len(items))) for start in range(0, len(items), size)]
    source: Any = Made(items=items)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "TOGETHER", together)
        place = at(folder)
        with run.claimed(place, {}) as name:
            found = duplicates.planned(Search(place, name, kind, source, Curation()), units, Local(1), lambda _: None)

        assert (len(found.groups) > 1) == (together == 1000)
        assert [found.of(number) for number in range(len(units))] == expected(items, units, kind)
