"""What the page asks of a data set: few things at a time, and no more work than a request may do."""

from __future__ import annotations

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import shards
from schemas import ShardError, Span, record
from shards import columns, splitmix
from shards.order import Order
from shards.view import desk as desks
from shards.view import filter as filters
from shards.view import ledger as ledgers
from shards.view.desk import Desk, Found
from shards.view.ledger import Ledger
from shards.view.numbers import Numbers
from shards.view.page import Page, Piece, Tile
from shards.view.pages import View
from shards.view.runs import Run
from shards.view.upstream import Upstream
from tests.shards.counted import Counted
from tests.shards.records import captioned, everything


@pytest.fixture
def desk(written: Path) -> Desk:
    return Desk(shards.open(written))


def test_columns_hold_what_the_records_hold(written: Path) -> None:
    data = shards.open(written)
    records = [sample.record for sample in shards.open(written)]

    found = [columns.read(shard) for shard in data.shards]

    assert np.concatenate([one.images for one in found]).tolist() == [len(one.images) for one in records]
    assert np.concatenate([one.regions for one in found]).tolist() == [len(one.regions) for one in records]
    assert np.concatenate([one.width for one in found]).tolist() == [image.width for one in records for image in one.images]
    assert np.concatenate([one.longest_side for one in found]).tolist() == [8] * 7
    assert {name for one in found for name in one.sources} == {"made"}


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"images_min": "2"}, [0]),
        ({"regions_max": "0", "source": "made"}, [1, 2, 3, 4, 5, 6]),
        ({"text_length_min": "10", "text_length_max": "10"}, []),
        ({"longest_side_min": "8", "images_max": "1"}, [1, 2, 3, 4, 5, 6]),
        ({"source": "other"}, []),
        ({"images_min": "-1; drop", "images_max": "\u0663"}, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_a_filter_finds_what_passes_both_ways(desk: Desk, query: dict[str, str], numbers: list[int]) -> None:
    wanted = filters.read(query)

    assert desk.find(wanted, 0, most=20, seconds=9) == Found(numbers, None)
    assert desk.find(wanted, 6, most=20, seconds=9, step=-1) == Found(numbers[::-1], None)
    assert filters.read(dict(pair.split("=") for pair in wanted.query().split("&") if pair)) == wanted


def test_what_is_behind_the_page_is_gone_on_with(desk: Desk) -> None:
    wanted = filters.read({"images_max": "1"})

    assert desk.find(wanted, 0, most=2, seconds=9) == Found([1, 2], 3)
    assert desk.find(wanted, 3, most=2, seconds=9) == Found([3, 4], 5)
    assert desk.find(wanted, 6, most=2, seconds=9, step=-1) == Found([6, 5], 4)


def test_a_search_ends_when_its_time_is_up(desk: Desk) -> None:
    wanted, at, asked = filters.read({"images_min": "3"}), 0, 0
    while at is not None:
        found, at = desk.find(wanted, at, most=1, seconds=0)
        asked += 1
        assert found == []

    assert asked == len(desk.data.shards)


def test_few_shards_stay_open(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "SHARDS", 1)
    few = Desk(desk.data)

    for number in itertools.chain(range(7), range(6, -1, -1)):
        assert few.sample(number).record.key == few.key(*few.where(number))

    assert len(desk.data.shards) > 1
    assert sum(shard.is_open for shard in desk.data.shards) <= 1


def test_a_key_leads_to_its_number(desk: Desk) -> None:
    assert [desk.number(desk.sample(number).key) for number in range(7)] == list(range(7))
    for key in ("000000-00000099", "nobody", "", "999999-00000000"):
        with pytest.raises(KeyError):
            desk.number(key)


def test_numbers_are_counted_a_shard_a_request(desk: Desk) -> None:
    numbers = Numbers(desk)
    while numbers.done < numbers.total:
        before = numbers.done
        numbers.advance(1e-9)
        assert numbers.done <= before + 1

    assert numbers.tallies["made"].records == 7
    assert [row["records"] for row in numbers.shards] == [len(shard) for shard in desk.data.shards]


def test_the_ledger_is_read_by_reason(desk: Desk) -> None:
    ledger = Ledger(desk.data)

    assert {reason: [row.row for _, row in rows] for reason, rows in ledger.samples().items()} == {"language": [3], "text_unicode": [4]}
    assert ledger.rows("language", 1).rows == []
    assert ledger.row(1).reason == "text_unicode"


def test_another_ledger_than_the_one_written_is_not_read(tmp_path: Path) -> None:
    shards.write(tmp_path / "place", [captioned(), captioned(language="no language")], source="made")
    with (tmp_path / "place" / "rejects.parquet").open("ab") as file:
        file.write(b"more")

    with pytest.raises(ShardError, match="rejects altered"):
        Ledger(shards.open(tmp_path / "place")).samples()


def test_nested_and_crossing_spans_are_cut_where_they_begin_and_end() -> None:
    item = everything()
    turn = record.turn("text", [record.text_part("abc"), record.image_part(0), record.text_part("def"), record.image_part(1)])
    turn.spans = [Span(1, 5, ["r1"]), Span(4, 6, ["r2"])]
    item.record.turns = [turn]

    pieces = Page(0, item.record).turns[0].pieces

    assert pieces == [
        Piece("a"),
        Piece("bc", "0", marked=True),
        Piece(image=0),
        Piece("d", "0", marked=True),
        Piece("e", "0 1", "0", marked=True),
        Piece("f", "1", "1", marked=True),
        Piece(image=1),
    ]


def test_upstream_files_are_found_below_their_folder_alone(tmp_path: Path, desk: Desk) -> None:
    secret, folder = tmp_path / "secret.jpg", tmp_path / "upstream"
    (folder / "images").mkdir(parents=True)
    secret.write_bytes(b"GIF89a, secret")
    (folder / "images" / "a.jpg").write_bytes(b"GIF89a, cut off")
    (folder / "images" / "link.jpg").symlink_to(secret)
    row = Ledger(desk.data).row(0)
    named = {
        name: row.__class__("none", 0, "", "", name)
        for name in ("images/a.jpg", "a.jpg", "../secret.jpg", str(secret), "link.jpg", "no.jpg")
    }

    found = {name: Upstream([folder]).picture(reject) for name, reject in named.items()}

    assert [name for name, data in found.items() if data] == ["images/a.jpg", "a.jpg"]


def test_records_on_the_screen_are_asked_of_object_storage_side_by_side(written: Path, tmp_path: Path) -> None:
    store = Counted(written, tmp_path / "log")
    view = View(Desk(shards.open(store)))
    for shard in view.desk.data.shards:
        assert shard.index  # opened, so that only the records are asked for
    gates = [store.shut(shard.name) for shard in view.desk.data.shards]

    with ThreadPoolExecutor(1) as pool:
        tiles = pool.submit(view.tiles, list(range(7)))
        deadline = time.monotonic() + 30
        while store.asked().total() < 7 and time.monotonic() < deadline:
            time.sleep(0.005)
        asked = store.asked().total()
        for gate in gates:
            gate.unlink()

    assert asked == 7  # before any was answered
    assert [tile.number for tile, _ in tiles.result() if isinstance(tile, Tile)] == list(range(7))
    assert store.asked().total() == 7


def run_folder(folder: Path, place: Path, steps: int, mixture: str) -> Run:
    """A run of so many steps that drew two records in each."""
    lines = [{"step": step, "served_by_source": {"a": 1}, "bad_by_source": {"a": 1}} for step in range(steps)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.toml").write_text(f'seed = 3\n{mixture}\n[[sources]]\nname = "a"\nshards = {json.dumps(str(place))}\nwindow = 2\n')
    run = Run(folder)
    assert run.advance()
    return run


@pytest.mark.parametrize(
    ("mixture", "steps", "whole"),
    [
        ("", 5, 5),
        ('[mixture]\ndraw = "one"', 5, 5),
        ('[mixture]\ndraw = "mixed"\ngroup_steps = 2', 5, 4),
        ('[mixture]\ndraw = "mixed"\ngroup_steps = 1', 5, 5),
        ('[mixture]\ndraw = "mixed"', 31, 0),
        ('[mixture]\ndraw = "mixed"', 33, 32),
    ],
)
def test_the_last_records_of_a_run_are_those_of_its_last_draws(
    written: Path, tmp_path: Path, desk: Desk, mixture: str, steps: int, whole: int
) -> None:
    run = run_folder(tmp_path, written, steps, mixture)

    found = run.last(desk)

    order = Order([len(shard) for shard in desk.data.shards], splitmix.key(3, "a"), window=2)
    shard, row = order.at(np.arange(max(0, 2 * whole - 12), 2 * whole))
    expected = [desk.first[at] + n for at, n in zip(shard.tolist(), row.tolist(), strict=True)][::-1]
    assert (run.steps, run.whole) == (steps, whole)
    assert found == ({"a": expected} if whole else {})


def test_a_ledger_of_many_rows_is_decoded_where_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "BATCH", 3)
    bad = [captioned(language="no language") if n % 3 else captioned("\ud800") for n in range(10)]
    shards.write(tmp_path / "place", [captioned(), *bad], source="made")
    ledger = Ledger(shards.open(tmp_path / "place"))

    assert [(number, row.row) for number, row in ledger.rows("text_unicode").rows] == [(0, 1), (3, 4), (6, 7), (9, 10)]
    assert [[number for number, _ in ledger.rows("language", skip, 2).rows] for skip in (0, 3, 5, 6)] == [[1, 2], [5, 7], [8], []]
    assert [ledger.rows("language", skip, 2).more for skip in (0, 3, 5, 6)] == [True, True, False, False]
    assert {reason: [number for number, _ in rows] for reason, rows in ledger.samples().items()} == {
        "language": [1, 2, 4],
        "text_unicode": [0, 3, 6],
    }
    assert ledger.by_unit == {"000000": 10}
    for number in (-1, 10, 2**70):
        with pytest.raises(IndexError):
            ledger.row(number)
