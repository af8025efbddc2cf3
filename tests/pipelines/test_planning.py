"""Planning: the same units and hashes as ever, of inputs whose names are not held, and whose files others read."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pipelines import grand, inputs, laion, names, spool
from pipelines.grand import Grand
from pipelines.ingest import Plan, ingest
from pipelines.laion import Laion
from pipelines.names import Names, in_order
from pipelines.stores import open_store
from schemas import RequestError, SourceError
from shards.place import at
from tests.pipelines.upstreams import made

T = TypeVar("T")
R = TypeVar("R")
TEXT = st.text(st.characters(codec="utf-8") | st.sampled_from("\udc80\udcff/\n"), max_size=4)  # a name that is no UTF-8 has such letters


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is held, so that a few names do what millions do."""
    monkeypatch.setattr(names, "CHUNK", 8)
    monkeypatch.setattr(names, "BLOCK", 3)


@given(st.lists(TEXT, max_size=60))
def test_names_come_in_the_order_that_sorted_gives(found: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names, "CHUNK", 8)
        patch.setattr(names, "BLOCK", 3)
        assert list(in_order(found)) == sorted(found)
        assert list(in_order((name, len(name)) for name in found)) == sorted((name, len(name)) for name in found)


@pytest.mark.parametrize("number", [0, 1, 7, 8, 9, 16, 17, 100])
def test_in_order_at_the_borders_of_its_runs(tiny: None, number: int) -> None:
    assert list(in_order(str(n) for n in range(number))) == sorted(str(n) for n in range(number))


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 6, 7, 20])
def test_names_keep_their_order_and_give_any_part(tiny: None, number: int) -> None:
    given = [f"{n}\udc80" for n in range(number)]

    found = Names(given)

    assert (len(found), list(found)) == (number, given)
    assert all(found.part(start, stop) == given[start:stop] for start in range(number + 2) for stop in range(start, number + 2))
    assert [name for part in found.parts(4) for name in part] == given


def test_a_folder_is_listed_in_the_order_of_its_whole_names(tiny: None, tmp_path: Path) -> None:
    listed = ["a", "a-b/x", "a.b", "a/b/c", "a/b-c", "a0", os.fsdecode(b"\xff/y"), *(f"many/{n}" for n in range(30))]
    for name in listed:
        path = tmp_path / "root" / name if name != "a" else tmp_path / "root" / "aa"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")

    found = [name for name, _ in open_store(tmp_path / "root").names()]

    assert len(found) == len(listed)
    assert found == sorted(found)


def each_counted(done: list[int]) -> inputs.Each:
    """A map that says how many items it was given before the first result was asked for."""

    def each(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        for item in items:
            done.append(len(item))  # pyright: ignore[reportArgumentType] - a task is a list of names
            yield pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(item)))

    return each  # pyright: ignore[reportReturnType]


def test_many_files_are_hashed_by_others_some_a_task_and_the_entry_is_that_of_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scenes/deep").mkdir(parents=True)
    for n in range(10):
        (tmp_path / f"scenes/{'deep/' * (n % 2)}{n}.json").write_bytes(b'{"%d.jpg": {"objects": []}}' % n)
    (tmp_path / "scenes/_tmp").mkdir()
    (tmp_path / "scenes/_tmp/9.parquet").write_bytes(b"not counted")
    source = Grand(annotations=(tmp_path / "scenes",))
    few = inputs.inputs(source)
    monkeypatch.setattr(inputs, "FEW", 3)
    monkeypatch.setattr(inputs, "TASKS", 4)
    tasks: list[int] = []

    assert inputs.inputs(source, each_counted(tasks)) == few
    assert tasks == [3, 3, 3, 1]
    rows = sorted(f"{p.relative_to(tmp_path / 'scenes')}\t{hashlib.sha256(p.read_bytes()).hexdigest()}\n" for p in tmp_path.rglob("*.json"))
    assert few[0]["sha256"] == hashlib.sha256("".join(rows).encode()).hexdigest()


