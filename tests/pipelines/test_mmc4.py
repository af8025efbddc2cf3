"""pipelines/mmc4.py: documents of sentences and matched pictures."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import mmc4
from pipelines.mmc4 import Mmc4
from pipelines.source import Sample
from schemas import Reject, RequestError, SourceError, validate
from schemas.validate import MAX_META

SENTENCES = ["Lock the door.", "Press the switch.", "Both lock."]
MATRIX = [[0.24, 0.31, 0.27], [0.22, 0.32, 0.26]]


def entry(name: str, index: int | None = 0, similarity: float | None = 0.25, **more: Any) -> dict[str, Any]:
    """An entry of image_info."""
    common = {"face_detections": None, "raw_url": f"http://a.b/{name}"}
    return {**common, "image_name": name, "matched_sim": similarity, "matched_text_index": index, **more}


def document(*info: dict[str, Any], text: Any = SENTENCES, matrix: Any = None, **more: Any) -> dict[str, Any]:
    """A line of an MMC4 shard."""
    common = {"text_list": text, "url": "http://a.b/page", "could_have_url_duplicate": 0}
    return {**common, "image_info": list(info), "similarity_matrix": matrix, **more}


def lines(*documents: Any) -> bytes:
    """JSON lines."""
    return "".join(f"{json.dumps(one)}\n" for one in documents).encode()


def zipped(path: Path, data: bytes, member: str = "docs.jsonl") -> Path:
    """A zip with one file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Callable[..., Path]:
    """shard(*documents): a plain shard numbered 7."""

    def make(*documents: Any, name: str = "docs_shard_7_v2.jsonl") -> Path:
        (tmp_path / name).write_bytes(lines(*documents))
        return tmp_path / name

    return make


@pytest.fixture
def pictures(tmp_path: Path, photo: Callable[..., bytes]) -> Path:
    """The folder of pictures, a.jpg, b.jpg and c.jpg in that of shard 7."""
    (tmp_path / "images/7").mkdir(parents=True)
    for seed, name in enumerate("abc"):
        (tmp_path / f"images/7/{name}.jpg").write_bytes(photo(seed=seed))
    return tmp_path / "images"


def samples(source: Mmc4, limit: int | None = None) -> Iterator[Sample | Reject]:
    """What the runner would write: every record validated under a key."""
    for unit in pickle.loads(pickle.dumps(source.units(limit))):
        for row in source.rows(unit):
            try:
                sample = source.sample(row)
            except Reject as reject:
                yield reject
                continue
            sample.record.key = "000000-00000000"
            for index, image in enumerate(sample.record.images):
                image.member = f"000000-00000000.{index}.{image.format}"
            validate(sample.record)
            assert [len(data) for data in sample.files] == [image.bytes for image in sample.record.images]
            yield sample


def one(source: Mmc4) -> Sample:
    """The only record."""
    (sample,) = samples(source)
    assert isinstance(sample, Sample), sample
    return sample


def refusals(source: Mmc4) -> list[str]:
    """The reason of each item that is a reject."""
    return [item.reason for item in samples(source) if isinstance(item, Reject)]


def shown(sample: Sample) -> list[str | int | None]:
    """The parts: texts and image indices."""
    return [part.text if part.image is None else part.image for part in sample.record.turns[0].parts]


def meta(sample: Sample) -> dict[str, Any]:
    """The record's meta."""
    return json.loads(sample.record.meta)


def test_each_picture_stands_directly_before_its_sentence(shard: Any, pictures: Path) -> None:
    path = shard(document(entry("a.jpg", 2, 0.27), entry("b.jpg", 1, 0.32), matrix=MATRIX))

    sample = one(Mmc4(annotations=(path,), images=(pictures,)))

    assert shown(sample) == ["Lock the door. ", 1, "Press the switch. ", 0, "Both lock."]
    assert [image.origin for image in sample.record.images] == ["7/a.jpg", "7/b.jpg"]
    assert [image.similarity for image in sample.record.images] == [0.27, 0.32]
    assert (sample.record.turns[0].role, sample.record.source, sample.counts) == ("text", "mmc4", {})
    assert meta(sample) == {
        "id": "http://a.b/page",
        "url": "http://a.b/page",
        "could_have_url_duplicate": 0,
        "raw_urls": ["http://a.b/a.jpg", "http://a.b/b.jpg"],
    }


