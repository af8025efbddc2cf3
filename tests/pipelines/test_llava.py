"""LLaVA rows, quirk by quirk."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pipelines.check import check
from pipelines.llava import Llava
from pipelines.source import Sample
from schemas import Reject, RequestError, SourceError, validate

KEY = "000000-00000000"
QUESTION = {"from": "human", "value": "<image>\nWhat is it?"}
ANSWER = {"from": "gpt", "value": "A bus."}


@pytest.fixture
def pictures(tmp_path: Path, photo: Callable[..., bytes]) -> Path:
    """a.jpg (32x24), b.jpg (16x12), c.png; bad.jpg is a page of HTML."""
    folder = tmp_path / "pictures"
    (folder / "vg").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(photo(32, 24, 1))
    (folder / "b.jpg").write_bytes(photo(16, 12, 2))
    (folder / "c.png").write_bytes(photo(8, 8, 3, "PNG"))
    (folder / "vg" / "1.jpg").write_bytes(photo(8, 8, 4))
    (folder / "bad.jpg").write_bytes(b"<html>no longer available</html>" * 9)
    return folder


@pytest.fixture
def source(tmp_path: Path, pictures: Path) -> Callable[..., Llava]:
    """source(row, ...): these rows as a JSON list."""

    def make(*rows: Any, **options: Any) -> Llava:
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(rows))
        return Llava(annotations=(path,), images=(pictures,), **options)

    return make


def outcomes(source: Llava, limit: int | None = None) -> list[Sample | Reject]:
    """What each row becomes; every record is valid."""
    found: list[Sample | Reject] = []
    for unit in source.units(limit):
        for row in source.rows(unit):
            try:
                found.append(source.sample(row))
            except Reject as reject:
                found.append(reject)
    for sample in found:
        if isinstance(sample, Sample):
            _validated(sample)
    return found


def _validated(sample: Sample) -> None:
    sample.record.key = KEY
    for index, image in enumerate(sample.record.images):
        image.member = f"{KEY}.{index}.{image.format}"
    assert len(sample.files) == len(sample.record.images)
    validate(sample.record)


def only(source: Llava) -> Sample:
    (sample,) = outcomes(source)
    if isinstance(sample, Reject):
        raise sample
    return sample


def reason(source: Llava) -> str:
    (reject,) = outcomes(source)
    assert isinstance(reject, Reject)
    return reject.reason


def parts(sample: Sample, turn: int = 0) -> list[str | int | None]:
    """A turn's parts: texts as strings, pictures as numbers."""
    return [part.image if part.text is None else part.text for part in sample.record.turns[turn].parts]


def meta(sample: Sample) -> dict[str, Any]:
    return json.loads(sample.record.meta)


