"""pipelines/grand.py: scenes with grounded captions."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import grand
from pipelines.grand import Grand
from pipelines.source import Sample
from schemas import Reject, RequestError, SourceError, validate
from schemas.mask import area, from_bitmap

WIDTH, HEIGHT = 32, 24


def thing(id: Any = 0, box: Any = (1, 2, 11, 12), labels: Any = ("hot-air_balloon", "kite"), **more: Any) -> dict[str, Any]:
    """An object as upstream writes one."""
    found = {
        "bbox": list(box) if isinstance(box, tuple) else box,
        "labels": list(labels),
        "score": 0.5,
        "attributes": None,
        "id": id,
        **more,
    }
    return {name: value for name, value in found.items() if value is not ...}


def runs(width: int = WIDTH, height: int = HEIGHT) -> dict[str, Any]:
    """A compressed mask of 6 pixels."""
    bitmap_HW = np.zeros((height, width), np.uint8)
    bitmap_HW[3:5, 4:7] = 1
    mask = from_bitmap(bitmap_HW)
    return {"size": mask.size, "counts": mask.counts}


def detail(phrase: str | None, offsets: Any, ids: Any) -> dict[str, Any]:
    """A phrase of a dense caption."""
    return {"phrase": phrase, "tokens_positive": offsets, "ids": ids, "bbox": [[1, 2, 11, 12]]}


@pytest.fixture
def pictures(tmp_path: Path, photo: Callable[..., bytes]) -> Path:
    """The folder of pictures: sa_1.jpg, sa_2.jpg, sa_3.jpg."""
    (tmp_path / "images").mkdir()
    for number in (1, 2, 3):
        (tmp_path / f"images/sa_{number}.jpg").write_bytes(photo(WIDTH, HEIGHT, seed=number))
    return tmp_path / "images"


def samples(source: Grand, limit: int | None = None) -> Iterator[Sample | Reject]:
    """What the runner would write: every record validated under a key."""
    units = source.units(limit)
    worker = pickle.loads(pickle.dumps(source))
    for unit in pickle.loads(pickle.dumps(units)):
        for row in worker.rows(unit):
            try:
                sample = worker.sample(row)
            except Reject as reject:
                yield reject
                continue
            sample.record.key = "000000-00000000"
            for index, image in enumerate(sample.record.images):
                image.member = f"000000-00000000.{index}.{image.format}"
            validate(sample.record)
            assert [len(data) for data in sample.files] == [image.bytes for image in sample.record.images]
            yield sample


@pytest.fixture
def convert(tmp_path: Path, pictures: Path) -> Callable[..., Any]:
    """convert(**scene): the sample, or the Reject, of a scene of sa_1.jpg."""

    def make(**scene: Any) -> Sample | Reject:
        path = tmp_path / "sa_1.json"
        path.write_text(json.dumps({"sa_1.jpg": {"objects": [], **scene}}))
        (item,) = samples(Grand(annotations=(path,), images=(pictures,)))
        return item

    return make


def shown(turn: Any) -> list[str | int]:
    """The parts: texts and image indices."""
    return [part.text if part.image is None else part.image for part in turn.parts]


def spans(turn: Any) -> list[tuple[str, list[str]]]:
    """The text and the regions of each span."""
    return [(turn.text()[span.start : span.end], span.regions) for span in turn.spans]


def test_objects_become_regions_with_their_upstream_ids(convert: Any) -> None:
    objects = [thing(7, label="balloon", segmentation=runs(), segmentation_source="SAM", depth=12.5), thing(8, score=...)]

    sample = convert(objects=objects, floating_objects=[thing(2, median_depth=3.5)], id_counter=9)

    first, second, floating = sample.record.regions
    assert (first.id, first.image, first.box, first.label, first.score) == ("7", 0, [1.0, 2.0, 11.0, 12.0], "balloon", 0.5)
    assert area(first.mask) == 6
    assert json.loads(first.attributes) == {
        "attributes": [],
        "labels": ["hot-air_balloon", "kite"],
        "depth": 12.5,
        "segmentation_source": "SAM",
    }
    assert (second.id, second.label, second.mask, second.score) == ("8", "hot-air_balloon", None, None)
    assert (floating.id, json.loads(floating.attributes)["floating"]) == ("2", True)
    assert json.loads(floating.attributes)["median_depth"] == 3.5
    assert (json.loads(sample.record.meta), sample.counts) == ({"id": "sa_1.jpg"}, {})


def test_a_scene_without_captions_is_its_picture(convert: Any) -> None:
    sample = convert(objects=[thing()])

    assert [(turn.role, shown(turn)) for turn in sample.record.turns] == [("text", [0])]
    assert (sample.record.choices, sample.record.images[0].origin) == ([], "sa_1.jpg")


def test_attributes_of_three_types_become_a_list_without_answer_marks(convert: Any) -> None:
    said = [None, "the vibrant atmosphere", ["red", "istant: red awning", "Assistant: an assistant: here", None, "an Assistant: stays"]]

    sample = convert(objects=[thing(number, attributes=value) for number, value in enumerate(said)])

    assert [json.loads(region.attributes)["attributes"] for region in sample.record.regions] == [
        [],
        ["the vibrant atmosphere"],
        ["red", "red awning", "an assistant: here", "an Assistant: stays"],
    ]
    assert sample.counts == {("mended", "attribute_prefix"): 2}


def test_floating_attributes_have_ids_of_their_own(convert: Any) -> None:
    lettering = {"bbox": [1, 1, 5, 5], "labels": [], "score": 0.61, "attributes": ["red lettering"]}

    sample = convert(floating_attributes=[lettering, lettering])

    assert [(region.id, region.label) for region in sample.record.regions] == [("fa0", None), ("fa1", None)]


def test_of_two_objects_with_an_id_the_first_keeps_it(convert: Any) -> None:
    sample = convert(objects=[thing(384, (0, 0, 5, 5))], floating_objects=[thing(384), thing(385)])

    assert [(region.id, region.box) for region in sample.record.regions] == [("384", [0, 0, 5, 5]), ("385", [1, 2, 11, 12])]
    assert sample.counts == {("regions_dropped", "duplicate_id"): 1}


def test_boxes_are_clipped_or_dropped_by_reason(convert: Any) -> None:
    boxes = [(-0.5, 0, 5, 24.9), (0, 0, 33, 5), (5, 5, 5, 9), None, (1, 2, 3), (1, None, 3, 4), (float("nan"), 0, 1, 1)]

    sample = convert(objects=[thing(number, box) for number, box in enumerate(boxes)])

    assert [region.box for region in sample.record.regions] == [[0, 0, 5, 24]]
    assert sample.counts == {
        ("mended", "box_clipped"): 1,
        ("mended", "json_nan"): 1,
        ("regions_dropped", "box_outside"): 1,
        ("regions_dropped", "box_empty"): 1,
        ("regions_dropped", "box_missing"): 1,
        ("regions_dropped", "box_length"): 1,
        ("regions_dropped", "box_not_finite"): 2,
    }


def test_a_broken_mask_leaves_the_box(convert: Any) -> None:
    size = [HEIGHT, WIDTH]
    masks = [
        {"size": size, "counts": "~~"},
        {"size": size, "counts": [1, 2]},
        {"size": [1], "counts": ""},
        "SAM",
        [[0, 0, 5, 5, 5, 0]],
        None,
    ]

    sample = convert(objects=[thing(number, segmentation=mask) for number, mask in enumerate(masks)])

    assert [(region.mask, region.box) for region in sample.record.regions] == [(None, [1, 2, 11, 12])] * 6
    assert sample.counts == {("masks_dropped", "mask_runs"): 2, ("masks_dropped", "mask_size"): 1, ("masks_dropped", "mask_schema"): 2}


def test_an_uncompressed_mask_and_a_mask_without_box_are_kept(convert: Any) -> None:
    counts = {"size": [HEIGHT, WIDTH], "counts": [10, 5, HEIGHT * WIDTH - 15]}

    sample = convert(objects=[thing(1, None, segmentation=counts)])

    assert (area(sample.record.regions[0].mask), sample.record.regions[0].box) == (5, None)


def test_a_mask_of_another_size_says_that_the_picture_is_another_one(convert: Any) -> None:
    reject = convert(objects=[thing(1), thing(2, segmentation=runs(HEIGHT, WIDTH))])

    assert (reject.reason, reject.detail) == ("size_differs", "expected a mask of 24 x 32, found 32 x 24")


def test_grounded_phrases_become_expressions_and_dangling_ids_are_counted(convert: Any) -> None:
    grounding = [
        {"phrase": "two kites", "object_ids": [0, 1, 0]},
        {"phrase": "one kite", "object_ids": [99, 1]},
        {"phrase": "a ghost", "object_ids": [99]},
        {"phrase": "nothing", "object_ids": []},
        {"phrase": "scalar", "object_ids": 1},
        {"phrase": None, "object_ids": [1]},
    ]

    sample = convert(objects=[thing(0), thing(1)], relationships={"object_ids": [0], "floating_object_ids": [], "grounding": grounding})

    assert [(one.text, one.regions) for one in sample.record.expressions] == [
        ("two kites", ["0", "1"]),
        ("one kite", ["1"]),
        ("scalar", ["1"]),
    ]
    assert sample.counts == {
        ("mended", "expression_dangling_id"): 2,
        ("expressions_dropped", "no_region"): 2,
        ("expressions_dropped", "no_phrase"): 1,
    }


def test_an_expression_of_a_dropped_region_is_dropped(convert: Any) -> None:
    sample = convert(objects=[thing(0, (0, 0, 99, 99))], relationships={"grounding": [{"phrase": "it", "object_ids": [0]}]})

    assert (sample.record.regions, sample.record.expressions) == ([], [])
    assert sample.counts[("expressions_dropped", "no_region")] == 1


def test_the_dense_caption_is_the_turn_and_short_captions_are_choices(convert: Any) -> None:
    dense = {"caption": "A kite over the sea.", "details": [detail("the sea", [12, 19], [1]), detail("A kite", [0, 6], [0, 1])]}
    short = {"caption": "Kite  ", "details": [{"phrase": "Kite", "tokens_positive": [0, 4], "id": 0, "bbox": [1, 2, 11, 12]}]}

    sample = convert(objects=[thing(0), thing(1)], dense_caption=dense, short_captions=[short], captions=["a kite"])

    (turn,) = sample.record.turns
    assert (shown(turn), spans(turn)) == ([0, "A kite over the sea."], [("A kite", ["0", "1"]), ("the sea", ["1"])])
    choices = [choice.turns[0] for choice in sample.record.choices]
    assert [(shown(choice), spans(choice)) for choice in choices] == [([0, "Kite  "], [("Kite", ["0"])]), ([0, "a kite"], [])]
    assert sample.counts == {}


def test_without_a_dense_caption_the_first_other_one_is_the_turn(convert: Any) -> None:
    sample = convert(dense_caption={"caption": " ", "details": []}, captions=["one", "two", ""])

    assert shown(sample.record.turns[0]) == [0, "one"]
    assert [shown(choice.turns[0]) for choice in sample.record.choices] == [[0, "two"]]
    assert sample.counts == {("captions_dropped", "empty"): 2}


def place(convert: Any, text: str, *details: dict[str, Any]) -> tuple[list[tuple[int, int]], dict[Any, int]]:
    """Where the spans of a dense caption end up, and what was counted."""
    sample = convert(objects=[thing(0), thing(1)], dense_caption={"caption": text, "details": list(details)})
    return [(span.start, span.end) for span in sample.record.turns[0].spans], dict(sample.counts)


def test_offsets_that_punctuation_moved_are_found_again(convert: Any) -> None:
    assert place(convert, "It is the sky and the kite", detail("the kite", [20, 28], [0])) == ([(18, 26)], {("mended", "span_moved"): 1})


def test_the_nearest_whole_words_count_whatever_their_case(convert: Any) -> None:
    assert place(convert, "Cars scare a car, a CAR", detail("car", [19, 22], [0])) == ([(20, 23)], {("mended", "span_moved"): 1})
    assert place(convert, "Cars scare a car, a CAR", detail("car", [5, 8], [0])) == ([(13, 16)], {("mended", "span_moved"): 1})


def test_offsets_count_code_points_and_ignore_case(convert: Any) -> None:
    assert place(convert, "🎈 Über dem Meer", detail("über", [2, 6], [0])) == ([(2, 6)], {})


@pytest.mark.parametrize("offsets", [None, [], [3], "0:5", [[None, 2]]])
def test_a_phrase_without_offsets_is_looked_up(convert: Any, offsets: Any) -> None:
    assert place(convert, "a tree, a tree", detail("a tree", offsets, [0])) == ([(0, 6)], {("mended", "span_found"): 1})


def test_two_phrases_of_one_name_take_a_place_each_as_long_as_there_is_one(convert: Any) -> None:
    one, other = detail("a tree", None, [0]), detail("a tree", None, [1])

    assert place(convert, "a tree, a tree", one, other)[0] == [(0, 6), (8, 14)]
    assert place(convert, "a tree", one, other) == ([(0, 6)], {("mended", "span_found"): 2, ("mended", "span_merged"): 1})


def test_nested_offsets_are_read(convert: Any) -> None:
    assert place(convert, "a tree", detail("tree", [[2, 6]], [0])) == ([(2, 6)], {})


def test_spans_that_lead_nowhere_are_dropped_by_reason(convert: Any) -> None:
    details = [
        detail("a kite", [0, 6], [99]),
        detail("a kite", [0, 6], []),
        detail("a boat", [0, 6], [0]),
        detail(None, [0, 6], [0]),
        detail("kite", [-4, 600], [0, 98]),
    ]

    assert place(convert, "a kite", *details) == (
        [(2, 6)],
        {
            ("mended", "span_dangling_id"): 2,
            ("mended", "span_moved"): 1,
            ("spans_dropped", "no_region"): 2,
            ("spans_dropped", "phrase_not_found"): 2,
        },
    )


def test_of_spans_that_cross_the_later_is_dropped_and_nested_ones_stay(convert: Any) -> None:
    details = [detail("red kite", [2, 10], [0]), detail("a red", [0, 5], [1]), detail("kite", [6, 10], [1])]

    assert place(convert, "a red kite", *details) == ([(2, 10), (6, 10)], {("spans_dropped", "span_cross"): 1})


def test_landmark_context_and_affordances_are_kept_in_meta(convert: Any) -> None:
    sit = {"description": "to sit", "object_ids": [302, 0], "labels": ["bench"]}
    landmark = {"category": "Outdoor scene", "fine_category": "Urban landscape"}

    sample = convert(objects=[thing(0)], landmark=landmark, affordances={"Sit": sit}, additional_context="Wear a hat.")

    assert json.loads(sample.record.meta) == {
        "id": "sa_1.jpg",
        "landmark": landmark,
        "additional_context": "Wear a hat.",
        "affordances": {"Sit": {"description": "to sit", "object_ids": ["0"], "labels": ["bench"]}},
    }
    assert sample.counts == {("mended", "affordance_dangling_id"): 1}


def test_what_does_not_fit_into_meta_is_counted(convert: Any) -> None:
    sample = convert(additional_context="x" * 70_000, landmark={"category": "sea"})

    assert json.loads(sample.record.meta) == {"id": "sa_1.jpg", "landmark": {"category": "sea"}}
    assert sample.counts == {("meta_dropped", "additional_context"): 1}


def test_nan_depth_is_null(convert: Any) -> None:
    sample = convert(objects=[thing(0, depth=float("nan"))])

    assert (json.loads(sample.record.regions[0].attributes).get("depth"), sample.counts) == (None, {("mended", "json_nan"): 1})


def scene(number: int) -> bytes:
    """The JSON of picture sa_<number>.jpg."""
    return json.dumps({f"sa_{number}.jpg": {"objects": [thing(number)], "captions": [f"number {number}"]}}).encode()


def part(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    """A tar as upstream publishes its parts."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload] # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def ids(source: Grand, limit: int | None = None) -> list[str]:
    """The upstream id of each record, or the reason of each reject."""
    return [item.reason if isinstance(item, Reject) else json.loads(item.record.meta)["id"] for item in samples(source, limit)]