def test_several_pictures_of_a_sentence_stand_in_upstream_order(shard: Any, pictures: Path) -> None:
    path = shard(document(entry("b.jpg", 1), entry("a.jpg", 1), entry("c.jpg", 0), text=["One.", "Two."]))

    sample = one(Mmc4(annotations=(path,), images=(pictures,)))

    assert shown(sample) == [2, "One. ", 0, 1, "Two."]


def test_argmax_takes_the_likest_sentence_and_lsa_a_sentence_each(shard: Any, pictures: Path) -> None:
    path = shard(document(entry("a.jpg", 2), entry("b.jpg", 1), matrix=[[0.24, 0.31, 0.27], [0.22, 0.34, 0.21]]))

    argmax = one(Mmc4(annotations=(path,), images=(pictures,), assignment="argmax"))
    lsa = one(Mmc4(annotations=(path,), images=(pictures,), assignment="lsa"))

    assert shown(argmax) == ["Lock the door. ", 0, 1, "Press the switch. ", "Both lock."]
    assert [image.similarity for image in argmax.record.images] == [0.31, 0.34]
    assert shown(lsa) == ["Lock the door. ", 1, "Press the switch. ", 0, "Both lock."]
    assert [image.similarity for image in lsa.record.images] == [0.27, 0.34]


def test_pictures_that_lsa_leaves_over_stand_first_and_are_named(shard: Any, pictures: Path) -> None:
    path = shard(
        document(entry("a.jpg"), entry("b.jpg"), entry("c.jpg"), text=["One.", "Two."], matrix=[[0.3, 0.2], [0.1, 0.1], [0.2, 0.4]])
    )

    sample = one(Mmc4(annotations=(path,), images=(pictures,), assignment="lsa"))

    assert shown(sample) == [1, 0, "One. ", 2, "Two."]
    assert [image.similarity for image in sample.record.images] == [0.3, None, 0.4]
    assert (meta(sample)["unplaced"], sample.counts) == ([1], {("mended", "image_unplaced"): 1})


@pytest.mark.parametrize("index", [3, -1, None])
def test_an_index_outside_the_text_leaves_its_picture_without_a_sentence(shard: Any, pictures: Path, index: int | None) -> None:
    sample = one(Mmc4(annotations=(shard(document(entry("a.jpg", index))),), images=(pictures,)))

    assert shown(sample) == [0, "Lock the door. ", "Press the switch. ", "Both lock."]
    assert (meta(sample)["unplaced"], sample.record.images[0].similarity) == ([0], None)


@pytest.mark.parametrize("matrix", [None, [[0.1, 0.2]], [], [[0.1, 0.2, float("nan")]], [[0.1, 0.2, None]], "no", [[[1]]]])
def test_a_matrix_that_is_none_stops_only_who_needs_it(shard: Any, pictures: Path, matrix: Any) -> None:
    path = shard(document(entry("a.jpg", 2, 0.27), matrix=matrix))

    matched = one(Mmc4(annotations=(path,), images=(pictures,)))

    assert matched.record.images[0].similarity == 0.27
    assert refusals(Mmc4(annotations=(path,), images=(pictures,), assignment="lsa")) == ["similarity_matrix"]
    assert refusals(Mmc4(annotations=(path,), images=(pictures,), assignment="argmax")) == ["similarity_matrix"]


def test_nan_is_read_as_null_and_counted(shard: Any, pictures: Path) -> None:
    path = shard(document(entry("a.jpg", 0, float("nan")), text=["Not NaN."], matrix=[[float("-inf")]]))

    sample = one(Mmc4(annotations=(path,), images=(pictures,)))

    assert (shown(sample), sample.record.images[0].similarity) == ([0, "Not NaN."], None)
    assert sample.counts == {("mended", "json_nan"): 2}


