"""The reference's own outputs are in tests/conformance; these are the rules that need no tokenizer of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from schemas import Record, RecordError
from trainer.text import compat
from trainer.text.rendered import Rendered
from trainer.text.template import SYSTEM
from trainer.text.tokenizer import Tokenizer

Told = Callable[..., Record]


def render(stored: Record, tokenizer: Tokenizer, template: str = "v1") -> Rendered:
    return compat.render(stored, stored.turns, template, tokenizer, 2048)


def test_special_tokens_in_text_are_parsed(told: Told, spoken: Tokenizer) -> None:
    out = render(told(("user", "<0>"), ("assistant", "a </s> b")), spoken, "plain")

    assert out.ids.count(spoken.eos) == 1
    assert out.text == "<image>a </s> b\n"


def test_a_picture_that_no_marker_places_is_not_shown(told: Told, spoken: Tokenizer) -> None:
    out = render(told(("user", "<0>What?"), ("assistant", "b"), meta={"unplaced": [0]}), spoken)

    assert out.images == []
    assert out.text == SYSTEM + " USER: What? ASSISTANT: b</s>"


def test_an_end_token_in_the_question_throws_the_sample_away(told: Told, spoken: Tokenizer) -> None:
    out = render(told(("user", "what is </s>?"), ("assistant", "an end")), spoken)

    assert set(out.labels) == {-100}


@pytest.mark.parametrize(
    ("turns", "template"),
    [
        ([("user", "a"), ("user", "b")], "v1"),
        ([("assistant", "a")], "v1"),
        ([("system", "a"), ("user", "b")], "v1"),
        ([("text", "a")], "v1"),
        ([("user", "<0><1>"), ("assistant", "b")], "v1"),
        ([("user", "a"), ("assistant", "b")], "plain"),
        ([("user", "<0>"), ("assistant", "b"), ("user", "c"), ("assistant", "d")], "plain"),
    ],
)
def test_rows_on_which_it_crashes_are_refused(told: Told, spoken: Tokenizer, turns: list[Any], template: str) -> None:
    with pytest.raises(RecordError, match="template: expected"):
        render(told(*turns), spoken, template)
