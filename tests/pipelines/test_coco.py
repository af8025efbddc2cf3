"""COCO: what each file gives, how they join, and what is done about rows that are wrong."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from pipelines.coco import Coco
from pipelines.source import Sample, Source, Tally
from schemas import Record, Reject, RequestError, SourceError, validate
from schemas import mask as masks

CATEGORIES = [{"supercategory": "animal", "id": 17, "name": "cat"}, {"supercategory": "person", "id": 1, "name": "person"}]
LICENSES = [{"url": "http://creativecommons.org/licenses/by-nc-nd/2.0/", "id": 3, "name": "Attribution-NonCommercial-NoDerivs License"}]
URL = "http://images.cocodataset.org/train2017/"


def image_row(id: Any, name: str = "", **more: Any) -> dict[str, Any]:
    """A row of an images table; pictures are 32 x 24."""
    name = name or f"{id:012d}.jpg"
    return {"license": 3, "file_name": name, "coco_url": URL + name.split("/")[-1], "height": 24, "width": 32, "id": id} | more


def instance(id: Any, image_id: Any, **more: Any) -> dict[str, Any]:
    """An instance, a square of 8 pixels at (4, 4)."""
    square = {"bbox": [4.0, 4.0, 8.0, 8.0], "segmentation": [[4, 4, 12, 4, 12, 12, 4, 12]], "area": 64.0, "iscrowd": 0}
    return {"id": id, "image_id": image_id, "category_id": 17} | square | more


class Tree:
    """A COCO tree on disk: pictures 1 and 2, and whatever files a test writes."""

    def __init__(self, root: Path, photo: Callable[..., bytes]) -> None:
        self.root, self.options = root, {}
        (root / "train2017").mkdir()
        for seed in (1, 2):
            (root / f"train2017/{seed:012d}.jpg").write_bytes(photo(seed=seed))

    def write(self, kind: str, annotations: list[Any], images: list[Any] | None = None, **tables: Any) -> Tree:
        """One annotation file, in the order of keys that upstream has."""
        images = [image_row(1), image_row(2)] if images is None else images
        content = {"info": {"year": 2017}, "licenses": LICENSES, "images": images, "annotations": annotations, "categories": CATEGORIES}
        self.options[kind] = self.root / f"{kind}_train2017.json"
        self.options[kind].write_text(json.dumps(content | tables))
        return self

    def source(self, **options: Any) -> Coco:
        """The source over these files."""
        given: dict[str, Any] = {"images": (self.root / "train2017",)}
        return Coco(**(given | self.options | options))


@pytest.fixture
def tree(tmp_path: Path, photo: Callable[..., bytes]) -> Tree:
    return Tree(tmp_path, photo)


def converted(source: Source) -> list[Sample | Reject]:
    """What becomes of every item, in a worker that got the source by pickle; records are validated."""
    units = source.units(None)
    worker = pickle.loads(pickle.dumps(source))
    return [_one(worker, row) for unit in units for row in worker.rows(unit)]


def _one(source: Source, row: Any) -> Sample | Reject:
    try:
        sample = source.sample(row)
    except Reject as reject:
        return reject
    sample.record.key = "000000-00000000"
    for index, image in enumerate(sample.record.images):
        image.member = f"000000-00000000.{index}.{image.format}"
    for map in sample.record.maps:
        map.member = f"000000-00000000.{map.image}.{map.member}.png"
    validate(sample.record)
    return sample


def first(source: Source) -> tuple[Record, Tally]:
    """The record of the first item, and its counts."""
    sample = converted(source)[0]
    assert isinstance(sample, Sample), sample
    return sample.record, sample.counts


def parts(record: Record) -> list[list[Any]]:
    """What each turn of the record and of its choices says."""
    turns = [*record.turns, *(turn for choice in record.choices for turn in choice.turns)]
    return [[part.image if part.text is None else part.text for part in turn.parts] for turn in turns]


def png(width: int = 32, height: int = 24, mode: str = "RGB") -> bytes:
    """A segment map: segment 300 in the left half, void in the right."""
    pixels_HWC = np.zeros((height, width, 3), np.uint8)
    pixels_HWC[:, : width // 2] = (44, 1, 0)  # 44 + 256
    stream = io.BytesIO()
    Pillow.fromarray(pixels_HWC).convert(mode).save(stream, "PNG")
    return stream.getvalue()


# Captions


def test_the_first_caption_is_the_turn_and_the_others_are_choices_in_file_order(tree: Tree) -> None:
    rows = [{"image_id": 2, "id": 5, "caption": "two"}, *({"image_id": 1, "id": n, "caption": f"one {n} "} for n in (9, 3, 7))]
    samples = converted(tree.write("captions", rows).source())

    one, two = (sample.record for sample in samples if isinstance(sample, Sample))
    assert parts(one) == [[0, "one 9 "], [0, "one 3 "], [0, "one 7 "]]  # untouched: the blank at the end stays
    assert [turn.role for turn in one.turns] == ["text"]
    assert parts(two) == [[0, "two"]]
    assert one.language is None


def test_an_image_without_captions_has_one_turn_that_holds_it(tree: Tree) -> None:
    record, counts = first(tree.write("captions", [{"image_id": 2, "id": 5, "caption": "two"}]).source())

    assert parts(record) == [[0]]
    assert counts == {("notes", "image_without_annotation"): 1}


def test_an_empty_caption_and_one_that_is_no_text_are_dropped_by_reason(tree: Tree) -> None:
    rows = [{"image_id": 1, "id": n, "caption": caption} for n, caption in enumerate([" ", 5, "good"])]
    record, counts = first(tree.write("captions", rows).source())

    assert parts(record) == [[0, "good"]]
    assert counts == {("turns_dropped", "caption_empty"): 1, ("turns_dropped", "schema"): 1}


def test_a_file_of_images_alone_gives_records_of_images(tree: Tree) -> None:
    tree.write("captions", [])  # image_info_test2017.json has no annotations at all
    (tree.root / "captions_train2017.json").write_text(json.dumps({"images": [image_row(1)], "licenses": LICENSES}))

    assert parts(first(tree.source())[0]) == [[0]]


def test_meta_keeps_id_urls_and_the_licence_by_name(tree: Tree) -> None:
    record, _ = first(tree.write("captions", [], [image_row(1, flickr_url="http://farm4")]).source())

    licence = {"id": 3, "name": LICENSES[0]["name"], "url": LICENSES[0]["url"]}
    assert json.loads(record.meta) == {"id": 1, "url": URL + "000000000001.jpg", "flickr_url": "http://farm4", "license": licence}


# Instances


def test_an_instance_is_a_region_with_box_mask_label_and_crowd(tree: Tree) -> None:
    record, counts = first(tree.write("instances", [instance(42, 1)]).source())

    (region,) = record.regions
    assert (region.id, region.image, region.label, region.crowd) == ("a42", 0, "cat", False)
    assert region.box == [4.0, 4.0, 12.0, 12.0]
    assert region.mask is not None
    expected_HW = np.zeros((24, 32), np.uint8)
    expected_HW[4:12, 4:12] = 1
    assert np.array_equal(masks.bitmap(region.mask), expected_HW)
    assert not counts


@pytest.mark.parametrize("compressed", [False, True], ids=["a list", "compressed"])
def test_run_lengths_are_read_as_a_list_and_compressed(tree: Tree, compressed: bool) -> None:
    counts = "P3`1`c0" if compressed else [24 * 4, 48, 24 * 26]
    row = instance(1, 1, iscrowd=1, bbox=[4, 0, 2, 24], segmentation={"size": [24, 32], "counts": counts})
    record, _ = first(tree.write("instances", [row]).source())

    (region,) = record.regions
    assert region.crowd is True
    assert region.mask is not None
    assert masks.bitmap(region.mask).sum(axis=0).tolist() == [0] * 4 + [24, 24] + [0] * 26


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"bbox": [4, 4, 0, 8]}, "box_empty"),
        ({"bbox": [4, 4, 40, 8]}, "box_outside"),
        ({"bbox": [4, float("nan"), 8, 8]}, "box_not_finite"),
        ({"bbox": [4, 4, float("inf"), 8]}, "box_not_finite"),
        ({"bbox": [4, 4, 8]}, "box_length"),
        ({"bbox": "4,4,8,8"}, "schema"),
        ({"bbox": [], "segmentation": []}, "region_empty"),
        ({"bbox": None, "segmentation": [[1, 1, 2, 2]]}, "region_empty"),
    ],
)
def test_a_region_that_can_not_be_kept_is_dropped_by_reason_and_the_image_stays(tree: Tree, more: dict[str, Any], reason: str) -> None:
    record, counts = first(tree.write("instances", [instance(1, 1, **more), instance(2, 1)]).source())

    assert [region.id for region in record.regions] == ["a2"]
    assert counts["regions_dropped", reason] == 1


def test_a_box_less_than_a_pixel_outside_is_clipped(tree: Tree) -> None:
    record, counts = first(tree.write("instances", [instance(1, 1, bbox=[-0.5, 4, 32.9, 8], segmentation=None)]).source())

    assert record.regions[0].box == [0.0, 4.0, 32.0, 12.0]
    assert counts == {("mended", "box_clipped"): 1}


@pytest.mark.parametrize(
    "segmentation",
    [
        [[4, 4, 12, 12]],
        [[]],
        [[4, 4, 12, 4, 12, float("nan")]],
        [[4, 4, 12, 4, 12, 12, 4]],
        [[4, 4, 4, 4, 4, 4]],
        {"size": [24, 32], "counts": [24 * 32]},
        {"size": [32, 24], "counts": [10, 24 * 32 - 10]},
        {"size": [24, 32], "counts": [10, -5, 24 * 32 - 5]},
        {"size": [24, 32], "counts": "not run lengths"},
        {"size": [24, 32]},
        "a polygon",
    ],
    ids=["2 points", "no points", "NaN", "odd", "no area", "nothing set", "size", "negative", "hostile", "no counts", "text"],
)
def test_a_mask_that_can_not_be_kept_leaves_the_region_with_its_box(tree: Tree, segmentation: Any) -> None:
    record, counts = first(tree.write("instances", [instance(1, 1, segmentation=segmentation)]).source())

    (region,) = record.regions
    assert region.mask is None
    assert region.box == [4.0, 4.0, 12.0, 12.0]
    assert counts["mended", "masks_dropped"] == 1


def test_a_polygon_of_two_points_goes_and_the_others_make_the_mask(tree: Tree) -> None:
    segmentation = [[4, 4, 12, 4, 12, 12, 4, 12], [0, 0, 9, 9]]
    record, counts = first(tree.write("instances", [instance(1, 1, segmentation=segmentation)]).source())

    assert record.regions[0].mask is not None
    assert masks.area(record.regions[0].mask) == 64
    assert counts == {("mended", "polygons_dropped"): 1}


def test_an_annotation_id_that_comes_twice_is_told_apart_and_counted(tree: Tree) -> None:
    record, counts = first(tree.write("instances", [instance(1, 1), instance(1, 1, category_id=1), instance(None, 1)]).source())

    assert [(region.id, region.label) for region in record.regions] == [("a1", "cat"), ("a1.2", "person"), ("n2", "cat")]
    assert counts == {("mended", "annotation_id_repeated"): 1}


def test_a_category_that_no_table_lists_leaves_the_region_without_label(tree: Tree) -> None:
    record, counts = first(tree.write("instances", [instance(1, 1, category_id=99)]).source())

    assert record.regions[0].label is None
    assert counts == {("mended", "category_unknown"): 1}


# Keypoints

POSE = [{"supercategory": "person", "id": 1, "name": "person", "keypoints": ["nose", "left_eye"], "skeleton": [[1, 2]]}]
POINTS = [5, 6, 2, 0, 0, 0]


def test_keypoints_join_the_instance_with_the_same_annotation_id(tree: Tree) -> None:
    tree.write("instances", [instance(7, 1), instance(8, 1, category_id=1)])
    tree.write("keypoints", [instance(8, 1, category_id=1, keypoints=POINTS, num_keypoints=1)], categories=POSE)
    record, counts = first(tree.source())

    assert [(region.id, region.points) for region in record.regions] == [("a7", None), ("a8", [[5, 6, 2], [0, 0, 0]])]
    assert record.regions[1].mask is not None
    assert json.loads(record.meta)["keypoints"] == {"person": ["nose", "left_eye"]}
    assert not counts


def test_keypoints_without_instances_are_regions_of_their_own(tree: Tree) -> None:
    tree.write("keypoints", [instance(8, 1, category_id=1, keypoints=POINTS)], categories=POSE)
    record, _ = first(tree.source())

    (region,) = record.regions
    assert (region.id, region.label, region.box) == ("a8", "person", [4.0, 4.0, 12.0, 12.0])
    assert region.points == [[5, 6, 2], [0, 0, 0]]


@pytest.mark.parametrize("points", [[5, 6], [5, 6, float("nan")]], ids=["cut", "NaN"])
def test_keypoints_that_are_none_are_dropped_and_the_region_stays(tree: Tree, points: list[float]) -> None:
    tree.write("keypoints", [instance(8, 1, category_id=1, keypoints=points)], categories=POSE)
    record, counts = first(tree.source())

    assert [region.points for region in record.regions] == [None]
    assert counts == {("mended", "points_dropped"): 1}


def test_a_dropped_instance_takes_its_keypoints_along_and_is_counted_once(tree: Tree) -> None:
    tree.write("instances", [instance(8, 1, bbox=[4, 4, 0, 0])])
    tree.write("keypoints", [instance(8, 1, bbox=[4, 4, 0, 0], keypoints=POINTS)])
    record, counts = first(tree.source())

    assert record.regions == []
    assert counts == {("regions_dropped", "box_empty"): 1}


# Panoptic


def panoptic(tree: Tree, data: bytes | None, segments: list[Any], **more: Any) -> Coco:
    (tree.root / "maps").mkdir()
    if data is not None:
        (tree.root / "maps/000000000001.png").write_bytes(data)
    tree.write("panoptic", [{"image_id": 1, "file_name": "000000000001.png", "segments_info": segments} | more])
    return tree.source(panoptic_maps=(tree.root / "maps",))


def test_a_panoptic_png_is_stored_untouched_with_its_segments(tree: Tree) -> None:
    segments = [{"id": 300, "category_id": 17, "area": 384, "bbox": [0, 0, 16, 24], "iscrowd": 1}]
    sample = converted(panoptic(tree, png(), segments))[0]

    assert isinstance(sample, Sample)
    (map,) = sample.record.maps
    assert sample.maps == [png()]
    assert map.member == "000000-00000000.0.panoptic.png"
    assert (map.kind, map.encoding, map.ignore, map.classes) == ("panoptic", "RGB24", 0, None)
    assert map.segments is not None
    assert [(s.id, s.label, s.area, s.crowd) for s in map.segments] == [(300, "cat", 384, True)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "map_missing"),
        (png(16), "map_size"),
        (png(mode="L"), "map_mode"),
        (png(mode="RGBA"), "map_mode"),
        (png()[:60], "map_truncated"),
        (b"<html>", "map_format"),
        (b"", "map_empty"),
    ],
)
def test_a_map_that_is_none_is_dropped_by_reason_and_the_image_stays(tree: Tree, data: bytes | None, reason: str) -> None:
    record, counts = first(panoptic(tree, data, []))

    assert record.maps == []
    assert counts == {("maps_dropped", reason): 1}


def test_a_map_that_is_a_jpeg_is_dropped(tree: Tree, photo: Callable[..., bytes]) -> None:
    assert first(panoptic(tree, photo(), []))[1] == {("maps_dropped", "map_format"): 1}


def test_a_segment_id_that_comes_twice_counts_once(tree: Tree) -> None:
    segment = {"id": 300, "category_id": 17, "area": 384, "iscrowd": 0}
    record, counts = first(panoptic(tree, png(), [segment, segment]))

    assert record.maps[0].segments is not None
    assert len(record.maps[0].segments) == 1
    assert counts == {("mended", "segment_repeated"): 1}


def test_a_second_map_of_an_image_is_dropped(tree: Tree) -> None:
    source = panoptic(tree, png(), [])
    row = {"image_id": 1, "file_name": "000000000001.png", "segments_info": []}
    tree.write("panoptic", [row, row])

    assert first(source)[1] == {("maps_dropped", "map_repeated"): 1}


def test_panoptic_and_its_maps_are_asked_for_together(tree: Tree) -> None:
    source = panoptic(tree, png(), [])

    for wrong in ({"panoptic_maps": ()}, {"panoptic_maps": source.panoptic_maps, "panoptic": None, "captions": source.panoptic}):
        with pytest.raises(RequestError, match="together"):
            tree.source(**wrong).units(None)


# The join


def test_images_are_the_union_of_the_tables_in_order_of_first_appearance(tree: Tree) -> None:
    tree.write("captions", [{"image_id": 2, "id": 5, "caption": "two"}], [image_row(2)])
    tree.write("instances", [instance(1, 1), instance(2, 2)], [image_row(1), image_row(2)])
    samples = converted(tree.source())

    records = [sample.record for sample in samples if isinstance(sample, Sample)]
    assert [json.loads(record.meta)["id"] for record in records] == [2, 1]
    assert [[region.id for region in record.regions] for record in records] == [["a2"], ["a1"]]
    assert parts(records[0]) == [[0, "two"]]


def test_items_stand_where_their_file_has_them(tree: Tree) -> None:
    tree.write("captions", [], [image_row(2)])
    tree.write("instances", [], [image_row(2), image_row(1)])
    source = tree.source()

    rows = [(row.file, row.number) for unit in source.units(None) for row in source.rows(unit)]
    assert rows == [("captions_train2017.json", 0), ("instances_train2017.json", 1)]


def test_a_limit_takes_the_first_items(tree: Tree) -> None:
    assert tree.write("captions", []).source().units(1) == [range(1)]


def test_ids_may_be_text(tree: Tree) -> None:
    tree.write("captions", [{"image_id": "one", "id": 5, "caption": "good"}], [image_row("one", "000000000001.jpg")])

    assert parts(first(tree.source())[0]) == [[0, "good"]]


def test_annotations_of_an_image_that_no_table_lists_are_counted(tree: Tree) -> None:
    source = tree.write("captions", [{"image_id": n, "id": n, "caption": "text"} for n in (1, 77, 78)]).source()

    source.units(None)
    assert source.notes() == {("annotations_without_image", "captions"): 2}


def test_an_image_id_that_a_file_has_twice_is_rejected_the_second_time(tree: Tree) -> None:
    tree.write("captions", [{"image_id": 1, "id": 1, "caption": "one"}], [image_row(1), image_row(1, "000000000002.jpg")])
    good, bad = converted(tree.source())

    assert isinstance(good, Sample)
    assert parts(good.record) == [[0, "one"]]
    assert isinstance(bad, Reject)
    assert bad.reason == "image_id_repeated"


def test_a_bad_row_of_the_images_table_is_a_reject_and_its_annotations_are_counted(tree: Tree) -> None:
    tree.write("captions", [{"image_id": 1, "id": 1, "caption": "one"}], [image_row(2), {"id": None, "file_name": "x.jpg"}])
    tree.options["captions"].write_text(tree.options["captions"].read_text().replace('"width": 32', '"width": NaN'))
    source = tree.source()

    assert [item.reason for item in converted(source) if isinstance(item, Reject)] == ["json", "schema"]
    assert source.notes() == {("annotations_without_image", "captions"): 1}


def test_an_annotation_that_can_not_be_read_is_counted(tree: Tree) -> None:
    source = tree.write("captions", [{"image_id": None, "id": 1, "caption": "one"}, {"image_id": 1, "id": 2, "caption": "two"}]).source()

    assert parts(first(source)[0]) == [[0, "two"]]
    assert source.notes() == {("annotations_dropped", "schema"): 1}


def test_a_lone_surrogate_drops_its_caption_only(tree: Tree) -> None:
    rows = [{"image_id": 1, "id": 1, "caption": "\ud800"}, {"image_id": 1, "id": 2, "caption": "two"}]
    record, counts = first(tree.write("captions", rows).source())

    assert parts(record) == [[0, "two"]]
    assert counts == {("turns_dropped", "schema"): 1}


# Pictures


def test_a_picture_of_another_size_is_rejected(tree: Tree) -> None:
    (reject,) = converted(tree.write("captions", [], [image_row(1, width=33)]).source())

    assert isinstance(reject, Reject)
    assert reject.reason == "size_differs"


def test_a_missing_picture_and_one_outside_its_folder_are_rejected(tree: Tree) -> None:
    items = converted(tree.write("captions", [], [image_row(3), image_row(1, "../train2017/000000000001.jpg")]).source())

    assert [item.reason for item in items if isinstance(item, Reject)] == ["image_missing", "image_path"]


@pytest.mark.parametrize("name", ["000000000001.jpg", "train2017/000000000001.jpg"])
@pytest.mark.parametrize("place", ["train2017", ".", "train2017.zip"])
def test_the_folder_of_the_split_is_optional_in_name_and_store(tree: Tree, name: str, place: str) -> None:
    with zipfile.ZipFile(tree.root / "train2017.zip", "w") as zip:
        zip.write(tree.root / "train2017/000000000001.jpg", "train2017/000000000001.jpg")
    source = tree.write("captions", [], [image_row(1, name)]).source(images=(tree.root / place,))

    record, _ = first(source)
    assert list(source.references()) == [[record.images[0].origin]]


def test_references_name_the_picture_of_every_item_missing_ones_too(tree: Tree) -> None:
    source = tree.write("captions", [], [image_row(1), image_row(3), {"id": 4}]).source()

    assert list(source.references()) == [["000000000001.jpg"], ["000000000003.jpg"], []]


# Files that are not what they claim


def test_no_annotation_file_at_all_is_a_request_error(tree: Tree) -> None:
    with pytest.raises(RequestError, match="at least one of --captions"):
        tree.source().units(None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"id": "1", "image": "1.jpg", "conversations": []}]', "expected a JSON object"),
        ('{"rows": []}', "found no images"),
        ('{"images": []}', "found no images"),
        ('{"images": [{"image_id": 1, "url": "x"}]}', "expected images with file_name, found image_id, url"),
        ('{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"bbox": []}]}', "expected annotations with caption, found bbox"),
        ('{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": {}}', "expected lists"),
        ('{"images": [{"id": 1, "file_name": "1.jpg"},', "line 1, byte 44"),
        ("", "an empty file"),
    ],
)
def test_a_file_that_is_no_captions_file_is_named_in_one_line(tree: Tree, content: str, message: str) -> None:
    tree.write("captions", [])
    tree.options["captions"].write_text(content)

    with pytest.raises(SourceError, match=r"captions_train2017\.json") as caught:
        tree.source().units(None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_kind_refuses_the_files_of_the_others(tree: Tree) -> None:
    tree.write("captions", [{"image_id": 1, "id": 1, "caption": "one"}]).write("instances", [instance(1, 1)])
    tree.write("panoptic", [{"image_id": 1, "file_name": "1.png", "segments_info": []}])

    for kind, other in [("captions", "instances"), ("instances", "captions"), ("instances", "panoptic"), ("keypoints", "instances")]:
        with pytest.raises(SourceError, match="expected annotations with"):
            Coco(**{kind: tree.options[other]}, images=(tree.root / "train2017",)).units(None)


def test_a_missing_file_or_store_is_named(tree: Tree) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.json"):
        tree.source(captions=tree.root / "nowhere.json").units(None)
    with pytest.raises(RequestError, match="nowhere"):
        tree.write("captions", []).source(images=(tree.root / "nowhere",)).units(None)