def test_small_pictures_are_dropped_before_the_assignment(shard: Any, pictures: Path, photo: Callable[..., bytes]) -> None:
    (pictures / "7/b.jpg").write_bytes(photo(300, 300))
    path = shard(document(entry("a.jpg"), entry("b.jpg"), text=["One.", "Two."], matrix=[[0.9, 0.1], [0.5, 0.4]]))

    sample = one(Mmc4(annotations=(path,), images=(pictures,), assignment="lsa", min_image_bytes=11_000))

    assert shown(sample) == [0, "One. ", "Two."]
    assert (sample.record.images[0].origin, sample.record.images[0].similarity) == ("7/b.jpg", 0.5)
    assert sample.counts == {("images_dropped", "image_min_bytes"): 1}
    assert refusals(Mmc4(annotations=(path,), images=(pictures,), min_image_bytes=1_000_000)) == ["image_min_bytes"]


def test_a_picture_of_exactly_the_least_size_is_kept(shard: Any, pictures: Path) -> None:
    size = (pictures / "7/a.jpg").stat().st_size
    path = shard(document(entry("a.jpg")))

    assert len(one(Mmc4(annotations=(path,), images=(pictures,), min_image_bytes=size)).files) == 1
    assert refusals(Mmc4(annotations=(path,), images=(pictures,), min_image_bytes=size + 1)) == ["image_min_bytes"]


def test_bad_pictures_are_dropped_by_reason_and_the_last_one_is_a_reject(shard: Any, pictures: Path) -> None:
    (pictures / "7/html.jpg").write_bytes(b"<html></html>")
    good, bad = entry("a.jpg", 1, 0.32), [entry("gone.jpg", 0), entry("html.jpg", 0), entry("../../../etc/passwd", 0)]
    path = shard(document(*bad, good, matrix=[*[[0.1] * 3] * 3, [0.1, 0.3, 0.1]]), document(*bad))

    sample, reject = samples(Mmc4(annotations=(path,), images=(pictures,)))

    assert isinstance(sample, Sample)
    assert shown(sample) == ["Lock the door. ", 0, "Press the switch. ", "Both lock."]
    assert sample.record.images[0].similarity == 0.3
    reasons = {("images_dropped", "image_missing"): 1, ("images_dropped", "image_format"): 1, ("images_dropped", "image_path"): 1}
    assert sample.counts == reasons
    assert isinstance(reject, Reject)
    assert reject.reason == "image_missing"


def test_a_document_that_never_had_pictures_stays_text(shard: Any, pictures: Path) -> None:
    path = shard(document(), document(image_info=None), document(text=[]))

    first, second, empty = samples(Mmc4(annotations=(path,), images=(pictures,), assignment="lsa"))

    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert shown(first) == shown(second) == ["Lock the door. ", "Press the switch. ", "Both lock."]
    assert isinstance(empty, Reject)
    assert empty.reason == "empty"


def test_pictures_without_any_sentence_are_a_record_of_pictures(shard: Any, pictures: Path) -> None:
    path = shard(document(entry("a.jpg"), entry("b.jpg"), text=[], matrix=[[], []]))

    for assignment in ("matched", "lsa", "argmax"):
        sample = one(Mmc4(annotations=(path,), images=(pictures,), assignment=assignment))
        assert (shown(sample), meta(sample)["unplaced"]) == ([0, 1], [0, 1])


def test_text_is_kept_to_the_letter(shard: Any, pictures: Path) -> None:
    text = ["  <image> ", "", "</s>\n", "好。"]

    sample = one(Mmc4(annotations=(shard(document(text=text)),), images=(pictures,)))

    assert shown(sample) == ["  <image>  ", " ", "</s>\n ", "好。"]


def test_the_matrix_is_kept_only_when_asked_for_and_where_it_fits(shard: Any, pictures: Path) -> None:
    big = document(entry("a.jpg"), text=["x"] * 20_000, matrix=[[0.25] * 20_000])
    path = shard(document(entry("gone.jpg", 0), entry("b.jpg", 1), matrix=MATRIX), big)

    small, large = samples(Mmc4(annotations=(path,), images=(pictures,), keep_similarity=True))

    assert isinstance(small, Sample)
    assert isinstance(large, Sample)
    assert meta(small)["similarity_matrix"] == [[0.22, 0.32, 0.26]]
    assert "similarity_matrix" not in meta(large)
    assert large.counts == {("meta_dropped", "similarity_matrix"): 1}


