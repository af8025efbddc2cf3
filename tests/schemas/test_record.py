from __future__ import annotations

import json

import msgspec
import pytest

from schemas import RecordError, record
from schemas.record import decode, encode
from tests.shards.records import everything

KEYS = ["format", "key", "source", "language", "images", "turns", "choices", "regions", "expressions", "relations", "maps", "meta"]


def test_write_read_write_gives_the_same_bytes() -> None:
    data = encode(everything().record)

    assert encode(decode(data)) == data


def test_every_field_is_present_and_null_where_empty() -> None:
    entry = record.image(width=1, height=2, format="png", bytes=3)
    made = record.record("s", images=[entry], turns=[record.turn("text", [record.image_part(0)])], regions=[record.region("r", 0)])

    found = json.loads(encode(made))

    assert list(found) == KEYS
    assert found["images"] == [
        {"member": "", "width": 1, "height": 2, "format": "png", "bytes": 3, "origin": None, "similarity": None, "seconds": None}
    ]
    assert found["turns"] == [{"role": "text", "parts": [{"text": None, "image": 0, "region": None}], "spans": [], "train": None}]
    assert found["regions"] == [
        {
            "id": "r",
            "image": 0,
            "box": None,
            "mask": None,
            "points": None,
            "label": None,
            "crowd": None,
            "attributes": None,
            "score": None,
        }
    ]
    assert (found["language"], found["choices"], found["expressions"], found["maps"], found["meta"]) == (None, [], [], [], "{}")


def test_unknown_fields_are_ignored() -> None:
    item = everything().record
    raw = json.loads(encode(item))
    raw["later"], raw["images"][0]["later"], raw["turns"][0]["parts"][0]["later"] = 1, [2], {"a": 3}

    assert decode(json.dumps(raw).encode()) == item


@pytest.mark.parametrize("field", KEYS)
def test_a_record_that_lacks_a_field_is_refused(field: str) -> None:
    raw = json.loads(encode(everything().record))
    del raw[field]

    with pytest.raises(msgspec.ValidationError, match=field):
        decode(json.dumps(raw).encode())


@pytest.mark.parametrize("field", ["text", "image", "region"])
def test_a_part_that_lacks_one_of_its_three_is_refused(field: str) -> None:
    raw = json.loads(encode(everything().record))
    del raw["turns"][0]["parts"][0][field]

    with pytest.raises(msgspec.ValidationError, match=field):
        decode(json.dumps(raw).encode())


def test_a_nan_in_meta_becomes_null() -> None:
    made = record.record("s", meta={"a": float("nan"), "b": [float("inf"), 1.5]})

    assert made.meta == '{"a":null,"b":[null,1.5]}'


def test_a_lone_surrogate_in_meta_is_named() -> None:
    with pytest.raises(RecordError) as caught:
        record.record("s", meta={"a": "\ud800"})

    assert caught.value.reason == "text_unicode"


def test_a_turns_text_is_its_text_parts_joined_by_nothing() -> None:
    turn = record.turn("user", [record.text_part("a"), record.image_part(0), record.text_part(" b"), record.region_part("r")])

    assert turn.text() == "a b"