def test_many_files_that_are_named_are_hashed_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = tuple(tmp_path / f"{n}.json" for n in range(5))
    for path in paths:
        path.write_bytes(path.name.encode())
    few = inputs.inputs(Grand(annotations=paths))
    monkeypatch.setattr(inputs, "FEW", 3)
    given: list[Any] = []

    def each(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        given.extend(items)
        return map(function, given)

    assert inputs.inputs(Grand(annotations=paths), each) == few  # pyright: ignore[reportArgumentType]
    assert tuple(given) == paths
    assert [one["sha256"] for one in few] == [hashlib.sha256(path.name.encode()).hexdigest() for path in paths]


def test_a_unit_of_files_carries_its_own_names_and_the_source_none(tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    for n in range(130):
        (tmp_path / f"scenes/sa_{n:03d}.json").write_text('{"a.jpg": {"objects": []}}')
    source = Grand(annotations=(tmp_path / "scenes",))

    units = source.units(None)

    assert [len(unit.names) for unit in units if isinstance(unit, grand.Files)] == [3] * 43 + [1]
    assert units[1] == grand.Files(str(tmp_path / "scenes"), ("sa_003.json", "sa_004.json", "sa_005.json"))
    assert b"sa_0" not in pickle.dumps(source)
    assert pickle.loads(pickle.dumps(units)) == list(units)


def test_a_spool_gives_workers_the_units_that_were_planned_and_is_gone_afterwards(tmp_path: Path) -> None:
    units = grand.Units([])
    (tmp_path / "scenes").mkdir()
    for n in range(70):
        (tmp_path / f"scenes/{n:02d}.json").write_text('{"a.jpg": {"objects": []}}')
    units = Grand(annotations=(tmp_path / "scenes",)).units(None)
    place = at(tmp_path / "out")

    with spool.spooled(place, units) as found:
        travelled = pickle.dumps(found)
        assert len(travelled) < 3000
        assert list(pickle.loads(travelled)) == list(units)
        path = tmp_path / "out" / spool.FOLDER / spool.NAME
        path.write_bytes(path.read_bytes().replace(b"01.json", b"../x.sh"))
        with pytest.raises(RequestError, match="expected unit 0 as it was planned, found other bytes"):
            _ = found[0]

    assert not list((tmp_path / "out").rglob("*"))


def test_a_list_of_units_needs_no_spool(tmp_path: Path) -> None:
    with spool.spooled(at(tmp_path / "out"), [range(3)]) as found:
        assert found == [range(3)]
    assert not (tmp_path / "out").exists()


def test_a_conversion_of_files_leaves_no_plan_behind(tmp_path: Path) -> None:
    path, flags = made("grand", tmp_path / "up")
    source = Grand(annotations=(path,), images=(Path(flags[-1]),))

    for workers, name in ((1, "one"), (2, "two")):
        assert ingest(source, tmp_path / name, Plan(workers=workers)).totals["written"] == 3

    one, two = (
        {str(path.relative_to(tmp_path / name)): path.is_file() and path.read_bytes() for path in (tmp_path / name).rglob("*")}
        for name in ("one", "two")
    )
    assert one == two
    assert "_plan" not in one


def test_of_shards_only_the_first_is_opened_before_workers_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = made("laion", tmp_path / "up")
    for number in range(1, 4):
        for suffix in (".tar", ".parquet"):
            os.link(folder / f"00000{suffix}", folder / f"{number:05d}{suffix}")
    opened: list[Path] = []
    original = laion._opened
    monkeypatch.setattr(laion, "_opened", lambda shard: opened.append(shard.parquet) or original(shard))

    units = Laion(annotations=(folder,)).units(None)

    assert [unit.stem.name for unit in units] == ["00000", "00001", "00002", "00003"]
    assert opened == [folder / "00000.parquet"]
    assert [unit.rows for unit in Laion(annotations=(folder,)).units(5)] == [3, 2]


def test_every_shard_is_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, _ = made("laion", tmp_path / "up")
    (folder / "00001.tar").write_bytes(bytes(10240))
    pq.write_table(pa.table({"url": ["http://x"], "key": ["1"], "status": ["failed_to_download"]}), folder / "00001.parquet")
    (folder / "00000_stats.json").write_text(json.dumps({"count": 3, "successes": 3}))

    with pytest.raises(SourceError, match="00001: expected at least one picture, found that all 1 rows failed"):
        ingest(Laion(annotations=(folder,)), tmp_path / "out", Plan())
    assert not (tmp_path / "out").exists()