def row(*values: str, **fields: Any) -> dict[str, Any]:
    """A row of alternating human and gpt turns."""
    turns = [{"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)]
    return {"id": "7", "conversations": turns, **fields}


def test_a_row_becomes_a_record_with_its_picture_where_the_marker_stands(source: Callable[..., Llava], pictures: Path) -> None:
    sample = only(source({"id": "000000033471", "image": "a.jpg", "conversations": [QUESTION, ANSWER]}))

    assert [turn.role for turn in sample.record.turns] == ["user", "assistant"]
    assert parts(sample) == [0, "\nWhat is it?"]
    assert parts(sample, 1) == ["A bus."]
    image = sample.record.images[0]
    assert (image.origin, image.width, image.height, image.format) == ("a.jpg", 32, 24, "jpg")
    assert sample.files == [(pictures / "a.jpg").read_bytes()]
    assert meta(sample) == {"id": "000000033471"}
    assert not sample.counts


def test_a_marker_may_stand_anywhere_in_a_turn_and_no_text_is_touched(source: Callable[..., Llava]) -> None:
    sample = only(source(row(" Look \n<image>  here. ", " Yes.\n", "and <image>?", "no", image="a.jpg")))

    assert parts(sample, 0) == [" Look \n", 0, "  here. "]
    assert parts(sample, 1) == [" Yes.\n"]
    assert parts(sample, 2) == ["and ", 0, "?"]


def test_as_many_markers_as_pictures_are_placed_in_order(source: Callable[..., Llava]) -> None:
    sample = only(source(row("<image><image>\nWhich?", "The second.", "And <image>", "b", image=["b.jpg", "a.jpg", "c.png"])))

    assert [image.origin for image in sample.record.images] == ["b.jpg", "a.jpg", "c.png"]
    assert parts(sample, 0) == [0, 1, "\nWhich?"]
    assert parts(sample, 2) == ["And ", 2]


def test_another_number_of_markers_than_pictures_is_a_reject(source: Callable[..., Llava]) -> None:
    assert reason(source(row("<image> or", "b", image=["a.jpg", "b.jpg"]))) == "markers_differ"


def test_pictures_without_any_marker_stand_first_and_are_counted_and_listed(source: Callable[..., Llava]) -> None:
    said = {"id": 1, "image": ["a.jpg", "b.jpg"], "conversations": [{"from": "system", "value": "Be brief."}, ANSWER]}
    sample = only(source(said))

    assert parts(sample) == [0, 1, "Be brief."]
    assert sample.counts == {("mended", "image_unplaced"): 2}
    assert meta(sample) == {"id": 1, "unplaced": [0, 1]}


@pytest.mark.parametrize("picture", [{}, {"image": None}, {"image": ""}, {"image": []}])
def test_a_row_without_a_picture_is_text_and_its_marker_stays_text(source: Callable[..., Llava], picture: dict[str, Any]) -> None:
    sample = only(source(row("How do I write <image> in HTML?", "So.", model="", **picture)))

    assert sample.record.images == []
    assert parts(sample) == ["How do I write <image> in HTML?"]
    assert meta(sample) == {"id": "7"}


def test_a_bad_picture_of_several_is_dropped_with_its_marker_and_named(source: Callable[..., Llava]) -> None:
    sample = only(source(row("First <image>, then <image> and <image>.", "Yes", image=["a.jpg", "bad.jpg", "b.jpg"])))

    assert [image.origin for image in sample.record.images] == ["a.jpg", "b.jpg"]
    assert parts(sample) == ["First ", 0, ", then  and ", 1, "."]
    assert sample.counts == {("images_dropped", "image_format"): 1}
    assert meta(sample)["dropped"] == ["bad.jpg"]


@pytest.mark.parametrize(
    ("image", "expected"),
    [("bad.jpg", "image_format"), ("gone.jpg", "image_missing"), ("../a.jpg", "image_path"), (["gone.jpg", "bad.jpg"], "image_missing")],
)
def test_a_row_whose_pictures_are_all_bad_is_a_reject(source: Callable[..., Llava], image: Any, expected: str) -> None:
    assert reason(source(row("What?", "That.", image=image))) == expected


def test_a_picture_under_another_suffix_is_found_by_its_stem(source: Callable[..., Llava]) -> None:
    sample = only(source(row("<image>", "x", image="c.jpg")))

    assert (sample.record.images[0].origin, sample.record.images[0].format) == ("c.png", "png")
    assert sample.counts == {("mended", "other_suffix"): 1}


def test_other_names_of_fields_and_roles_are_read(source: Callable[..., Llava]) -> None:
    said = [("system", "s"), ("user", "u<image>"), ("assistant", "a"), ("function", "f"), ("tool", "t")]
    sample = only(source({"messages": [{"role": role, "content": text} for role, text in said], "images": ["a.jpg"]}))

    assert [turn.role for turn in sample.record.turns] == ["system", "user", "assistant", "tool", "tool"]
    assert parts(sample, 1) == ["u", 0]
    assert meta(sample) == {}


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"id": 1, "conversations": []}, "no_turns"),
        ({"id": 1, "conversations": None}, "no_turns"),
        ({"id": 1, "conversations": [{"from": "bard", "value": "x"}]}, "role"),
        ({"id": 1, "conversations": [{"value": "x"}]}, "role"),
        ({"id": 1, "conversations": [{"from": "human", "value": None}]}, "schema"),
        ({"id": 1, "conversations": [{"from": "human", "value": 3}]}, "schema"),
        ({"id": [1], "conversations": [QUESTION, ANSWER]}, "schema"),
        ({"id": 1, "image": {"url": "a.jpg"}, "conversations": [QUESTION, ANSWER]}, "schema"),
        ({"id": 1, "video": "a.mp4", "conversations": [QUESTION, ANSWER]}, "video"),
        ("a string", "schema"),
    ],
)
def test_a_row_that_can_not_be_one_is_a_reject_by_name(source: Callable[..., Llava], bad: Any, expected: str) -> None:
    good, reject = outcomes(source({"image": "a.jpg", "conversations": [QUESTION, ANSWER]}, bad))

    assert isinstance(good, Sample)
    assert isinstance(reject, Reject)
    assert reject.reason == expected


