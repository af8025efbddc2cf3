"""Curation at ingest: every filter refuses by its own name, and nothing else; what was asked for is no fault of the input."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shards
from pipelines.__main__ import main
from pipelines.curation import FILTERS, NSFW, Curation, asked
from pipelines.source import Row, Sample, Tally
from schemas import Reject, RequestError, record
from shards.check import check
from shards.writer import ready
from tests.pipelines.upstreams import UPSTREAMS, made
from tests.shards.records import picture

ROW = Row("rows.json", 0, None)
KEY = "000000-00000000"


def sample(*images: dict[str, Any], text: str = "a bus", meta: dict[str, Any] | None = None, language: str | None = None) -> Sample:
    """A record of pictures (8 x 6, 100 bytes, similarity 0.3, or what is said of each), and then its text."""
    entries = [record.image(**{"width": 8, "height": 6, "format": "jpg", "bytes": 100, "similarity": 0.3, **image}) for image in images]
    parts = [*(record.image_part(n) for n in range(len(entries))), record.text_part(text)]
    made = record.record("made", images=entries, turns=[record.turn("text", parts)], meta=meta, language=language)
    return Sample(made, [b"x" * image.bytes for image in entries])


def refusal(curation: Curation, found: Sample) -> str | None:
    """The reason for which the sample is refused, None where it is not."""
    try:
        curation.applied(KEY, ROW, found)
    except Reject as reject:
        return reject.reason
    return None


# What is asked, what just passes, what just does not.
JUST: list[tuple[dict[str, Any], Sample, Sample, str]] = [
    ({"min_side": 6}, sample({}), sample({"width": 5}), "curated_min_side"),
    ({"drop_larger": 8}, sample({}), sample({"height": 9}), "curated_drop_larger"),
    ({"max_aspect": 4 / 3}, sample({}), sample({"height": 5}), "curated_max_aspect"),
    ({"max_aspect": 1.5}, sample({"height": 12}), sample({"height": 13}), "curated_max_aspect"),
    ({"min_image_bytes": 100}, sample({}), sample({"bytes": 99}), "curated_min_image_bytes"),
    ({"max_image_bytes": 100}, sample({}), sample({"bytes": 101}), "curated_max_image_bytes"),
    ({"min_similarity": 0.3}, sample({}), sample({"similarity": 0.29999}), "curated_min_similarity"),
    ({"min_text": 5}, sample({}), sample({}, text="ein "), "curated_min_text"),
    ({"max_text": 5}, sample({}), sample({}, text="busses"), "curated_max_text"),
    ({"min_text": 2}, sample({}, text="\U0001f600é"), sample({}, text="\U0001f600"), "curated_min_text"),  # characters, not bytes
    ({"language": ("en",)}, sample({}, language="en"), sample({}, language="de"), "curated_language"),
    ({"language": ("de", "en")}, sample({}, language="en-GB"), sample({}, language="enm"), "curated_language"),
    ({"language": ("zh-Hant",)}, sample({}, language="zh-hant-TW"), sample({}, language="zh"), "curated_language"),
    ({"nsfw": ("UNLIKELY",)}, sample({}, meta={"NSFW": "UNLIKELY"}), sample({}, meta={"NSFW": "UNSURE"}), "curated_nsfw"),
    ({"nsfw": NSFW}, sample({}, meta={"NSFW": "NSFW"}), sample({}, meta={"NSFW": "ERROR"}), "curated_nsfw"),
    ({"max_punsafe": 0.5}, sample({}, meta={"punsafe": 0.5}), sample({}, meta={"punsafe": 0.51}), "curated_max_punsafe"),
    ({"max_pwatermark": 0.8}, sample({}, meta={"pwatermark": 0}), sample({}, meta={"pwatermark": 1}), "curated_max_pwatermark"),
]


@pytest.mark.parametrize(("asks", "passes", "fails", "reason"), JUST, ids=lambda value: str(value) if isinstance(value, dict | str) else "")
def test_a_filter_refuses_what_is_beyond_it_and_no_other(asks: dict[str, Any], passes: Sample, fails: Sample, reason: str) -> None:
    assert (refusal(Curation(**asks), passes), refusal(Curation(**asks), fails)) == (None, reason)
    assert refusal(Curation(), fails) is None
    assert asked(reason)


@pytest.mark.parametrize(
    ("asks", "what"),
    [
        ({"min_similarity": -1.0}, "similarity"),
        ({"language": ("en",)}, "language"),
        ({"nsfw": NSFW}, "nsfw"),
        ({"max_punsafe": 1.0}, "punsafe"),
        ({"max_pwatermark": 1.0}, "pwatermark"),
    ],
)
@pytest.mark.parametrize("meta", [{}, {"NSFW": None, "punsafe": None, "pwatermark": None}])
def test_what_is_not_stated_is_refused_by_that_name_or_kept(asks: dict[str, Any], what: str, meta: dict[str, Any]) -> None:
    assert refusal(Curation(**asks), sample({"similarity": None}, meta=meta)) == f"curated_no_{what}"
    assert asked(f"curated_no_{what}")
    assert refusal(Curation(**asks, absent="keep"), sample({"similarity": None}, meta=meta)) is None


def test_columns_of_another_type_state_nothing() -> None:
    assert refusal(Curation(max_punsafe=0.5), sample({}, meta={"punsafe": "0.1"})) == "curated_no_punsafe"


def test_a_record_without_pictures_passes_the_filters_of_pictures() -> None:
    assert refusal(Curation(min_side=100, min_similarity=0.9, max_image_bytes=1), sample()) is None


def test_of_several_pictures_the_refused_are_dropped_and_counted() -> None:
    found = sample({"similarity": 0.1}, {}, {"width": 2}, {"bytes": 7, "similarity": 0.5}, meta={"unplaced": [0, 1], "raw_urls": [*"abcd"]})
    curation = Curation(min_similarity=0.2, min_side=4)

    kept = curation.applied(KEY, ROW, found)

    assert [image.similarity for image in kept.record.images] == [0.3, 0.5]
    assert [len(data) for data in kept.files] == [100, 7]
    assert [(part.image, part.text) for part in kept.record.turns[0].parts] == [(0, None), (1, None), (None, "a bus")]
    assert json.loads(kept.record.meta) == {"unplaced": [0], "raw_urls": ["b", "d"]}
    assert kept.counts == {("images_dropped", "curated_min_similarity"): 1, ("images_dropped", "curated_min_side"): 1}


def test_a_record_all_of_whose_pictures_are_refused_is_refused_as_its_first() -> None:
    assert refusal(Curation(min_similarity=0.2, min_side=4), sample({"width": 2}, {"similarity": 0.1})) == "curated_min_side"


def test_a_picture_that_can_not_be_decoded_is_dropped_as_one_of_several() -> None:
    data = picture(16, 8)
    found = sample({"width": 16, "height": 8, "bytes": len(data)}, {"width": 20})
    found.files[0] = data

    kept = Curation(max_side=8).applied(KEY, ROW, found)

    assert kept.counts == {("mended", "resized"): 1, ("images_dropped", "image_decode"): 1}
    made, _ = ready(kept.record, KEY, kept.files, kept.maps)
    assert [(image.width, image.height) for image in made.images] == [(8, 4)]


def test_a_filter_judges_the_picture_as_upstream_has_it() -> None:
    data = picture(16, 8)
    found = sample({"width": 16, "height": 8, "bytes": len(data)})
    found.files[0] = data

    assert refusal(Curation(max_side=8, drop_larger=8), found) == "curated_drop_larger"
    assert refusal(Curation(max_side=8, min_side=8), found) is None
    assert (found.record.images[0].width, found.record.images[0].height) == (8, 4)


def test_what_is_to_be_said_of_the_input_is_said_though_the_row_is_refused() -> None:
    class Cut:
        def sample(self, row: Row) -> Sample:
            found = sample({"width": 2})
            found.counts.update({("notes", "tar_cut"): 1, ("mended", "other_suffix"): 1})
            return found

    said = Tally()
    with pytest.raises(Reject):
        Curation(min_side=4).sample(Cut(), KEY, ROW, said)  # pyright: ignore[reportArgumentType]

    assert said == {("notes", "tar_cut"): 1}


def test_faults_of_the_input_are_not_what_was_asked_for() -> None:
    assert not any(map(asked, ("image_missing", "image_decode", "duplicate_key", "json", "failed_to_download", "size_differs")))
    assert all(map(asked, ("split_train", "split_held_out", "image_min_bytes", "duplicate_image", "duplicate_record")))


def test_only_what_is_set_is_given_and_it_pickles() -> None:
    assert Curation().given() == {}
    curation = Curation(min_side=4, language=("en",), hold_out=0.1)
    assert curation.given() == {"min_side": 4, "language": ("en",), "hold_out": 0.1, "split": "train"}
    assert refusal(curation, sample({"width": 3}, language="en")) == "curated_min_side"
    assert pickle.loads(pickle.dumps(curation)) == curation


@pytest.mark.parametrize("name", FILTERS)
def test_every_upstreams_filters_can_be_asked_for(name: str) -> None:
    assert Curation(**FILTERS[name]).given() == FILTERS[name]


@pytest.mark.parametrize(
    ("asks", "says"),
    [
        ({"absent": "drop"}, "--absent: expected one of refuse, keep, found 'drop'"),
        ({"split": "test"}, "--split: expected one of train, held-out, found 'test'"),
        ({"nsfw": ("UNLIKELY", "no")}, "--nsfw: expected one of UNLIKELY, UNSURE, NSFW, found 'no'"),
    ],
)
def test_from_python_too_what_can_not_be_asked_for_is_said(asks: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=f"^{says}$"):
        Curation(**asks)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--min-side", "-5"], "--min-side: expected 1 to 2147483647, found -5"),
        (["--min-side", "0"], "--min-side: expected 1 to"),
        (["--max-side", "0"], "--max-side: expected 1 to"),
        (["--max-side", "1e3"], "--max-side: invalid int value: '1e3'"),
        (["--drop-larger", "99999999999"], "--drop-larger: expected 1 to"),
        (["--max-aspect", "0.5"], "--max-aspect: expected at least 1, found 0.5"),
        (["--max-aspect", "inf"], "--max-aspect: expected at least 1, found inf"),
        (["--min-image-bytes", "-1"], "--min-image-bytes: expected at least 0, found -1"),
        (["--min-similarity", "30"], "--min-similarity: expected -1 to 1, found 30.0"),  # OpenFlamingo's own default
        (["--min-similarity", "nan"], "--min-similarity: expected -1 to 1, found nan"),
        (["--max-punsafe", "1.5"], "--max-punsafe: expected 0 to 1, found 1.5"),
        (["--max-pwatermark", "-0.5"], "--max-pwatermark: expected 0 to 1, found -0.5"),
        (["--min-side", "9", "--drop-larger", "8"], "--min-side: expected at most --drop-larger, which is 8, found 9"),
        (["--min-text", "9", "--max-text", "8"], "--min-text: expected at most --max-text, which is 8, found 9"),
        (
            ["--min-image-bytes", "9", "--max-image-bytes", "8"],
            "--min-image-bytes: expected at most --max-image-bytes, which is 8, found 9",
        ),
        (["--language", "english"], "--language: expected a BCP 47 code such as en or zh-Hant, found 'english'"),
        (["--language", "en", "--language", "xx"], "--language: expected a BCP 47 code such as en or zh-Hant, found 'xx'"),
        (["--language", "en_GB"], "--language: expected a BCP 47 code"),
        (["--language", ""], "--language: expected a BCP 47 code"),
        (["--nsfw", "no"], "--nsfw: invalid choice: 'no'"),
        (["--absent", "drop"], "--absent: invalid choice: 'drop'"),
        (["--filters", "flamingo"], "--filters: invalid choice: 'flamingo'"),
    ],
    ids=" ".join,
)
def test_what_can_not_be_asked_for_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str) -> None:
    line = refused(capsys, "convert", "llava", "--annotations", tmp_path / "gone.json", "--out", tmp_path / "out", *flags)

    assert says in line
    assert not (tmp_path / "out").exists()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The line with which this command is refused, exit status 2."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as error:
        status = int(str(error.code))
    out, err = capsys.readouterr()
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    return err


@pytest.mark.parametrize("flag", ["--max-side", "--min-similarity", "--hold-out", "--split", "--out", "--workers", "--filters"])
def test_check_says_of_converts_flags_that_they_are_converts(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, given = made("llava", tmp_path)

    for arguments in ([*given, flag, "1"], [flag, *given]):
        line = refused(capsys, "check", "llava", *arguments)
        assert f"{flag}: expected with convert alone, found with check" in line


def test_check_has_what_the_source_itself_filters_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, given = made("mmc4", tmp_path)

    assert main(["check", "mmc4", *given, "--min-image-bytes", "100"]) == 0
    capsys.readouterr()
    line = refused(capsys, "check", "llava", "--annotations", "x", "--min-image-bytes", "9")
    assert "--min-image-bytes: expected with convert alone" in line


def converted(out: Path, *arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit status and manifest of a conversion; its shards are sound, its sums are right."""
    status = main(["convert", *map(str, arguments), "--out", str(out)])
    found = json.loads((out / "manifest.json").read_bytes())
    totals = found["totals"]
    assert totals["read"] == totals["written"] + totals["rejected"]
    assert totals["rejected"] == sum(found["rejected"].values()) == pq.read_table(out / "rejects.parquet").num_rows
    assert check(out, deep=True).problems == []
    return status, found


