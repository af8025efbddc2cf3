from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings

from schemas import Choice, Expression, Mask, Part, Record, RecordError, Relation, Segment, Span, record, validate
from schemas.validate import __doc__ as RULES
from schemas.validate import crossing
from shards.writer import name_members
from tests.shards.records import Item, everything, items


def whole() -> Record:
    """A valid record in which no field is empty."""
    made = everything().record
    name_members(made, "000000-00000000")
    return made


def put(path: str, value: object) -> Callable[[Record], None]:
    """What sets `turns.0.role` and the like."""

    def change(made: Record) -> None:
        target: object = made
        *steps, last = path.split(".")
        for step in steps:
            target = target[int(step)] if isinstance(target, list) else getattr(target, step)
        if isinstance(target, list):
            target[int(last)] = value
        else:
            setattr(target, last, value)

    return change


def nothing_left(made: Record) -> None:
    for name in ("images", "regions", "expressions", "relations", "maps", "choices"):
        setattr(made, name, [])
    made.turns = [record.turn("text", [record.text_part("")])]


BROKEN = [
    ("format", put("format", 2)),
    ("key", put("key", "0-0")),
    ("source", put("source", "")),
    ("language", put("language", "english please")),
    ("language", put("language", "")),
    ("meta", put("meta", "")),
    ("meta", put("meta", "{")),
    ("meta", put("meta", "[]")),
    ("meta", put("meta", '"text"')),
    ("meta", put("meta", '{"a":"' + "x" * 64_000 + '"}')),
    ("meta", put("meta", '{"a":' + "[" * 30_000 + "]" * 30_000 + "}")),
    ("meta", put("meta", '{"a":"\ud800"}')),
    ("empty", nothing_left),
    ("image_size", put("images.0.width", 0)),
    ("image_size", put("images.0.height", -1)),
    ("image_size", put("images.0.width", 2**31)),
    ("image_format", put("images.0.format", "heic")),
    ("image_format", put("images.0.format", "JPG")),
    ("image_bytes", put("images.0.bytes", 0)),
    ("member", put("images.0.member", "000000-00000000.1.jpg")),
    ("member", put("images.0.member", "../000000-00000000.0.jpg")),
    ("not_finite", put("images.0.similarity", math.nan)),
    ("not_finite", put("images.0.seconds", math.inf)),
    ("not_finite", put("regions.0.score", -math.inf)),
    ("role", put("turns.0.role", "human")),
    ("role", put("choices.0.turns.0.role", "")),
    ("part", put("turns.0.parts", [Part(None, None, None), *everything().record.turns[0].parts])),
    ("part", put("turns.0.parts", [Part("both", 0, None), *everything().record.turns[0].parts])),
    ("part_image", put("turns.0.parts.0.image", 2)),
    ("part_image", put("turns.0.parts.0.image", -1)),
    ("part_region", put("turns.0.parts.2.region", "r3")),
    ("image_unplaced", put("turns.0.parts", [record.image_part(0), record.text_part("a dog runs")])),
    ("image_unplaced", put("turns", [])),
    ("image_unplaced", put("choices.0.turns.0.parts", [record.image_part(0)])),
    ("image_unplaced", put("choices.0", Choice([]))),
    ("span_range", put("turns.0.spans", [Span(0, 11, [])])),
    ("span_range", put("turns.0.spans", [Span(-1, 2, [])])),
    ("span_range", put("turns.0.spans", [Span(3, 3, [])])),
    ("span_region", put("turns.0.spans", [Span(0, 5, ["r9"])])),
    ("span_cross", put("turns.0.spans", [Span(0, 5, []), Span(2, 7, [])])),
    ("region_id", put("regions.1.id", "r1")),
    ("region_id", put("regions.1.id", "")),
    ("region_image", put("regions.0.image", 2)),
    ("region_image", put("regions.0.image", -1)),
    ("box", put("regions.0.box", [0.0, 0.0, 8.1, 6.0])),
    ("box", put("regions.0.box", [-0.1, 0.0, 8.0, 6.0])),
    ("box", put("regions.0.box", [3.0, 0.0, 3.0, 6.0])),
    ("box", put("regions.0.box", [0.0, 0.0, 8.0])),
    ("box", put("regions.0.box", [0.0, 0.0, 8.0, math.nan])),
    ("mask", put("regions.1.mask", Mask([5, 4], "00"))),
    ("mask", put("regions.1.mask", Mask([4, 5], "19"))),
    ("mask", put("regions.1.mask", Mask([4, 5], ""))),
    ("points", put("regions.1.points", [[1.0, 2.0]])),
    ("points", put("regions.1.points", [[1.0, math.nan, 2.0]])),
    ("attributes", put("regions.0.attributes", "wet fur")),
    ("attributes", put("regions.0.attributes", "[" * 30_000 + "]" * 30_000)),
    ("expression_region", put("expressions.0", Expression("the dog", ["r1", "r3"]))),
    ("relation_region", put("relations.0", Relation("r1", "beside", "r3"))),
    ("relation_region", put("relations.0", Relation("r3", "beside", "r1"))),
    ("map_image", put("maps.0.image", 2)),
    ("map_image", put("maps.0.image", -1)),
    ("map_kind", put("maps.0.kind", "depth")),
    ("map_encoding", put("maps.0.encoding", "RGBA32")),
    ("map_member", put("maps.0.member", "parts")),
    ("map_member", put("maps.0.member", "000000-00000000.0.PARTS.png")),
    ("map_member", put("maps.0.member", "000000-00000000.0.panoptic.png")),
    ("map_segments", put("maps.1.segments", [Segment(3, None, None, None), Segment(3, None, None, None)])),
]