def test_a_field_that_does_not_fit_into_meta_is_counted(shard: Any, pictures: Path) -> None:
    path = shard(document(url="http://a.b/" + "x" * MAX_META))

    sample = one(Mmc4(annotations=(path,), images=(pictures,)))

    assert meta(sample) == {"id": "docs_shard_7_v2.jsonl/0", "could_have_url_duplicate": 0}
    assert sample.counts == {("meta_dropped", "id"): 1, ("meta_dropped", "url"): 1}


def test_a_document_without_a_url_is_named_by_its_line(shard: Any, pictures: Path) -> None:
    path = shard(document(), document(url=None, could_have_url_duplicate=None))

    assert [meta(sample)["id"] for sample in samples(Mmc4(annotations=(path,), images=(pictures,))) if isinstance(sample, Sample)] == [
        "http://a.b/page",
        "docs_shard_7_v2.jsonl/1",
    ]


@pytest.mark.parametrize("wrap", ["{}", "b'{}'", 'b"{}"'])
def test_pixels_inside_the_document_are_read(shard: Any, photo: Callable[..., bytes], wrap: str) -> None:
    text = wrap.format(base64.b64encode(photo()).decode())

    sample = one(Mmc4(annotations=(shard(document(entry("a.jpg", 1, 0.32, image_base64=text))),)))

    assert sample.files == [photo()]
    assert shown(sample) == ["Lock the door. ", 0, "Press the switch. ", "Both lock."]
    assert (sample.record.images[0].origin, sample.record.images[0].width) == ("a.jpg", 32)
    assert sample.counts == ({} if wrap == "{}" else {("mended", "base64_prefix"): 1})


@pytest.mark.parametrize(
    ("text", "reason"), [("!!", "image_base64"), ("YQ", "image_base64"), ("", "image_empty"), ("YWJj", "image_format")]
)
def test_pixels_that_are_none_are_refused(shard: Any, text: str, reason: str) -> None:
    assert refusals(Mmc4(annotations=(shard(document(entry("a.jpg", image_base64=text))),))) == [reason]


def sequence(example: str, **pictures: Any) -> dict[str, Any]:
    """A ChatGPT sequence; pictures by number: n1=..."""
    return {"is_gpt": None, "example": example, "image_map": {f"_!_IMAGE{name[1:]}_!_": value for name, value in pictures.items()}}


def test_a_chatgpt_sequence_has_its_pictures_at_the_placeholders(shard: Any, pictures: Path, photo: Callable[..., bytes]) -> None:
    pixels = {"base64_image": base64.b64encode(photo(seed=9)).decode(), "raw_url": "http://a.b/9"}
    text = "_!_IMAGE2_!_A dog. \n_!_IMAGE1_!_ and _!_IMAGE2_!_ again"

    sample = one(Mmc4(annotations=(shard(sequence(text, n1={"image_name": "a.jpg"}, n2=pixels)),), images=(pictures,)))

    assert shown(sample) == [1, "A dog. \n", 0, " and ", 1, " again"]
    assert [image.origin for image in sample.record.images] == ["7/a.jpg", "http://a.b/9"]
    assert sample.files[1] == photo(seed=9)
    assert meta(sample) == {"id": "docs_shard_7_v2.jsonl/0", "is_gpt": True, "raw_urls": [None, "http://a.b/9"]}


def test_a_sequence_counts_what_its_text_and_its_map_do_not_share(shard: Any, pictures: Path) -> None:
    a, b, gone = {"image_name": "a.jpg"}, {"image_name": "b.jpg"}, {"raw_url": "http://a.b/c.jpg"}
    path = shard(sequence("x _!_IMAGE2_!_ y _!_IMAGE4_!_ z _!_IMAGE3_!_", n1=a, n2=b, n3=gone), sequence("_!_IMAGE1_!_ w"), sequence("v"))

    mixed, reject, text = samples(Mmc4(annotations=(path,), images=(pictures,)))

    assert isinstance(mixed, Sample)
    assert isinstance(text, Sample)
    assert isinstance(reject, Reject)
    assert (shown(mixed), meta(mixed)["unplaced"]) == ([0, "x ", 1, " y ", " z "], [0])
    assert mixed.counts == {
        ("images_dropped", "image_missing"): 1,
        ("images_dropped", "placeholder_unknown"): 1,
        ("mended", "image_unplaced"): 1,
    }
    assert (reject.reason, shown(text)) == ("placeholder_unknown", ["v"])


