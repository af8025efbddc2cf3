from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from schemas import Record, RecordError
from schemas.record import image_part, record, region_part, text_part, turn
from trainer.run.tokens import marked
from trainer.text import template
from trainer.text.rendered import End, Picture, Text, tokenise
from trainer.text.template import SYSTEM
from trainer.text.tokenizer import Tokenizer

Told = Callable[..., Record]


def shown(stored: Record, name: str = "v1") -> str:
    """The pieces, pictures as {0}, the end as </s>, trained ones between [ ]."""
    out = ""
    for piece in template.pieces(stored, stored.turns, name):
        if isinstance(piece, Picture):
            out += f"{{{piece.image}}}"
        elif isinstance(piece, End):
            out += "[</s>]" if piece.trained else "</s>"
        elif isinstance(piece, Text) and piece.text:
            out += f"[{piece.text}]" if piece.trained else piece.text
    return out.removeprefix(SYSTEM + " ").replace("][", "")


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        ([("user", "<0>\nHow many?"), ("assistant", "Two.")], "USER: {0}\nHow many? ASSISTANT:[ Two.</s>]"),
        ([("user", "How many?\n<0>"), ("assistant", "Two.")], "USER: {0}\nHow many? ASSISTANT:[ Two.</s>]"),
        ([("user", "<0>"), ("assistant", "Two.")], "USER: {0} ASSISTANT:[ Two.</s>]"),
        ([("user", " <0> a <0> b "), ("assistant", "c")], "USER: {0}\na  b ASSISTANT:[ c</s>]"),
        ([("user", "left <0> right <1>?"), ("assistant", "c")], "USER: left {0} right {1}? ASSISTANT:[ c</s>]"),
        ([("user", " no picture "), ("assistant", " c ")], "USER:  no picture  ASSISTANT:[  c </s>]"),
        ([("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")], "USER: a ASSISTANT:USER: b ASSISTANT:[ c</s>]"),
        ([("user", "a"), ("assistant", "see <0>")], "USER: a ASSISTANT:[ ]{0}[\nsee</s>]"),
        ([("user", "a"), ("assistant", "b"), ("user", "c")], "USER: a ASSISTANT:[ b</s>]USER: c "),
        ([("assistant", "Hello"), ("user", "a"), ("assistant", "b")], "USER: a ASSISTANT:[ b</s>]"),
        ([("user", "a", True), ("assistant", "b", False)], "USER: [a] ASSISTANT: b</s>"),
    ],
)
def test_v1_is_the_text_vicuna_was_trained_on(told: Told, turns: list[Any], text: str) -> None:
    assert shown(told(*turns)) == text


def test_v1_begins_with_the_system_text_or_with_the_record_s_own(told: Told) -> None:
    stored = told(("user", "a"), ("assistant", "b"))
    own = told(("system", "Be short."), ("user", "a"), ("assistant", "b"))

    first = next(iter(template.pieces(stored, stored.turns, "v1")))

    assert first == (SYSTEM + " ", False)
    assert shown(own) == "Be short. USER: a ASSISTANT:[ b</s>]"


def test_a_picture_that_no_marker_places_is_shown_with_the_first_question(told: Told) -> None:
    placed_first = told(("user", "<0>What?"), ("assistant", "b"), meta={"unplaced": [0]})
    in_dropped_turn = told(("assistant", "<0>Hello"), ("user", "What?"), ("assistant", "b"), meta={"unplaced": [0]})

    assert shown(placed_first) == "USER: {0}\nWhat? ASSISTANT:[ b</s>]"
    assert shown(in_dropped_turn) == "USER: {0}\nWhat? ASSISTANT:[ b</s>]"


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        ([("user", "Describe. <0>"), ("assistant", "a cat")], "{0}[a cat\n]"),
        ([("user", "<0><1>"), ("assistant", "cats")], "{0}{1}[cats\n]"),
        ([("user", "<0>"), ("assistant", "")], "{0}[\n]"),
        ([("user", "<0>"), ("assistant", "see <0> here")], "{0}{0}[\nsee  here\n]"),
    ],
)
def test_plain_is_picture_and_caption(told: Told, turns: list[Any], text: str) -> None:
    assert shown(told(*turns), "plain") == text


@pytest.mark.parametrize("name", ["plain", "v1"])
def test_a_document_is_trained_on_whole_with_its_pictures_in_place(told: Told, name: str) -> None:
    assert shown(told(("text", "<0>One. <1>Two. ")), name) == "{0}[One. ]{1}[Two. \n]"
    assert shown(told(("text", "a caption", False)), name) == "a caption\n"


@pytest.mark.parametrize(
    ("turns", "name", "told_so"),
    [
        ([("user", "a"), ("user", "b"), ("assistant", "c")], "v1", "user and assistant turns alternating, found user, user, assistant"),
        ([("user", "a"), ("tool", "b")], "v1", "found user, tool"),
        ([("assistant", "a")], "v1", "found no turn"),
        ([("user", "<0>"), ("assistant", "a"), ("user", "b"), ("assistant", "c")], "plain", "one question and its answer"),
        ([("user", "a"), ("assistant", "b")], "plain", "a picture in the question"),
    ],
)
def test_a_record_the_template_has_no_place_for_is_refused(told: Told, turns: list[Any], name: str, told_so: str) -> None:
    with pytest.raises(RecordError, match=told_so) as caught:
        shown(told(*turns), name)

    assert caught.value.reason == "template"


def test_regions_are_refused_until_a_template_writes_them(told: Told) -> None:
    parts = [text_part("the "), region_part("r1"), image_part(0)]
    stored = record("test", turns=[turn("user", parts), turn("assistant", [region_part("r1")])])

    with pytest.raises(RecordError, match="expected text and pictures, found region r1"):
        shown(stored)


def test_a_token_is_trained_if_all_of_it_is_trained(told: Told, spoken: Tokenizer) -> None:
    stored = told(("user", "<0>\nred?"), ("assistant", "green"))

    out = tokenise(template.pieces(stored, stored.turns, "v1"), spoken)

    assert out.ids[0] == spoken.bos
    assert [label for label in out.labels if label != -100] == [*spoken.encode(" green", first=False)[0], spoken.eos]
    assert out.ids.count(-200) == 1
    assert out.images == [0]
    assert out.text == SYSTEM + " USER: <image>\nred? ASSISTANT: green</s>"
    assert marked(out) == SYSTEM + " USER: <image>\nred? ASSISTANT:⟦ green</s>⟧"


def test_a_record_over_max_tokens_is_cut_and_loses_the_pictures_behind_the_cut(told: Told, spoken: Tokenizer) -> None:
    stored = told(("text", "<0>red<1>green"))

    whole = tokenise(template.pieces(stored, stored.turns, "plain"), spoken)
    cut = whole.cut(3)

    assert cut.ids == whole.ids[:3]
    assert cut.labels == whole.labels[:3]
    assert (whole.images, cut.images) == ([0, 1], [0])
    assert marked(cut).endswith("[cut here]")