@pytest.mark.parametrize("source", UPSTREAMS)
def test_every_source_is_curated_and_resized(source: str, tmp_path: Path) -> None:
    """Pictures of 24 x 16."""
    _, given = made(source, tmp_path / source)

    status, found = converted(tmp_path / "small", source, *given, "--max-side", 12, "--min-side", 16, "--drop-larger", 24, "--workers", 1)
    assert (status, found["totals"]["written"], found["mended"]["resized"]) == (0, 3, 3)
    for made_of in shards.open(tmp_path / "small"):
        assert (made_of.record.images[0].width, made_of.record.images[0].height) == (12, 8)

    status, found = converted(tmp_path / "none", source, *given, "--min-side", 17, "--workers", 1)
    assert (status, found["rejected"]) == (1, {"curated_min_side": 3})


def test_an_uncurated_conversion_says_nothing_of_curation(tmp_path: Path) -> None:
    _, given = made("llava", tmp_path / "llava")

    _, found = converted(tmp_path / "out", "llava", *given, "--workers", 1)

    assert found["options"] == {"verify": "header", "shard_bytes": 256 << 20, "limit": None}


LAION: dict[str, list[Any]] = {
    "caption": ["a red bus", "bus", "ein roter Bus", "a blue bus", "a green bus", "a bus", "gone"],
    "similarity": [0.35, 0.34, 0.33, 0.25, 0.31, None, 0.3],
    "LANGUAGE": ["en", "en", "de", "en", "en", "en", "en"],
    "NSFW": ["UNLIKELY", "UNLIKELY", "UNLIKELY", "UNLIKELY", "UNSURE", "UNLIKELY", "UNLIKELY"],
    "punsafe": [0.1, 0.1, 0.1, 0.1, 0.2, 0.1, 0.1],
    "pwatermark": [0.1, 0.9, None, 0.1, 0.1, 0.1, 0.1],
}


