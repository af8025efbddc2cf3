"""Visual Genome: what each file gives in either generation of names, how they join, and what is done about what is wrong."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.source import Sample, Source, Tally
from pipelines.visual_genome import VisualGenome
from schemas import Expression, Record, Reject, Relation, RequestError, SourceError, validate

BOX = {"x": 2, "y": 3, "w": 10, "h": 5}


def image_row(id: int, folder: str = "VG_100K", **more: Any) -> dict[str, Any]:
    """A row of image_data; pictures are 32 x 24."""
    url = f"https://cs.stanford.edu/people/rak248/{folder}/{id}.jpg"
    return {"width": 32, "url": url, "height": 24, "image_id": id, "coco_id": None, "flickr_id": None} | more


def thing(id: int | None, *names: str, **more: Any) -> dict[str, Any]:
    """An object as version 1.0 writes it."""
    return {"id": id, "names": list(names)} | BOX | more


def end(id: int, name: str, **more: Any) -> dict[str, Any]:
    """An object as version 1.0 writes it at the end of a relationship."""
    return {"id": id, "name": name} | BOX | more


class Tree:
    """A folder of annotation files and the two folders of pictures: 1 in VG_100K, 2 in VG_100K_2."""

    def __init__(self, root: Path, photo: Callable[..., bytes]) -> None:
        self.root = root
        for id, folder in ((1, "VG_100K"), (2, "VG_100K_2")):
            (root / folder).mkdir()
            (root / f"{folder}/{id}.jpg").write_bytes(photo(seed=id))
        (root / "v1.0.0").mkdir()
        self.write("image_data", [image_row(1), image_row(2, "VG_100K_2")])

    def write(self, kind: str, rows: Any) -> Tree:
        """One annotation file."""
        (self.root / f"v1.0.0/{kind}.json").write_text(json.dumps(rows))
        return self

    def source(self, **options: Any) -> VisualGenome:
        """The source over these files."""
        pictures = (self.root / "VG_100K", self.root / "VG_100K_2")
        given: dict[str, Any] = {"annotations": (self.root / "v1.0.0",), "images": pictures}
        return VisualGenome(**(given | options))


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
    validate(sample.record)
    return sample


def first(source: Source) -> tuple[Record, Tally]:
    """The record of the first item, and its counts."""
    sample = converted(source)[0]
    assert isinstance(sample, Sample), sample
    return sample.record, sample.counts


def reasons(source: Source) -> list[str | None]:
    """Why each item is a reject, None where it is a record."""
    return [item.reason if isinstance(item, Reject) else None for item in converted(source)]


# What each file gives


def test_objects_are_regions_with_their_first_name_as_label(tree: Tree) -> None:
    record, counts = first(tree.write("objects", [{"id": 1, "objects": [thing(38203, "clock"), thing(38204)]}]).source())

    assert [(region.id, region.image, region.label, region.box) for region in record.regions] == [
        ("o38203", 0, "clock", [2.0, 3.0, 12.0, 8.0]),
        ("o38204", 0, None, [2.0, 3.0, 12.0, 8.0]),
    ]
    assert not counts


def test_attributes_are_a_list_on_the_object_they_name(tree: Tree) -> None:
    tree.write("objects", [{"id": 1, "objects": [thing(5, "clock"), thing(6, "bike")]}])
    tree.write("attributes", [{"id": 1, "attributes": [{"id": 5, "object_names": ["clock"], "attributes": ["green", "big"]} | BOX]}])
    record, _ = first(tree.source())

    assert [(region.id, region.attributes) for region in record.regions] == [("o5", '["green","big"]'), ("o6", None)]


def test_several_names_of_an_object_stand_beside_its_attributes(tree: Tree) -> None:
    tree.write("objects", [{"id": 1, "objects": [thing(5, "couch", "futon", "couch"), thing(6, "sofa", "couch")]}])
    tree.write("attributes", [{"id": 1, "attributes": [thing(5, "couch", attributes=["red"])]}])
    record, _ = first(tree.source())

    assert [(region.label, json.loads(region.attributes or "")) for region in record.regions] == [
        ("couch", {"names": ["couch", "futon"], "attributes": ["red"]}),
        ("sofa", {"names": ["sofa", "couch"], "attributes": []}),
    ]


def test_attributes_given_twice_or_as_text_or_absent_are_joined(tree: Tree) -> None:
    rows = [thing(5, "clock", attributes=["green"]), thing(5, "clock", attributes=["big", "green"]), thing(5, "clock", attributes="old")]
    tree.write("attributes", [{"id": 1, "attributes": [*rows, thing(6, "bike")]}])
    record, _ = first(tree.source())

    assert [region.attributes for region in record.regions] == ['["green","big","old"]', None]


def test_relationships_are_relations_between_objects(tree: Tree) -> None:
    tree.write("objects", [{"id": 1, "objects": [thing(5, "shade"), thing(6, "street")]}])
    row = {"id": 15927, "predicate": "ON top", "subject": end(5, "shade"), "object": end(6, "street")}
    record, counts = first(tree.write("relationships", [{"id": 1, "relationships": [row]}]).source())

    assert record.relations == [Relation("o5", "ON top", "o6")]
    assert len(record.regions) == 2
    assert not counts


def test_an_object_that_only_attributes_or_a_relationship_name_is_a_region_from_its_own_box(tree: Tree) -> None:
    tree.write("objects", [{"id": 1, "objects": [thing(5, "shade")]}])
    tree.write("attributes", [{"id": 1, "attributes": [thing(6, "clock", x=0, attributes=["green"])]}])
    row = {"id": 1, "predicate": "on", "subject": end(5, "shade"), "object": end(7, "street", x=1)}
    record, _ = first(tree.write("relationships", [{"id": 1, "relationships": [row]}]).source())

    assert [(region.id, region.label, region.box, region.attributes) for region in record.regions] == [
        ("o5", "shade", [2.0, 3.0, 12.0, 8.0], None),
        ("o6", "clock", [0.0, 3.0, 10.0, 8.0], '["green"]'),
        ("o7", "street", [1.0, 3.0, 11.0, 8.0], None),
    ]
    assert record.relations == [Relation("o5", "on", "o7")]


def test_region_descriptions_are_regions_and_expressions(tree: Tree) -> None:
    region = {"image": 1, "x": 2, "y": 3, "width": 10, "height": 5, "phrase": "shade is along the street ", "id": 1383}
    record, _ = first(tree.write("region_descriptions", [{"regions": [region], "id": 1}]).source())

    assert [(region.id, region.label, region.box) for region in record.regions] == [("r1383", None, [2.0, 3.0, 12.0, 8.0])]
    assert record.expressions == [Expression("shade is along the street ", ["r1383"])]  # untouched: the blank stays


def test_the_first_question_and_answer_are_the_turns_and_the_others_choices(tree: Tree) -> None:
    qas = [{"qa_id": n, "image_id": 1, "question": f"Q{n}?", "answer": f"A{n}.", "a_objects": [], "q_objects": []} for n in (7, 5)]
    record, _ = first(tree.write("question_answers", [{"id": 1, "qas": qas}]).source())

    said = [[(turn.role, [part.image if part.text is None else part.text for part in turn.parts]) for turn in record.turns]]
    said += [[(turn.role, [part.image if part.text is None else part.text for part in turn.parts]) for turn in record.choices[0].turns]]
    assert said == [[("user", [0, "Q7?"]), ("assistant", ["A7."])], [("user", [0, "Q5?"]), ("assistant", ["A5."])]]
    assert len(record.choices) == 1


def test_an_image_that_nobody_asked_about_has_one_turn_that_holds_it(tree: Tree) -> None:
    record, counts = first(tree.source())

    assert [(turn.role, [part.image for part in turn.parts]) for turn in record.turns] == [("text", [0])]
    assert counts == {("notes", "image_without_annotation"): 1}


def test_meta_keeps_ids_and_url(tree: Tree) -> None:
    record, _ = first(tree.write("image_data", [image_row(1, coco_id=77, flickr_id="88")]).source())

    url = "https://cs.stanford.edu/people/rak248/VG_100K/1.jpg"
    assert json.loads(record.meta) == {"id": 1, "url": url, "coco_id": 77, "flickr_id": "88"}


def test_both_generations_of_names_give_the_same_record(tree: Tree) -> None:
    ends = {"subject": end(5, "shade"), "object": end(6, "street")}
    region = {"image": 1, "id": 9, "phrase": "a clock", "x": 2, "y": 3, "width": 10, "height": 5}
    tree.write("objects", [{"id": 1, "objects": [thing(5, "shade")]}])
    tree.write("attributes", [{"id": 1, "attributes": [{"id": 5, "object_names": ["shade"], "attributes": ["green"]} | BOX]}])
    tree.write("relationships", [{"id": 1, "relationships": [{"id": 3, "predicate": "on"} | ends]}])
    tree.write("region_descriptions", [{"id": 1, "regions": [region]}])
    tree.write("question_answers", [{"id": 1, "qas": [{"qa_id": 4, "question": "Q?", "answer": "A."}]}])
    old, _ = first(tree.source())

    size = {"x": 2, "y": 3, "width": 10, "height": 5}
    five, six = ({"object_id": id, "names": [name], "synsets": [f"{name}.n.01"]} | size for id, name in ((5, "shade"), (6, "street")))
    tree.write("image_data", [{"id": 1} | {name: value for name, value in image_row(1).items() if name != "image_id"}])
    tree.write("objects", [{"image_id": 1, "objects": [five | {"merged_object_ids": []}], "image_url": "https://x/VG_100K/1.jpg"}])
    tree.write("attributes", [{"image_id": 1, "attributes": [five | {"attributes": ["green"]}]}])
    tree.write(
        "relationships", [{"image_id": 1, "relationships": [{"relationship_id": 3, "predicate": "on", "subject": five, "object": six}]}]
    )
    tree.write("region_descriptions", [{"image_id": 1, "regions": [{"region_id": 9, "image_id": 1, "phrase": "a clock"} | size]}])
    tree.write("question_answers", [{"image_id": 1, "qas": [{"qa_id": 4, "question": "Q?", "answer": "A."}]}])
    new, _ = first(tree.source())

    assert new == old
    assert (len(old.regions), len(old.relations), len(old.expressions), len(old.turns)) == (3, 1, 1, 2)


# What is wrong with them


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"x": -5}, "box_outside"),
        ({"w": 40}, "box_outside"),
        ({"h": 0}, "box_empty"),
        ({"y": float("nan")}, "box_not_finite"),
        ({"w": None}, "box_missing"),
        ({"x": "2"}, "schema"),
    ],
)
def test_a_box_that_can_not_be_kept_drops_its_object_by_reason(tree: Tree, more: dict[str, Any], reason: str) -> None:
    record, counts = first(tree.write("objects", [{"id": 1, "objects": [thing(5, "clock", **more), thing(6, "bike")]}]).source())

    assert [region.id for region in record.regions] == ["o6"]
    assert counts == {("regions_dropped", reason): 1}


def test_a_box_less_than_a_pixel_outside_is_clipped(tree: Tree) -> None:
    record, counts = first(tree.write("objects", [{"id": 1, "objects": [thing(5, "clock", x=22.5)]}]).source())

    assert record.regions[0].box == [22.5, 3.0, 32.0, 8.0]
    assert counts == {("mended", "box_clipped"): 1}


def test_what_refers_to_a_dropped_object_is_dropped_with_it(tree: Tree) -> None:
    tree.write("objects", [{"id": 1, "objects": [thing(5, "clock", w=99), thing(6, "bike")]}])
    tree.write("attributes", [{"id": 1, "attributes": [thing(5, "clock", w=99, attributes=["green"])]}])
    row = {"id": 1, "predicate": "on", "subject": end(5, "clock", w=99), "object": end(6, "bike")}
    record, counts = first(tree.write("relationships", [{"id": 1, "relationships": [row]}]).source())

    assert [region.id for region in record.regions] == ["o6"]
    assert record.relations == []
    assert counts == {("regions_dropped", "box_outside"): 1, ("relations_dropped", "no_region"): 1}


def test_the_expression_of_a_dropped_region_is_dropped_with_it(tree: Tree) -> None:
    regions = [{"id": 9, "phrase": "a clock", "x": 2, "y": -20, "width": 10, "height": 5}]
    record, counts = first(tree.write("region_descriptions", [{"id": 1, "regions": regions}]).source())

    assert (record.regions, record.expressions) == ([], [])
    assert counts == {("regions_dropped", "box_outside"): 1, ("expressions_dropped", "no_region"): 1}


def test_where_files_differ_about_an_object_objects_json_counts(tree: Tree) -> None:
    tree.write("objects", [{"id": 1, "objects": [thing(5, "shade")]}])
    row = {"id": 1, "predicate": "by", "subject": end(5, "awning", x=20), "object": end(5, "shade")}
    record, counts = first(tree.write("relationships", [{"id": 1, "relationships": [row]}]).source())

    assert [(region.id, region.label, region.box) for region in record.regions] == [("o5", "shade", [2.0, 3.0, 12.0, 8.0])]
    assert record.relations == [Relation("o5", "by", "o5")]
    assert counts == {("mended", "object_box_differs"): 1}


def test_an_object_listed_twice_is_one_region(tree: Tree) -> None:
    record, counts = first(tree.write("objects", [{"id": 1, "objects": [thing(5, "shade"), thing(5, "shade")]}]).source())

    assert [region.id for region in record.regions] == ["o5"]
    assert counts == {("mended", "object_repeated"): 1}


def test_a_merged_object_id_means_the_object_that_was_kept(tree: Tree) -> None:
    tree.write("objects", [{"image_id": 1, "objects": [thing(5, "shade", merged_object_ids=[6, 7]), thing(7, "street")]}])
    row = {"id": 1, "predicate": "on", "subject": end(6, "awning", x=20), "object": end(7, "street")}
    record, counts = first(tree.write("relationships", [{"id": 1, "relationships": [row]}]).source())

    assert [region.id for region in record.regions] == ["o5", "o7"]  # 7 is listed itself
    assert record.relations == [Relation("o5", "on", "o7")]
    assert counts == {("mended", "object_merged"): 1}


def test_a_relationship_may_name_objects_by_id_alone(tree: Tree) -> None:
    tree.write("objects", [{"id": 1, "objects": [thing(5, "shade"), thing(6, "street")]}])
    rows = [{"predicate": "on", "subject_id": 5, "object_id": 6}, {"predicate": "on", "subject_id": 5, "object_id": 99}]
    record, counts = first(tree.write("relationships", [{"id": 1, "relationships": rows}]).source())

    assert record.relations == [Relation("o5", "on", "o6")]
    assert counts == {("regions_dropped", "box_missing"): 1, ("relations_dropped", "no_region"): 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"predicate": None, "subject": end(5, "shade"), "object": end(6, "street")}, "predicate_missing"),
        ({"predicate": "on", "subject": end(5, "shade")}, "no_region"),
        ({"predicate": 7, "subject": end(5, "shade"), "object": end(6, "street")}, "schema"),
    ],
)
def test_a_relationship_that_is_none_is_dropped_by_reason(tree: Tree, row: dict[str, Any], reason: str) -> None:
    record, counts = first(tree.write("relationships", [{"id": 1, "relationships": [row]}]).source())

    assert record.relations == []
    assert counts == {("relations_dropped", reason): 1}


def test_a_region_without_phrase_stays_and_one_listed_twice_is_told_apart(tree: Tree) -> None:
    box = {"x": 2, "y": 3, "width": 10, "height": 5}
    regions = [{"id": 9, "phrase": " "} | box, {"id": 9, "phrase": "a clock"} | box, {"phrase": "nameless"} | box]
    record, counts = first(tree.write("region_descriptions", [{"id": 1, "regions": regions}]).source())

    assert [region.id for region in record.regions] == ["r9", "r9.2"]
    assert record.expressions == [Expression("a clock", ["r9.2"])]
    assert counts == {
        ("expressions_dropped", "phrase_missing"): 1,
        ("mended", "region_repeated"): 1,
        ("regions_dropped", "id_missing"): 1,
        ("expressions_dropped", "no_region"): 1,
    }


def test_a_question_without_answer_is_dropped_by_reason(tree: Tree) -> None:
    qas = [{"question": "Q?"}, {"question": "", "answer": "A."}, {"question": 5, "answer": "A."}, {"question": "Q?", "answer": "A."}]
    record, counts = first(tree.write("question_answers", [{"id": 1, "qas": qas}]).source())

    assert [turn.text() for turn in record.turns] == ["Q?", "A."]
    assert record.choices == []
    assert counts == {
        ("turns_dropped", "answer_missing"): 1,
        ("turns_dropped", "question_missing"): 1,
        ("turns_dropped", "schema"): 1,
    }


@pytest.mark.parametrize("regions", [None, "a clock", {"id": 9}])
def test_a_list_that_is_none_is_counted_and_the_image_stays(tree: Tree, regions: Any) -> None:
    rows = [{"id": 1, "regions": regions}, {"id": 2, "regions": []}]
    record, counts = first(tree.write("region_descriptions", rows).source())

    assert record.regions == []
    assert counts == ({} if regions is None else {("regions_dropped", "schema"): 1})


def test_a_lone_surrogate_drops_its_phrase_only(tree: Tree) -> None:
    box = {"x": 2, "y": 3, "width": 10, "height": 5}
    regions = [{"id": 8, "phrase": "\ud800"} | box, {"id": 9, "phrase": "a clock"} | box]
    record, counts = first(tree.write("region_descriptions", [{"id": 1, "regions": regions}]).source())

    assert record.expressions == [Expression("a clock", ["r9"])]
    assert counts == {("expressions_dropped", "phrase_missing"): 1}


# The join


def test_images_come_in_the_order_of_image_data_then_those_that_only_other_files_name(tree: Tree) -> None:
    tree.write("image_data", [image_row(2, "VG_100K_2")])
    tree.write("objects", [{"id": 1, "objects": [thing(5, "clock")]}, {"id": 2, "objects": [thing(6, "bike")]}])
    source = tree.source()
    samples = converted(source)

    records = [sample.record for sample in samples if isinstance(sample, Sample)]
    assert [(json.loads(record.meta)["id"], [region.id for region in record.regions]) for record in records] == [(2, ["o6"]), (1, ["o5"])]
    rows = [(row.file, row.number) for unit in source.units(None) for row in source.rows(unit)]
    assert rows == [("image_data.json", 0), ("objects.json", 0)]


def test_without_image_data_sizes_are_those_of_the_pictures(tree: Tree) -> None:
    tree.write("objects", [{"id": 1, "objects": [thing(5, "clock")]}])
    record, _ = first(tree.source(annotations=(tree.root / "v1.0.0/objects.json",)))

    assert (record.images[0].width, record.images[0].height) == (32, 24)
    assert [region.id for region in record.regions] == ["o5"]


def test_the_four_images_that_are_broken_upstream_are_rejected_by_name(tree: Tree) -> None:
    tree.write("image_data", [image_row(id) for id in (1, 1592, 1722, 4616, 4617)])

    assert reasons(tree.source()) == [None, *["known_broken"] * 4]


def test_an_image_that_image_data_has_twice_is_rejected_the_second_time(tree: Tree) -> None:
    tree.write("image_data", [image_row(1), image_row(1)]).write("objects", [{"id": 1, "objects": [thing(5, "clock")]}])

    assert [region.id for region in first(tree.source())[0].regions] == ["o5"]
    assert reasons(tree.source()) == [None, "image_id_repeated"]


def test_a_bad_row_of_image_data_is_a_reject(tree: Tree) -> None:
    tree.write(
        "image_data", [image_row(1, width="32"), {"url": "x", "width": 1, "height": 1}, image_row(2, "VG_100K_2", width=float("nan"))]
    )

    assert reasons(tree.source()) == ["schema", "schema", "json"]


def test_rows_that_can_not_be_read_and_second_rows_are_counted(tree: Tree) -> None:
    row = {"id": 1, "objects": [thing(5, "clock")]}
    source = tree.write("objects", [row, row, {"objects": []}, {"id": "one", "objects": []}]).source()

    assert [region.id for region in first(source)[0].regions] == ["o5"]
    assert source.notes() == {("annotations_dropped", "image_id_repeated"): 1, ("annotations_dropped", "schema"): 2}


# Pictures


def test_a_missing_picture_and_one_of_another_size_are_rejected(tree: Tree) -> None:
    tree.write("image_data", [image_row(3), image_row(1, width=33)])

    assert reasons(tree.source()) == ["image_missing", "size_differs"]


@pytest.mark.parametrize("place", [".", "images.zip"])
def test_pictures_are_found_below_their_folders_too(tree: Tree, place: str) -> None:
    with zipfile.ZipFile(tree.root / "images.zip", "w") as zip:
        for name in ("VG_100K/1.jpg", "VG_100K_2/2.jpg"):
            zip.write(tree.root / name, name)
    source = tree.source(images=(tree.root / place,))

    assert reasons(source) == [None, None]
    assert list(source.references()) == [["VG_100K/1.jpg"], ["VG_100K_2/2.jpg"]]


def test_references_name_the_picture_of_every_item_missing_ones_too(tree: Tree) -> None:
    tree.write("image_data", [image_row(1), image_row(3), {"url": "x", "width": 1, "height": 1}])
    source = tree.write("objects", [{"id": 2, "objects": []}]).source()

    assert list(source.references()) == [["1.jpg"], ["3.jpg"], [], ["2.jpg"]]


# Files that are not what they claim


def test_a_file_is_known_by_its_rows_whatever_its_name(tree: Tree) -> None:
    path = tree.root / "a.json"
    path.write_text(json.dumps([{"id": 1, "regions": [{"id": 9, "phrase": "a clock", "x": 2, "y": 3, "width": 10, "height": 5}]}]))

    assert [region.id for region in first(tree.source(annotations=(tree.root / "v1.0.0", path)))[0].regions] == ["r9"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"id": "1", "image": "1.jpg", "conversations": []}]', "found id, image, conversations"),
        ('{"images": [], "annotations": []}', "found images, annotations"),
        ('[{"image_id": 1, "objects": [], "relationships": []}]', "found image_id, objects, relationships"),
        ('[{"objects": []}]', "expected rows of Visual Genome with image_id or id"),
        ('[["a", "b"]]', "found list"),
        ("[]", "empty list"),
        ('[{"id": 1, "objects": [', "line 1, byte 23"),
        ("", "an empty file"),
    ],
    ids=["llava", "coco", "scene graphs", "no id", "lists", "no rows", "cut", "empty"],
)
def test_a_file_that_is_not_of_visual_genome_is_named_in_one_line(tree: Tree, content: str, message: str) -> None:
    path = tree.root / "other.json"
    path.write_text(content)

    with pytest.raises(SourceError, match=r"other\.json") as caught:
        tree.source(annotations=(path,)).units(None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_files_of_one_kind_are_refused(tree: Tree) -> None:
    tree.write("objects", [{"id": 1, "objects": []}]).write("objects_v1_2", [{"id": 1, "objects": []}])

    with pytest.raises(RequestError, match="one file of objects"):
        tree.source().units(None)


def test_a_missing_file_an_empty_folder_or_a_missing_store_is_named(tree: Tree) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.json"):
        tree.source(annotations=(tree.root / "nowhere.json",)).units(None)
    with pytest.raises(SourceError, match="VG_100K: expected image_data"):
        tree.source(annotations=(tree.root / "VG_100K",)).units(None)
    with pytest.raises(RequestError, match="nowhere"):
        tree.source(images=(tree.root / "nowhere",)).units(None)
