"""Rows of JSON files: split whole, or by brackets and strings where JSON is not quite JSON."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.rows import Rows, cells, decode, decode_nan, first_rows, loosely, once, raw_rows, rows, scan_list, tables
from schemas import Reject, SourceError

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


class Name(msgspec.Struct):
    name: str


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(text, name="x.json"): a file of this text."""

    def make(text: str | bytes, name: str = "x.json") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return make


def texts(found: Rows) -> list[str]:
    return [bytes(row).decode() for row in found]


@pytest.mark.parametrize("text", ['[{"a": 1},{"b": [2, 3]} , 5]', '\ufeff  [\n  {"a": 1},\r\n\t{"b": [2, 3]},\n\n  5\n]\n'])
def test_a_list_is_split_into_its_rows(write: Callable[..., Path], text: str) -> None:
    found = rows([write(text)])

    assert texts(found) == ['{"a": 1}', '{"b": [2, 3]}', "5"]


def test_lines_are_rows_and_empty_lines_are_none(write: Callable[..., Path]) -> None:
    found = rows([write('\ufeff{"a": 1}\r\n\n  {"b": "x\\ny"}\n{"c": 3}')])

    assert [json.loads(text) for text in texts(found)] == [{"a": 1}, {"b": "x\ny"}, {"c": 3}]


def test_several_files_are_one_sequence_that_knows_where_each_row_stood(write: Callable[..., Path]) -> None:
    found = rows([write("[1, 2]", "a.json"), write("[]", "b.json"), write('{"x": 3}\n', "c.jsonl")])

    assert texts(found) == ["1", "2", '{"x": 3}']
    assert [found.where(index) for index in range(3)] == [("a.json", 0), ("a.json", 1), ("c.jsonl", 0)]


def test_rows_travel_as_offsets(write: Callable[..., Path]) -> None:
    found = rows([write(json.dumps([{"text": "x" * 1000}] * 100))])
    assert len(found[99]) == len('{"text": ""}') + 1000

    packed = pickle.dumps(found)

    assert len(packed) < 100 * 16 + 1000
    assert texts(pickle.loads(packed)) == texts(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2,]", ["1", "2"]),
        ("[\n1,\n2,\n]\n", ["1", "2"]),
        ('[{"a": NaN}, {"b": 1}]', ['{"a": NaN}', '{"b": 1}']),
        ('[{"a": "\\"]}"}, [[[[[1]]]], {"x": [{"y": [{}]}]}], "[",]', ['{"a": "\\"]}"}', '[[[[[1]]]], {"x": [{"y": [{}]}]}]', '"["']),
        ("[1,,2]", ["1", "", "2"]),
        ("[ ]", []),
        ("[]", []),
    ],
)
def test_what_is_not_quite_json_is_split_by_brackets_and_strings(write: Callable[..., Path], text: str, expected: list[str]) -> None:
    path = write(text)

    found = [path.read_bytes()[start:stop].decode() for start, stop in scan_list(path, path.read_bytes())]

    assert found == expected


@given(st.lists(values, max_size=6), st.sampled_from([None, 1]), st.booleans())
def test_the_scanner_splits_any_list_as_json_does(items: list[Any], indent: Any, plain: bool) -> None:
    text = json.dumps(items, indent=indent, ensure_ascii=not plain).encode("utf-8", "surrogatepass")

    found = [json.loads(text[start:stop]) for start, stop in scan_list(Path("x.json"), text)]

    assert found == items


def test_a_bad_row_is_refused_alone_and_only_when_it_is_decoded(write: Callable[..., Path]) -> None:
    found = rows([write('[{"name": "a"}, {"name": NaN}, {"name": 5}, {"name": "\\ud800"}, {"name": "b"},]')])
    decoder = msgspec.json.Decoder(Name)

    assert [_outcome(row, decoder) for row in found] == ["a", "json", "schema", "json", "b"]