@pytest.fixture
def laion(tmp_path: Path) -> list[str]:
    """Six pictures, and one that was not downloaded."""
    folder = tmp_path / "laion"
    folder.mkdir()
    keys = [f"{n:09d}" for n in range(7)]
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for n, key in enumerate(keys[:6]):
            data = picture(24, 16, n)
            info = tarfile.TarInfo(f"{key}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    status = {"status": ["success"] * 6 + ["failed_to_download"], "key": keys, "url": [f"http://a.b/{key}" for key in keys]}
    pq.write_table(pa.table({**status, **LAION}), folder / "00000.parquet")
    return ["laion", "--annotations", str(folder), "--workers", "1"]


def captions(out: Path) -> list[str]:
    return [found.record.turns[0].text() for found in shards.open(out)]


def test_laions_columns(laion: list[str], tmp_path: Path) -> None:
    flags = "--min-similarity 0.3 --min-text 5 --language en --nsfw UNLIKELY --max-punsafe 0.5 --max-pwatermark 0.8"
    _, found = converted(tmp_path / "out", *laion, *flags.split())

    assert captions(tmp_path / "out") == ["a red bus"]
    assert found["rejected"] == {
        "curated_language": 1,
        "curated_min_similarity": 1,
        "curated_min_text": 1,
        "curated_no_similarity": 1,
        "curated_nsfw": 1,
        "failed_to_download": 1,
    }


def test_what_was_asked_for_is_no_fault_of_the_input(laion: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of two that nobody asked to leave out could not be had: a half."""
    status, found = converted(tmp_path / "over", *laion, "--min-similarity", 0.35, "--max-reject-rate", 0.49)
    assert (status, found["totals"]["written"], found["totals"]["rejected"]) == (1, 1, 6)
    assert "50.0% of the input was rejected, over --max-reject-rate 0.49" in capsys.readouterr().err

    assert converted(tmp_path / "under", *laion, "--min-similarity", 0.35, "--max-reject-rate", 0.5)[0] == 0


def test_nothing_left_is_said(laion: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _ = converted(tmp_path / "out", *laion, "--min-text", 100, "--max-reject-rate", 1)

    assert status == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: no record was written (6 refused as asked for): rejects.parquet says why"


def test_absent_values_may_be_kept(laion: list[str], tmp_path: Path) -> None:
    flags = "--min-similarity 0.3 --max-pwatermark 0.8 --absent keep --max-reject-rate 1"
    _, found = converted(tmp_path / "out", *laion, *flags.split())

    assert captions(tmp_path / "out") == ["a red bus", "ein roter Bus", "a green bus", "a bus"]
    assert found["options"]["absent"] == "keep"


def test_an_upstreams_filters_by_name(laion: list[str], tmp_path: Path) -> None:
    """The pictures are of some 900 bytes: a flag beside the name counts more."""
    flags = ["--filters", "laion-400m", "--min-image-bytes", 100, "--max-reject-rate", 1]
    _, found = converted(tmp_path / "out", *laion, *flags)

    assert captions(tmp_path / "out") == ["a red bus", "ein roter Bus", "a green bus"]
    assert {name: found["options"][name] for name in ("min_text", "min_image_bytes", "min_similarity")} == {
        "min_text": 5,
        "min_image_bytes": 100,
        "min_similarity": 0.3,
    }


@pytest.fixture
def mmc4(tmp_path: Path) -> list[str]:
    """One document of three pictures, two of them over 11,000 bytes, of which one is like its sentence."""
    (tmp_path / "images/7").mkdir(parents=True)
    for name, width in (("small", 24), ("alike", 160), ("other", 160)):
        (tmp_path / f"images/7/{name}.jpg").write_bytes(picture(width, 120, width))
    info = [
        {"image_name": f"{name}.jpg", "raw_url": f"http://a.b/{name}", "matched_text_index": n, "matched_sim": similarity}
        for n, (name, similarity) in enumerate((("small", 0.3), ("alike", 0.3), ("other", 0.2)))
    ]
    document = {"text_list": ["One.", "Two.", "Three."], "image_info": info, "similarity_matrix": None, "url": "http://a.b"}
    (tmp_path / "docs_shard_7_v2.jsonl").write_text(json.dumps(document) + "\n")
    return ["mmc4", "--annotations", str(tmp_path / "docs_shard_7_v2.jsonl"), "--images", str(tmp_path / "images"), "--workers", "1"]


def test_openflamingos_filters_on_mmc4(mmc4: list[str], tmp_path: Path) -> None:
    """Its bytes are the source's own rule, because it comes before the assignment; its similarity comes behind."""
    status, found = converted(tmp_path / "out", *mmc4, "--filters", "openflamingo")

    assert status == 0
    assert found["images_dropped"] == {"curated_min_similarity": 1, "image_min_bytes": 1}
    (only,) = shards.open(tmp_path / "out")
    assert [part.text if part.image is None else part.image for part in only.record.turns[0].parts] == ["One. ", 0, "Two. ", "Three."]
    assert json.loads(only.record.meta)["raw_urls"] == ["http://a.b/alike"]
    assert (found["options"]["min_image_bytes"], found["options"]["min_similarity"]) == (11_000, 0.24)


def test_mmc4s_own_rule_is_the_only_one_of_its_name(mmc4: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = converted(tmp_path / "some", *mmc4, "--filters", "openflamingo", "--min-image-bytes", 0)
    assert (status, found["images_dropped"]) == (0, {"curated_min_similarity": 1})

    status, found = converted(tmp_path / "none", *mmc4, "--min-image-bytes", 10**6)
    assert (status, found["rejected"]) == (1, {"image_min_bytes": 1})

    capsys.readouterr()
    line = refused(capsys, "convert", *mmc4, "--out", tmp_path / "out", "--min-image-bytes", "-1")
    assert "--min-image-bytes: expected at least 0, found -1" in line


def test_a_second_curation_is_another_data_set(laion: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted(tmp_path / "out", *laion, "--language", "en", "--language", "de", "--max-reject-rate", 1)
    converted(tmp_path / "out", *laion, "--language", "en", "--language", "de", "--max-reject-rate", 1)  # the same goes on
    capsys.readouterr()

    assert "another options" in refused(capsys, "convert", *laion, "--out", tmp_path / "out", "--language", "en")


def test_killed_and_gone_on_with_or_by_two_workers_the_bytes_are_the_same(tmp_path: Path) -> None:
    """Everything at once: a filter, a size, a split."""
    (tmp_path / "images").mkdir()
    for n in range(300):
        (tmp_path / f"images/{n}.jpg").write_bytes(picture(24 + n % 40, 16 + n % 30, n))
    rows = [{"id": n, "image": [f"{n}.jpg", f"{n // 2}.jpg"], "conversations": [{"from": "human", "value": f"{n}?"}]} for n in range(300)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    given = ["llava", "--annotations", tmp_path / "rows.json", "--images", tmp_path / "images", "--shard-bytes", "8KiB"]
    given += ["--max-side", 32, "--min-side", 20, "--max-aspect", 1.6, "--hold-out", 0.3]
    status, found = converted(tmp_path / "one", *given, "--workers", 1)
    assert status == 0
    assert found["mended"]["resized"] > 50
    assert found["images_dropped"]["curated_min_side"] > 5
    assert found["rejected"]["curated_min_side"] > 5
    assert found["rejected"]["split_held_out"] > 50

    killed(tmp_path / "two", [*given, "--workers", 2])
    converted(tmp_path / "two", *given, "--workers", 2)

    assert files(tmp_path / "two") == files(tmp_path / "one")


def killed(out: Path, given: list[Any]) -> None:
    """A conversion into it, killed with its workers after two commits."""
    arguments = [sys.executable, "-m", "pipelines", "convert", *map(str, given), "--out", str(out)]
    run = subprocess.Popen(["nice", "-n", "19", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    with run:
        try:
            until(lambda: run.poll() is not None or len(list((out / "_units").glob("0*.json"))) >= 2)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def files(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
