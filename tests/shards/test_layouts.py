"""Layouts: whatever a sample of a tar made elsewhere holds, it becomes a valid record or is refused by name."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import RecordError, Reject, validate
from schemas.record import decode, encode
from shards import layouts
from tests.shards.records import HOSTILE, picture

PICTURE = picture()
ENCODED = base64.b64encode(PICTURE).decode()
text = st.sampled_from([*HOSTILE, "\ud800", "_!_IMAGE1_!_ and _!_IMAGE2_!_", ENCODED, f"b'{ENCODED}'", ENCODED[:-2], "x" * 3000])
numbers = st.sampled_from([0, 1, -1, 8, 6, 2**53, 2**63, 2**64, 10**30, 0.5, 1e308, float("nan"), float("inf"), float("-inf")])
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=2),
    max_leaves=6,
)


def entries(*names: str, of: st.SearchStrategy[Any] = values) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of these fields."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, of))


pictures = entries(
    "image_name", "raw_url", "matched_text_index", "matched_sim", "image_base64", "base64_image", of=st.none() | text | numbers
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "text_list": st.lists(text, max_size=3) | values,
        "image_info": st.lists(pictures, max_size=3) | values,
        "similarity_matrix": st.lists(st.lists(numbers, max_size=3), max_size=3) | values,
        "url": text | values,
        "could_have_url_duplicate": values,
        "is_gpt": values,
        "example": text | values,
        "image_map": st.dictionaries(st.sampled_from(["_!_IMAGE1_!_", "_!_IMAGE2_!_", "x"]), pictures, max_size=2) | values,
    },
)
columns = entries("caption", "url", "width", "height", "similarity", "LANGUAGE", "original_width", "NSFW", "punsafe")


def becomes_a_record_or_is_refused(layout: str, members: dict[str, bytes]) -> None:
    try:
        made = layouts.read(layout, "000001-00000002", "any/key", members)
        validate(made.record)
    except (Reject, RecordError):
        return
    assert len(made.files) == len(made.record.images)
    assert decode(encode(made.record)) == made.record


@settings(deadline=None, max_examples=300)
@given(documents)
def test_any_document_becomes_a_record_or_is_refused(document: dict[str, Any]) -> None:
    becomes_a_record_or_is_refused("openflamingo-mmc4", {"json": json.dumps(document).encode()})


@settings(deadline=None, max_examples=500)
@given(columns, text, st.booleans())
def test_any_row_becomes_a_record_or_is_refused(row: dict[str, Any], caption: str, has_json: bool) -> None:
    members = {"jpg": PICTURE, "txt": caption.encode("utf-8", "surrogatepass")} | ({"json": json.dumps(row).encode()} if has_json else {})
    becomes_a_record_or_is_refused("img2dataset", members)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["json", "txt", "jpg", "png"]), st.binary(max_size=40)))
def test_any_bytes_become_a_record_or_are_refused(members: dict[str, bytes]) -> None:
    for layout in layouts.names():
        assert layouts.find(layout).known(members) in (True, False)
        becomes_a_record_or_is_refused(layout, members)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 50_000, b"NaN" + b"[" * 100_000, b'{"caption": "\\ud800", "similarity": NaN}'])
def test_json_that_breaks_parsers_is_refused(data: bytes) -> None:
    for layout in layouts.names():
        with pytest.raises(Reject, match=r"json|schema"):
            layouts.read(layout, "000000-00000000", "k", {"json": data, "jpg": PICTURE})


def test_layouts_are_the_modules_of_the_folder() -> None:
    assert layouts.names() == ["img2dataset", "openflamingo-mmc4"]
    with pytest.raises(KeyError):
        layouts.find("pickle")