def test_the_frame_of_boxes_in_the_text_is_noted_where_it_is_known(source: Callable[..., Llava]) -> None:
    box, none = "Where? [0.12, 0.3, 0.5, 1.0]", "What is [1, 2, 3, 4]?"
    samples = outcomes(source(row(box, "x", image="vg/1.jpg"), row(none, "x", image="vg/1.jpg"), row(box, "x", image="a.jpg")))

    frames = [meta(sample).get("box_frame") for sample in samples if isinstance(sample, Sample)]
    assert frames == ["unit_padded_square", None, None]
    assert isinstance(samples[0], Sample)
    assert parts(samples[0]) == [0, box]


def test_the_meta_file_adds_urls_by_id_whatever_its_order_and_the_ids_type(source: Callable[..., Llava], tmp_path: Path) -> None:
    rows = [{"id": 5, "url": "http://five", "blip_caption": "a bus"}, {"id": "001", "url": "http://one"}, {"id": "001", "url": "again"}, 3]
    (tmp_path / "meta.json").write_text(json.dumps(rows))
    given = source(*(row("q", "a") | {"id": id} for id in ("001", "5", "nowhere")), meta=tmp_path / "meta.json")
    given.units(None)

    samples = outcomes(pickle.loads(pickle.dumps(given)))

    assert [meta(sample).get("url") for sample in samples if isinstance(sample, Sample)] == ["http://one", "http://five", None]
    assert [dict(sample.counts) for sample in samples if isinstance(sample, Sample)] == [{}, {}, {("notes", "no_meta"): 1}]


def test_a_meta_file_in_the_place_of_conversations_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "meta.json"
    path.write_text(json.dumps([{"id": "1", "image": "a.jpg", "blip_caption": "a bus", "url": "http://one"}]))

    with pytest.raises(SourceError, match=r"meta\.json: expected rows with conversations or messages, found id, image, blip_caption, url"):
        Llava(annotations=(path,)).units(None)
    with pytest.raises(SourceError, match="expected rows with conversations"):
        list(Llava(annotations=(path,)).references())


def test_conversations_in_the_place_of_the_meta_file_are_an_error(source: Callable[..., Llava]) -> None:
    given = source(row("q", "a"))

    with pytest.raises(SourceError, match="expected rows with url, found id, conversations"):
        Llava(annotations=given.annotations, meta=given.annotations[0]).units(None)


def test_rows_that_name_pictures_need_a_folder_of_them(source: Callable[..., Llava]) -> None:
    given = source(row("<image>", "a", image="a.jpg"))

    with pytest.raises(RequestError, match=r"expected --images, for rows that name pictures \(a\.jpg\), found none"):
        Llava(annotations=given.annotations).units(None)


def test_text_alone_needs_no_pictures(source: Callable[..., Llava]) -> None:
    given = source(row("q", "a"))

    assert isinstance(outcomes(Llava(annotations=given.annotations))[0], Sample)


def test_repeated_ids_are_kept_and_counted_as_a_note(source: Callable[..., Llava]) -> None:
    rows = [row("q", "a") | {"id": id} for id in ("1", 1, "2", None, None, "2", "1")]
    given = source(*rows, {"conversations": [ANSWER]}, {"conversations": [ANSWER]})

    assert given.notes() == {("notes", "repeated_id"): 3}
    assert all(isinstance(sample, Sample) for sample in outcomes(given))


