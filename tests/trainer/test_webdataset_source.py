"""Tars made elsewhere as a source: every record of every tar once an epoch, in webdataset's order, and nothing lost without a word."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from schemas import RecordError, RequestError, ShardError
from shards import foreign
from tests.shards.foreign_tars import any_tar, by_webdataset, document, img2dataset, img2dataset_rows, openflamingo
from tests.shards.records import picture
from trainer.data.loader import Feed, Loader
from trainer.data.mixture import Position
from trainer.data.sources import budgets, mixture, open_sources
from trainer.data.webdataset_source import WebdatasetSample, WebdatasetSource, tars
from trainer.recipe import Recipe, Source


def ids(found: list[WebdatasetSample | RecordError | ShardError]) -> list[str]:
    """The keys in the tars."""
    return [json.loads(sample.record.meta)["id"] for sample in found if isinstance(sample, WebdatasetSample)]


def test_braces_and_globs_name_the_tars(tmp_path: Path) -> None:
    place = img2dataset(tmp_path / "a", [1, 1, 1])
    img2dataset(tmp_path / "b", [1])
    assert [tar.name for tar in tars(f"{place}/{{00000..00001}}.tar")] == ["00000.tar", "00001.tar"]
    assert [tar.name for tar in tars(f"{place}/*.tar")] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [(Path(tar.place.url).name, tar.name) for tar in tars(f"{place}/0000[12].tar::{tmp_path}/b/00000.tar")] == [
        ("a", "00001.tar"),
        ("a", "00002.tar"),
        ("b", "00000.tar"),
    ]


@pytest.mark.parametrize("pattern", ["{here}/{{00000..00003}}.tar", "{here}/9*.tar", "{here}/none/0.tar"])
def test_a_tar_that_is_not_there_is_one_line(pattern: str, tmp_path: Path) -> None:
    img2dataset(tmp_path, [1, 1, 1])
    with pytest.raises(RequestError, match="expected a tar, found nothing"):
        tars(pattern.format(here=tmp_path))


def test_a_command_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="found a command"):
        tars(f"pipe:touch {tmp_path}/ran")
    assert not list(tmp_path.iterdir())


def test_an_epoch_has_every_record_once_and_the_next_has_another_order(tmp_path: Path) -> None:
    source = WebdatasetSource("laion", f"{img2dataset(tmp_path, [3, 4, 5, 2, 1])}/*.tar", seed=7)
    first, second = ids(source.fetch(range(15))), ids(source.fetch(range(15, 30)))
    wanted = [row["__key__"] for shard, number in enumerate([3, 4, 5, 2, 1]) for row in img2dataset_rows(shard, number)]
    assert sorted(first) == sorted(second) == sorted(wanted)
    assert first != second != wanted
    again = WebdatasetSource("laion", f"{tmp_path}/*.tar", seed=7)
    assert ids(again.fetch(range(30))) == first + second
    assert ids(WebdatasetSource("laion", f"{tmp_path}/*.tar", seed=8).fetch(range(15))) != first


def test_records_are_those_of_the_layout_and_hold_their_pictures(tmp_path: Path) -> None:
    source = WebdatasetSource("laion", f"{img2dataset(tmp_path, [5])}/00000.tar")
    for n, sample in enumerate(source.fetch(range(5))):
        assert isinstance(sample, WebdatasetSample)
        assert sample.key == sample.record.key == f"000000-{n:08d}"
        assert sample.record.turns[0].text() == ["a bus", "zwei Züge", "three </s> cats", "", "<image> four"][n]
        assert sample.image(0) == picture(8 + n, 6, seed=n)


def test_documents_with_base64_pictures_are_read(tmp_path: Path) -> None:
    pictures = [picture(9, 5, seed=n) for n in range(2)]
    openflamingo(tmp_path / "000000000.tar", [document(*pictures, matched=[2, 0])])
    (sample,) = WebdatasetSource("mmc4", f"{tmp_path}/*.tar").fetch([0])
    assert isinstance(sample, WebdatasetSample)
    assert [part.image if part.text is None else part.text for part in sample.record.turns[0].parts] == [1, "One. ", "Two. ", 0, "Three."]
    assert [sample.image(0), sample.image(1)] == pictures


def test_ranks_share_each_epoch_s_tars_and_none_runs_dry(tmp_path: Path) -> None:
    place = img2dataset(tmp_path, [2] * 6)
    ranks = [WebdatasetSource("laion", f"{place}/*.tar", part=part, parts=2) for part in range(2)]
    for _ in range(3):
        epoch = [ids(rank.fetch(range(6))) for rank in ranks]
        assert sorted(epoch[0] + epoch[1]) == [f"{shard:05d}{n:04d}" for shard in range(6) for n in range(2)]
    with pytest.raises(RequestError, match="at least a tar for each of 7 ranks, found 6"):
        WebdatasetSource("laion", f"{place}/*.tar", parts=7)


def test_resuming_passes_over_as_many_records_and_says_that_it_is_approximate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = img2dataset(tmp_path, [3, 4, 5])
    whole = ids(WebdatasetSource("laion", f"{place}/*.tar", seed=3).fetch(range(40)))
    for drawn in (1, 3, 11, 12, 29):
        resumed = WebdatasetSource("laion", f"{place}/*.tar", seed=3)
        resumed.resume(drawn)
        assert ids(resumed.fetch(range(10))) == whole[drawn : drawn + 10]
    assert "approximately: index its tars for an exact resume (python -m shards index)" in caplog.text


def test_what_webdataset_does_not_give_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    place = img2dataset(tmp_path, [4, 4])
    path = place / "00000.tar"
    data = bytearray(path.read_bytes())
    at = data.index(b"000000002.jpg") & ~511
    data[at + 130] ^= 1  # in the size: its header is no header any more, and webdataset takes it for the end
    path.write_bytes(data)
    found = WebdatasetSource("laion", f"{place}/*.tar").fetch(range(6 + 1))
    (damage,) = [one for one in found if isinstance(one, ShardError)]
    assert str(damage).startswith(f"{place}/00000.tar: tar damaged: expected a tar header at byte ")
    assert "whole samples through webdataset" in str(damage)
    assert sorted(ids(found))[-4:] == ["000010000", "000010001", "000010002", "000010003"]


def test_a_sample_that_is_no_record_is_an_error_in_its_place(tmp_path: Path) -> None:
    rows = img2dataset_rows(0, 3)
    rows[1]["jpg"] = b"<html>not found</html>"
    by_webdataset(tmp_path / "00000.tar", rows)
    found = WebdatasetSource("laion", f"{tmp_path}/*.tar").fetch(range(3))
    assert [type(one) for one in found] == [WebdatasetSample, RecordError, WebdatasetSample]
    assert "000000001" in str(found[1])


def test_a_name_that_stands_twice_is_named_with_what_is_lost(tmp_path: Path) -> None:
    members = [(f"{row['__key__']}.{name}", row[name]) for row in img2dataset_rows(0, 2) for name in ("jpg", "txt")]
    (tmp_path / "00000.tar").write_bytes(any_tar([*members[:2], members[2], *members[2:]]))
    found = WebdatasetSource("laion", f"{tmp_path}/*.tar").fetch(range(2))
    assert isinstance(found[0], WebdatasetSample)
    assert "duplicate file name" in str(found[1])


def test_tars_without_any_record_end_and_do_not_hang(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(any_tar([]))
    with pytest.raises(RequestError, match="expected records in 1 tars, found none"):
        WebdatasetSource("laion", f"{tmp_path}/*.tar").fetch([0])


def test_unknown_layouts_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected one of img2dataset, openflamingo-mmc4, found 'laion'"):
        WebdatasetSource("laion", f"{img2dataset(tmp_path, [1])}/*.tar", layout="laion")
    (tmp_path / "00000.tar").write_bytes(any_tar([("a.cls", b"7"), ("a.jpg", b"x")]))
    with pytest.raises(RequestError, match="found a sample of cls, jpg"):
        WebdatasetSource("laion", f"{tmp_path}/*.tar").fetch([0])


def test_without_the_package_there_is_one_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['webdataset'] = None\n"
        "from schemas import RequestError\n"
        "from trainer.data.webdataset_source import WebdatasetSource\n"
        "try:\n    WebdatasetSource('laion', sys.argv[1])\n"
        "except RequestError as error:\n    print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, f"{tmp_path}/*.tar"], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == 'kind = "webdataset": expected the package webdataset, found none: pip install webdataset'


def served(recipe: Recipe, position: Position, steps: int, workers: int) -> list[dict[str, list[str]]]:
    """The tars' own keys in each step, by source."""
    data = open_sources(recipe)
    mixed = mixture(recipe, data)
    for name, source in data.items():
        if isinstance(source, WebdatasetSource):
            source.resume(position.draws[name])
    feed = Feed(
        mixture=mixed,
        data=data,
        make=lambda source, draw, sample: json.loads(sample.record.meta)["id"],
        finish=lambda found: found,
        budgets=budgets(recipe, data),
    )
    with Loader(feed, position, stop=position.step + steps, workers=workers) as loader:
        return [step.made for step in loader]


def test_they_are_mixed_with_indexed_ones_and_go_on_where_they_were(tmp_path: Path) -> None:
    stream, place = img2dataset(tmp_path / "stream", [4, 4]), img2dataset(tmp_path / "place", [4, 4])
    foreign.index(place)
    streamed = Source(name="stream", kind="webdataset", shards=f"{stream}/*.tar", batch_size=3)
    recipe = Recipe(sources=(streamed, Source(name="place", shards=str(place), batch_size=2)))
    whole = served(recipe, Position(0, {"stream": 0, "place": 0}), 8, workers=2)
    everything = [f"{shard:05d}{n:04d}" for shard in range(2) for n in range(4)]
    assert sorted(key for step in whole[:4] for key in step["place"]) == everything
    assert sorted(key for step in whole for key in step["stream"]) == sorted(everything * 3)
    half = Position(4, {"stream": 12, "place": 8})
    assert served(recipe, half, 4, workers=0) == whole[4:]