def test_folders_are_read_by_name_and_tars_in_their_own_order(tmp_path: Path, pictures: Path) -> None:
    folder = tmp_path / "annotations"
    (folder / "deep").mkdir(parents=True)
    (folder / "sa_2.json").write_bytes(scene(2))
    (folder / "deep/sa_1.json").write_bytes(b"\xef\xbb\xbf" + scene(1))
    (folder / "._sa_2.json").write_bytes(b"Mac OS X")
    members = {
        "part/": b"",
        "part/sa_3.json": scene(3),
        "part/._sa_1.json": b"Mac OS X",
        "part/readme.txt": b"no",
        "part/sa_1.json": scene(1),
    }
    part(folder / "part_1.tar.gz", members)
    plain = part(tmp_path / "part_2.tar", members, "w:")
    (tmp_path / "sa_3.json").write_bytes(scene(3))

    source = Grand(annotations=(tmp_path / "sa_3.json", folder, plain), images=(pictures,))

    assert ids(source) == ["sa_3.jpg", "sa_1.jpg", "sa_2.jpg", "sa_3.jpg", "sa_1.jpg", "sa_3.jpg", "sa_1.jpg"]
    root = str(folder)
    files = [grand.Files("", (str(tmp_path / "sa_3.json"),)), grand.Files(root, ("deep/sa_1.json",)), grand.Files(root, ("sa_2.json",))]
    assert list(source.units(None)) == [*files, grand.Part(folder / "part_1.tar.gz", None), grand.Part(plain, None)]
    assert list(source.references()) == [[f"sa_{number}.jpg"] for number in (3, 1, 2, 3, 1, 3, 1)]
    rows = [(row.file, row.number) for unit in source.units(None) for row in source.rows(unit)]
    names = ["sa_3.json", "deep/sa_1.json", "sa_2.json", "part_1.tar.gz", "part_1.tar.gz", "part_2.tar", "part_2.tar"]
    assert rows == list(zip(names, [0, 0, 0, 0, 1, 0, 1], strict=True))


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 99])
def test_a_limit_counts_scenes_over_all_inputs(tmp_path: Path, pictures: Path, limit: int) -> None:
    first = part(tmp_path / "a.tgz", {"sa_1.json": scene(1), "sa_2.json": scene(2)})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/sa_3.json").write_bytes(scene(3))
    last = part(tmp_path / "b.tgz", {"sa_2.json": scene(2)})

    found = ids(Grand(annotations=(first, tmp_path / "folder", last), images=(pictures,)), limit)

    assert found == ["sa_1.jpg", "sa_2.jpg", "sa_3.jpg", "sa_2.jpg"][:limit]