def test_zip_gzip_and_plain_shards_are_read_alike(tmp_path: Path) -> None:
    data = lines(document(), document())
    folder = tmp_path / "annotations"
    folder.mkdir()
    zipped(folder / "shard_2.zip", data)
    (folder / "shard_10.jsonl.gz").write_bytes(gzip.compress(data))
    (folder / "shard_1.jsonl").write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n\n"))
    (folder / "README.md").write_text("no shard")

    source = Mmc4(annotations=(folder,))

    assert [Path(unit.path).name for unit in source.units(None)] == ["shard_1.jsonl", "shard_2.zip", "shard_10.jsonl.gz"]
    assert [len(list(source.rows(unit))) for unit in source.units(None)] == [2, 2, 2]
    assert len(list(samples(source))) == 6


def test_a_limit_counts_documents_over_the_shards(tmp_path: Path) -> None:
    for number in range(3):
        zipped(tmp_path / f"shard_{number}.zip", lines(document(), document()))

    source = Mmc4(annotations=(tmp_path,))

    assert [unit.documents for unit in source.units(3)] == [2, 1]
    assert [len(list(samples(source, limit))) for limit in (1, 3, 99)] == [1, 3, 6]


def test_shards_that_never_existed_keep_their_position_and_others_stop(tmp_path: Path, pictures: Path) -> None:
    (pictures / "7").rename(pictures / "2")
    named = [tmp_path / f"docs_shard_{number}_v2.jsonl.zip" for number in (3217, 3218, 3219)]
    for path in (named[0], named[2]):
        zipped(path, lines(document(entry("a.jpg"))))

    source = Mmc4(annotations=(named[0], named[1], named[2]), images=(pictures,), layout="position")

    assert [unit.position for unit in source.units(None)] == [0, 2]
    assert source.notes() == {("notes", "shard_never_existed"): 1}
    assert source.absent() == (named[1],)
    folder = Mmc4(annotations=(tmp_path,))
    assert ([unit.position for unit in folder.units(None)], folder.absent()) == ([0, 2], ())
    assert folder.notes() == {("notes", "shard_never_existed"): 1}
    with pytest.raises(RequestError, match=r"docs_shard_3220_v2.*found nothing"):
        Mmc4(annotations=(*named, tmp_path / "docs_shard_3220_v2.jsonl.zip")).units(None)


def test_every_layout_finds_its_pictures(tmp_path: Path, photo: Callable[..., bytes]) -> None:
    path = zipped(tmp_path / "shard_5.zip", lines(document(entry("a.jpg"))))
    for folder in ("shard/5", "position/0", "flat"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.jpg").write_bytes(photo())

    for layout, name in (("shard", "5/a.jpg"), ("position", "0/a.jpg"), ("flat", "a.jpg")):
        source = Mmc4(annotations=(path,), images=(tmp_path / layout,), layout=layout)
        assert one(source).record.images[0].origin == name
        assert list(source.references()) == [[name]]


def test_a_layout_that_loses_every_picture_stops_and_names_the_one_that_does_not(tmp_path: Path, pictures: Path) -> None:
    zipped(tmp_path / "shard_7.zip", lines(document(entry("a.jpg"), entry("gone.jpg"))))

    with pytest.raises(RequestError, match=r"--layout position.*'0', found 0 of 2; --layout shard finds 1 in '7'"):
        Mmc4(annotations=(tmp_path / "shard_7.zip",), images=(pictures,), layout="position").units(None)


def test_the_layout_is_checked_in_every_shard(tmp_path: Path, pictures: Path) -> None:
    (pictures / "7").rename(pictures / "1")
    zipped(tmp_path / "shard_0.zip", lines(document()))
    zipped(tmp_path / "shard_7.zip", lines(document(entry("a.jpg"))))
    source = Mmc4(annotations=(tmp_path,), images=(pictures,))

    units = source.units(None)

    with pytest.raises(RequestError, match="--layout position finds 1 in '1'"):
        list(source.rows(units[1]))


def test_pictures_nobody_has_are_no_sign_of_a_layout(tmp_path: Path, pictures: Path) -> None:
    path = zipped(tmp_path / "shard_9.zip", lines(document(entry("other.jpg"))))

    assert refusals(Mmc4(annotations=(path,), images=(pictures,))) == ["image_missing"]


def test_a_bad_line_is_a_reject_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "shard_1.jsonl"
    path.write_bytes(lines(document()) + b'{"text_list": ["a"\n' + lines(document(text="no list"), {"image_info": []}, document()))

    assert refusals(Mmc4(annotations=(path,))) == ["json", "schema", "schema"]


def test_a_line_too_long_is_a_reject_and_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmc4, "MAX_LINE", 1000)
    path = zipped(tmp_path / "shard_1.zip", lines(document(), document(text=["x" * 5000]), document()))

    assert refusals(Mmc4(annotations=(path,))) == ["line_bytes"]