def test_a_list_and_lines_give_the_same_records(tmp_path: Path, pictures: Path) -> None:
    rows = [row("<image>", "a", image="a.jpg"), row("q", "a")]
    (tmp_path / "rows.json").write_text("\ufeff" + json.dumps(rows))
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(one) for one in rows) + "\n\n")

    listed, lines = ([_plain(one) for one in outcomes(_given(tmp_path / name, pictures))] for name in ("rows.json", "rows.jsonl"))

    assert listed == lines
    assert len(listed) == 2


def _given(path: Path, pictures: Path) -> Llava:
    return Llava(annotations=(path,), images=(pictures,))


def _plain(sample: Sample | Reject) -> Any:
    assert isinstance(sample, Sample)
    return sample.record


def test_several_files_are_read_one_after_another_and_rows_say_where_they_stood(tmp_path: Path, pictures: Path) -> None:
    for name, ids in (("x.json", (1, 2)), ("y.json", (3,))):
        (tmp_path / name).write_text(json.dumps([row("q", "a") | {"id": id} for id in ids]))
    source = Llava(annotations=(tmp_path / "x.json", tmp_path / "y.json"), images=(pictures,))

    rows = [one for unit in source.units(None) for one in source.rows(unit)]

    assert [(one.file, one.number) for one in rows] == [("x.json", 0), ("x.json", 1), ("y.json", 0)]
    assert [meta(source.sample(one))["id"] for one in rows] == [1, 2, 3]
    assert sum(len(unit) for unit in source.units(2)) == 2


def test_one_bad_row_costs_no_other(tmp_path: Path, pictures: Path) -> None:
    good = json.dumps(row("q", "a"))
    path = tmp_path / "rows.json"
    path.write_text(f'[{good}, {{"id": NaN, "conversations": []}}, {good}, {{"id": "\\ud800"}}, {good},]')

    found = outcomes(_given(path, pictures))

    assert [one.reason if isinstance(one, Reject) else "written" for one in found] == ["written", "json", "written", "json", "written"]


def test_references_name_the_pictures_of_every_row(source: Callable[..., Llava]) -> None:
    given = source(row("q", "a", image="a.jpg"), row("q", "a"), row("q", "a", image=["a.jpg", "b.jpg"]), row("q", "a", image=5), 3)

    assert [list(names) for names in given.references()] == [["a.jpg"], [], ["a.jpg", "b.jpg"], [], []]


def test_check_counts_what_is_there_and_what_is_not(source: Callable[..., Llava]) -> None:
    names: Iterable[Any] = ("a.jpg", "a.jpg", "c.jpg", "vg/9.jpg", None, ["b.jpg", "gone.jpg"])

    found = check(source(*(row("q", "a", image=name) for name in names)))

    assert (found["records"], found["image_references"], found["unreferenced_files"]) == (6, 6, 2)
    assert found["images"] == {"distinct": 5, "present": 2, "missing": 2, "other_suffix": 1}
    assert found["missing_by_folder"] == {"vg": 1, ".": 1}


def test_what_can_grow_in_meta_is_bounded(source: Callable[..., Llava]) -> None:
    sample = only(source(row("q", "a", url="http://" + "x" * 70_000, model="vicuna")))

    assert len(meta(sample)["url"]) == 1000
    assert meta(sample)["model"] == "vicuna"
    assert sample.counts == {("mended", "meta_cut"): 1}


@pytest.mark.parametrize("verify", ["header", "decode"])
def test_of_pictures_that_break_readers_every_one_is_written_or_rejected(data: Path, tmp_path: Path, verify: str) -> None:
    lines = (data / "hard_images" / "MANIFEST.tsv").read_text().splitlines()
    head, *rows = [line.split("\t") for line in lines if not line.startswith("#")]
    path = tmp_path / "hard.json"
    path.write_text(json.dumps([row("<image>", "x", image=fields[0]) for fields in rows]))

    found = outcomes(Llava(annotations=(path,), images=(data / "hard_images",), verify=verify))

    assert len(found) == len(rows)
    if verify == "decode":
        loads = [len(fields) > head.index("load") and fields[head.index("load")] == "ok" for fields in rows]
        foreign = [fields[head.index("format")] in ("JPEG2000",) for fields in rows]
        wanted = [load and not other for load, other in zip(loads, foreign, strict=True)]
        assert [isinstance(one, Sample) for one in found] == wanted