def test_bad_scenes_are_rejects_and_the_others_are_read(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grand, "MAX_SCENE", 1000)
    members = {
        "0.json": scene(1),
        "1.json": scene(2)[:-5],
        "2.json": b'{"sa_1.jpg": {"objects": "none"}}',
        "3.json": b'{"sa_1.jpg": {}, "sa_2.jpg": {}}',
        "4.json": b"{}",
        "5.json": b"",
        "6.json": scene(9),
        "7.json": b'{"../../etc/passwd": {"objects": []}}',
        "8.json": scene(1) + b" " * 1000,
        "9.json": scene(3),
    }
    path = part(tmp_path / "part.tar.gz", members)
    expected = ["sa_1.jpg", "json", "schema", "schema", "schema", "json", "image_missing", "image_path", "json_bytes", "sa_3.jpg"]

    assert ids(Grand(annotations=(path,), images=(pictures,))) == expected


def cut_gzip(path: Path) -> None:
    """The second half of the download is missing."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_gzip(path: Path) -> None:
    """A byte of the last member's data is another one, in a gzip whose check sum is that of the true one."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[raw.rindex(b"noise") + 2] ^= 1
    path.write_bytes(gzip.compress(bytes(raw), 0)[:-8] + path.read_bytes()[-8:])


def bad_header(path: Path) -> None:
    """The header of the twentieth member is not one."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    at = raw.index(b"20.json")
    raw[at : at + 512] = b"x" * 512
    path.write_bytes(gzip.compress(bytes(raw)))


def plain_without_end(path: Path) -> None:
    """A tar that was cut where a member ends."""
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(raw[: raw.index(b"20.json")])


@pytest.mark.parametrize("damage", [cut_gzip, flip_gzip, bad_header, plain_without_end])
def test_a_damaged_part_is_never_a_shorter_one(tmp_path: Path, pictures: Path, damage: Callable[[Path], None]) -> None:
    noise = {f"{number}.json": scene(1) + b" " * 600 for number in range(30)}
    path = part(tmp_path / "part.tar.gz", {**noise, "noise.txt": b"noise" + os.urandom(3000)})
    assert len(ids(Grand(annotations=(path,), images=(pictures,)))) == 30

    damage(path)

    with pytest.raises(SourceError, match=r"part.tar.gz: expected a"):
        ids(Grand(annotations=(path,), images=(pictures,)))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'[{"id": 1, "conversations": []}]', "Expected `object`, got `array`"),
        (b'{"images": [], "annotations": []}', "Expected `object`, got `array`"),
        (b'{"text_list": {"a": 1}}', "found text_list, a"),
        (b'{"sa_1.jpg":\n {"objects": [{"bbox": [1, 2', r"line 2, byte 41: .*truncated"),
        (b"", "truncated"),
    ],
)
def test_a_file_that_is_no_scene_stops_in_one_line(tmp_path: Path, data: bytes, found: str) -> None:
    (tmp_path / "sa_1.json").write_bytes(data)

    with pytest.raises(SourceError, match=found) as caught:
        Grand(annotations=(tmp_path,)).units(None)

    assert "\n" not in str(caught.value)


def test_inputs_that_are_not_there_stop(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected scenes"):
        Grand(annotations=(tmp_path,)).units(None)
    with pytest.raises(RequestError, match=r"part_9.tar.gz: expected .*found nothing"):
        Grand(annotations=(tmp_path / "part_9.tar.gz",)).units(None)
    with pytest.raises(SourceError, match=r"empty.tar.gz: expected scenes \(.json\), found none"):
        Grand(annotations=(part(tmp_path / "empty.tar.gz", {"a.txt": b"a"}),)).units(None)


def test_a_row_without_a_name_refers_to_nothing(tmp_path: Path) -> None:
    files = {"1.json": scene(1), "2.json": b"[]", "3.json": b'{"a\\u00e9.jpg": {}}', "4.json": b"", "5.json": b'{"\xf4.jpg": {}}'}
    path = part(tmp_path / "part.tgz", files)

    assert list(Grand(annotations=(path,)).references()) == [["sa_1.jpg"], [], ["aé.jpg"], [], []]