def test_a_record_in_which_nothing_is_empty_is_valid() -> None:
    validate(whole())


@pytest.mark.parametrize(("reason", "change"), BROKEN, ids=[f"{number}-{reason}" for number, (reason, _) in enumerate(BROKEN)])
def test_each_rule_has_its_own_reason(reason: str, change: Callable[[Record], None]) -> None:
    made = whole()
    change(made)

    with pytest.raises(RecordError) as caught:
        validate(made)

    assert caught.value.reason == reason
    assert caught.value.detail


def test_every_reason_of_the_docstring_is_tested() -> None:
    table = [line for line in (RULES or "").splitlines() if line.startswith("    ")]
    reasons = {word for line in table for word in line.strip().split("  ")[0].split()}

    assert reasons == {reason for reason, _ in BROKEN}


@pytest.mark.parametrize("key", ["000000-00000000", "123456-12345678"])
def test_a_key_is_unit_and_row(key: str) -> None:
    made = everything().record
    name_members(made, key)

    validate(made)


@pytest.mark.parametrize(
    "key", ["", "00000-00000000", "000000-0000000", "000000_00000000", "000000-00000000\n", "00000a-00000000", "\u0660" * 6 + "-00000000"]
)
def test_any_other_key_is_refused(key: str) -> None:
    made = everything().record
    name_members(made, key)

    with pytest.raises(RecordError, match=r"^key:"):
        validate(made)


@pytest.mark.parametrize(
    ("spans", "crosses"),
    [
        ([(0, 5), (5, 9)], False),
        ([(0, 9), (2, 4), (4, 6), (5, 6)], False),
        ([(2, 4), (2, 4)], False),
        ([(0, 4), (0, 9)], False),
        ([(0, 5), (4, 9)], True),
        ([(0, 9), (1, 5), (4, 6)], True),
        ([(4, 9), (0, 5)], True),
    ],
)
def test_spans_may_nest_and_may_not_cross(spans: list[tuple[int, int]], crosses: bool) -> None:
    assert crossing([Span(start, end, []) for start, end in spans]) is crosses


def test_spans_count_code_points() -> None:
    made = record.record("s", turns=[record.turn("text", [record.text_part("\U0001f600b")], spans=[Span(0, 2, [])])], key="000000-00000000")
    validate(made)

    made.turns[0].spans = [Span(0, 3, [])]
    with pytest.raises(RecordError, match="span_range"):
        validate(made)


def test_text_alone_and_pictures_alone_are_records() -> None:
    validate(record.record("s", turns=[record.turn("text", [record.text_part("x")])], key="000000-00000000"))
    entry = record.image(width=1, height=1, format="png", bytes=1, member="000000-00000000.0.png")
    validate(record.record("s", images=[entry], turns=[record.turn("text", [record.image_part(0)])], key="000000-00000000"))


@given(items())
@settings(max_examples=50, deadline=None)
def test_what_the_strategy_builds_is_valid(item: Item) -> None:
    name_members(item.record, "000000-00000000")

    validate(item.record)