def test_a_line_without_end_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmc4, "MAX_LINE", 1000)
    monkeypatch.setattr(mmc4, "MAX_SKIPPED", 1 << 20)
    path = zipped(tmp_path / "shard_1.zip", lines(document()) + b" " * (5 << 20))

    with pytest.raises(SourceError, match=r"shard_1.zip line 2: expected one document a line"):
        list(samples(Mmc4(annotations=(path,))))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'[{"id": 1, "conversations": []}]', r"expected a JSON document with text_list, or is_gpt, found .*array"),
        (b'{"images": [], "annotations": [], "categories": []}', "found images, annotations, categories"),
        (b'{"text_list": ["cut off in the mid', r"line 1: .*in the mid.* at byte 34: .*truncated"),
        (b"\x89PNG\r\n\x1a\n", "expected a JSON document"),
        (b"PK\x03\x04 nothing", "expected a whole shard, found BadZipFile"),
        (b"", "expected at least one document, found none"),
        (b"\n\n", "expected at least one document, found none"),
    ],
)
def test_a_file_that_is_no_shard_stops_in_one_line(tmp_path: Path, data: bytes, found: str) -> None:
    path = tmp_path / "shard_1.jsonl"
    path.write_bytes(data)

    with pytest.raises(SourceError, match=found) as caught:
        Mmc4(annotations=(path,)).units(None)

    assert "\n" not in str(caught.value)


def test_a_damaged_or_crowded_archive_stops(tmp_path: Path) -> None:
    whole = gzip.compress(lines(*[document(url=str(number)) for number in range(20)]))
    (tmp_path / "shard_1.jsonl.gz").write_bytes(whole[:-20])
    crowded = zipped(tmp_path / "shard_2.zip", lines(document()))
    with zipfile.ZipFile(crowded, "a") as archive:
        archive.writestr("second.jsonl", lines(document()))

    with pytest.raises(SourceError, match=r"shard_1.jsonl.gz: expected a whole shard, found EOFError"):
        list(samples(Mmc4(annotations=(tmp_path / "shard_1.jsonl.gz",))))
    with pytest.raises(SourceError, match=r"shard_2.zip: expected a zip of one JSONL file, found 2 files"):
        Mmc4(annotations=(crowded,)).units(None)


def test_a_folder_without_shards_a_wrong_path_and_a_wrong_flag_stop(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected shards"):
        Mmc4(annotations=(tmp_path,)).units(None)
    with pytest.raises(RequestError, match="expected an MMC4 shard, found nothing"):
        Mmc4(annotations=(tmp_path / "shard_1.zip",)).units(None)
    with pytest.raises(RequestError, match="--layout: expected one of shard, position, flat, found 'folder'"):
        Mmc4(annotations=(tmp_path,), layout="folder")


def test_references_name_every_picture_that_is_not_inside(shard: Any, pictures: Path) -> None:
    inside = sequence("_!_IMAGE1_!__!_IMAGE2_!_", n1={"base64_image": "YQ=="}, n2={"image_name": "b.jpg"})
    path = shard(document(entry("a.jpg"), entry("gone.jpg")), document(), inside, document(entry("c.jpg", 0, float("nan"))), 3)

    source = pickle.loads(pickle.dumps(Mmc4(annotations=(path,), images=(pictures,))))

    assert list(source.references()) == [["7/a.jpg", "7/gone.jpg"], [], ["7/b.jpg"], ["7/c.jpg"], []]