def test_a_row_nested_without_end_is_refused_alone(write: Callable[..., Path]) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    found = rows([write(f'[{{"name": "a"}}, {{"name": "a", "x": {deep}}}]')])
    decoder = msgspec.json.Decoder(Name)

    assert [_outcome(row, decoder) for row in found] == ["a", "json"]


def test_bytes_that_are_not_utf_8_cost_their_row(write: Callable[..., Path]) -> None:
    found = rows([write(b'[{"name": "a"}, {"name": "\xff"}]')])
    decoder = msgspec.json.Decoder(Name)

    assert [_outcome(row, decoder) for row in found] == ["a", "json"]


def _outcome(row: Any, decoder: msgspec.json.Decoder[Name]) -> str:
    try:
        return decode(row, decoder).name
    except Reject as reject:
        return reject.reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n{"b": 2},\n{"c": ', r"x\.json line 3, byte 27: expected a closing bracket, found the end of the file"),
        ('[{"a": 1},\n{"b": "no end', r"x\.json line 2, byte 17: expected a string to end, found the end of the file"),
        ('[{"a": 1}', r"x\.json line 1, byte 9: expected a closing bracket, found the end of the file"),
        ('[{"a": 1},][{"b": 2}]', r"x\.json line 1, byte 11: expected the end of the file, found b'\[\{\"b\": 2\}\]'"),
        ('{"a": 1}\n{"b": 2', r"x\.json line 2, byte 16: expected one whole JSON object a line, found .*\"b\": 2"),
        ('{\n  "a": 1\n}', r"x\.json line 1, byte 1: expected one whole JSON object a line"),
        ("", r"x\.json: expected JSON, found an empty file"),
        ("[]", r"x\.json: expected at least one row, found an empty list"),
        ("PK\3\4", r"x\.json: expected a JSON list or one JSON object a line, found b'PK"),
    ],
)
def test_a_file_that_is_cut_or_something_else_stops_with_its_place(write: Callable[..., Path], text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        rows([write(text)])


def test_a_path_that_is_no_file_stops(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere: expected a readable file, found No such file or directory"):
        rows([tmp_path / "nowhere"])
    with pytest.raises(SourceError, match="expected a readable file, found Is a directory"):
        rows([tmp_path])


def test_cells_are_the_wanted_fields_of_every_row(write: Callable[..., Path]) -> None:
    for text in ('[{"name": "a", "x": 1}, {"name": "b"}]', '{"name": "a", "x": 1}\n\n{"name": "b"}\n'):
        assert list(cells(write(text), Name)) == [Name("a"), Name("b")]


def test_cells_pass_over_rows_of_another_kind(write: Callable[..., Path]) -> None:
    for text in ('[{"name": "a"}, 5, {"name": 5}, {"name": NaN}, {"name": "b"},]', '{"name": "a"}\n5\n{}\n{"name": NaN}\n{"name": "b"}'):
        assert list(cells(write(text), Name)) == [Name("a"), None, None, None, Name("b")]


def test_cells_of_a_cut_file_stop(write: Callable[..., Path]) -> None:
    with pytest.raises(SourceError, match="expected a closing bracket"):
        list(cells(write('[{"name": "a"}, {"name": '), Name))


def test_the_first_rows_are_read_without_the_rest(write: Callable[..., Path]) -> None:
    assert first_rows(write('[1, {"a": [2]}, 3, "cut'), 2) == [b"1", b'{"a": [2]}']
    assert first_rows(write("[1, 2,]"), 5) == [b"1", b"2"]
    assert first_rows(write("[]"), 5) == []
    assert first_rows(write('{"a": 1}\n{"b": 2}\n{"c"'), 2) == [b'{"a": 1}', b'{"b": 2}']


def test_raw_rows_are_those_of_rows(write: Callable[..., Path]) -> None:
    for text in ('[{"a": 1}, 2]', '[{"a": 1}, 2,]', '{"a": 1}\n'):
        path = write(text)
        assert [bytes(row).decode() for row in raw_rows(path)] == texts(rows([path]))


def test_tables_are_the_lists_of_an_object_by_name(write: Callable[..., Path]) -> None:
    text = '{"info": {"images": [0]}, "images": [{"id": 1}, {"id": 2}], "other": [[["images"]]], "boxes": [], "last": [3]}'

    found = tables(write(text), ["images", "boxes", "last", "none"])

    assert {name: texts(list_) for name, list_ in found.items()} == {"images": ['{"id": 1}', '{"id": 2}'], "last": ["3"]}


def test_tables_that_are_not_quite_json_are_split_all_the_same(write: Callable[..., Path]) -> None:
    text = '{"info": {"images": [0]}, "images": [{"id": NaN}, {"id": 2},], "note": "images", "x": [[[[1]]]], "last": [3],}'

    found = tables(write(text), ["images", "last", "none"])

    assert {name: texts(list_) for name, list_ in found.items()} == {"images": ['{"id": NaN}', '{"id": 2}'], "last": ["3"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"expected a JSON object with images, found b'\[1\]'"),
        ('{"images": 5}', "expected lists named images, found Expected `array`"),
        ('{"images": [{"id": 1}', r"line 1, byte 21: expected a closing bracket, found the end of the file"),
        ('{"images": [1,]} {"images": [2]}', r"byte 17: expected the end of the file, found"),
    ],
)
def test_an_object_that_is_cut_or_something_else_stops(write: Callable[..., Path], text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        tables(write(text), ["images"])


def test_nan_can_be_read_as_null_and_counted() -> None:
    decoder = msgspec.json.Decoder(dict[str, Any])

    assert decode_nan(b'{"a": 1}', decoder) == ({"a": 1}, 0)
    assert decode_nan(b'{"a": [NaN, -Infinity], "NaN": "NaN \\" Infinity"}', decoder) == ({"a": [None, None], "NaN": 'NaN " Infinity'}, 2)
    with pytest.raises(Reject, match="json"):
        decode_nan(b'{"a": ', decoder)


def test_a_loose_row_keeps_what_is_sound() -> None:
    assert loosely(b'{"a": ["\\ud800", "b"], "c": Infinity}') == {"a": [None, "b"], "c": float("inf")}


def test_ranges_are_sixteen_bytes_a_row(write: Callable[..., Path]) -> None:
    assert rows([write("[1, 2]")]).ranges.dtype == np.int64
    assert rows([write("[1, 2,]")]).ranges.nbytes == 32


def test_a_field_stated_twice_stops_the_file(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    file.write_bytes(b'{"info": {}, "images": [{"id": 1}],\n "images": [{"id": 2}], "annotations": []}')
    with pytest.raises(SourceError, match=r"line 1, byte 11: expected every field once"):
        tables(file, ["images", "annotations"])


def test_a_file_that_states_every_field_once_is_read_whatever_stands_between(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    file.write_bytes(b'\xef\xbb\xbf { "a\\"b" : 1 ,\n"images":[{"id": 1}] , "x": {"images": []}, "annotations" : [ ] }\n')
    assert [bytes(row) for row in tables(file, ["images"])["images"]] == [b'{"id": 1}']


def test_a_row_that_states_a_field_twice_is_refused() -> None:
    with pytest.raises(Reject, match="repeated_field"):
        once(b'{"image": "a.jpg", "image": "b.jpg"}', ["image"])
    once(b'{"image": "a.jpg", "more": {"image": "b.jpg"}}', ["image"])


def test_a_field_whose_name_is_no_utf_8_stops_the_file(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b'{"images": [{"id": 1}], "categ\x98ries": []}')

    with pytest.raises(SourceError, match=r"rows\.json: expected UTF-8, found "):
        tables(tmp_path / "rows.json", ("images",))
