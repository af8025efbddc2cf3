"""Chat formats and the tokenizer's own template: what is written, and what of it is trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas import Record, RecordError, RequestError
from trainer.recipe import TokenizerChoice
from trainer.run.tokens import marked
from trainer.text import rendered, template, tokenizer

Told = Callable[..., Record]

ADDED = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
JINJA = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def chatty(words: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], tokenizer.Tokenizer]:
    """chatty(jinja): the small tokenizer with chat tokens, and with this template of its own."""

    def make(jinja: str | None) -> tokenizer.Tokenizer:
        folder = tmp_path_factory.mktemp("chatty")
        for file in Path(words).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "tokenizer_config.json").read_text()) if (folder / "tokenizer_config.json").is_file() else {}
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": jinja}))
        return tokenizer.load(TokenizerChoice(path=str(folder), add=ADDED))

    return make


def shown(stored: Record, name: str, words: tokenizer.Tokenizer, *, system: str | None = None, reply: bool = False) -> str:
    return marked(rendered.tokenise(template.pieces(stored, stored.turns, name, system, words, reply=reply), words))


TALK = [("user", "<0>\nHow many?"), ("assistant", "Two."), ("user", "Sure?"), ("assistant", "Yes.")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "chatml",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nHow many?<|im_end|>\n"
            "<|im_start|>assistant\n⟦Two.<|im_end|>⟧\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n⟦Yes.<|im_end|>⟧",
        ),
        (
            "qwen",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>How many?<|im_end|>\n"
            "<|im_start|>assistant\n⟦Two.</s>⟧\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n⟦Yes.</s>⟧",
        ),
        ("llama2", "[INST] <image>\nHow many? [/INST]⟦ Two. </s>⟧<s>[INST] Sure? [/INST]⟦ Yes. </s>⟧"),
        ("mistral", "[INST] <image>\nHow many? [/INST]⟦ Two.</s>⟧[INST] Sure? [/INST]⟦ Yes.</s>⟧"),
        (
            "llama3",
            "<|start_header_id|>user<|end_header_id|>\n\n<image>\nHow many?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
            "⟦Two.<|eot_id|>⟧<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Yes.<|eot_id|>⟧",
        ),
    ],
)
def test_a_format_writes_turns_as_its_models_read_them(told: Told, chatty: Any, name: str, text: str) -> None:
    words = chatty(None)
    assert shown(told(*TALK), name, words).removeprefix("<s>") == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llama2", "[INST] <<SYS>>\nBe short.\n<</SYS>>\n\nHi [/INST]⟦ Ho </s>⟧"),
        ("mistral", "[INST] Be short.\n\nHi [/INST]⟦ Ho</s>⟧"),
        ("chatml", "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Ho<|im_end|>⟧"),
    ],
)
def test_the_system_s_words_are_the_record_s_or_the_recipe_s(told: Told, chatty: Any, name: str, text: str) -> None:
    words = chatty(None)
    own, asked = told(("system", "Be short."), ("user", "Hi"), ("assistant", "Ho")), told(("user", "Hi"), ("assistant", "Ho"))

    assert shown(own, name, words, system="Be long.") == text
    assert shown(asked, name, words, system="Be short.") == text


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("chatml", "<|im_start|>assistant\n"),
        ("v1", "USER: Hi ASSISTANT:"),
        ("llama2", "[INST] Hi [/INST]"),
        ("chat", "<|im_start|>assistant\n"),
    ],
)
def test_a_question_can_be_written_up_to_where_its_answer_begins(told: Told, chatty: Any, name: str, end: str) -> None:
    text = shown(told(("user", "Hi")), name, chatty(JINJA), reply=True)

    assert text.endswith(end)
    assert "⟦" not in text


def test_several_pictures_stay_in_place_and_rows_may_have_none(told: Told, chatty: Any) -> None:
    words = chatty(None)

    assert "user\nleft <image> right <image>?<|im_end|>" in shown(
        told(("user", "left <0> right <1>?"), ("assistant", "c")), "chatml", words
    )
    assert "<image>" not in shown(told(("user", "a"), ("assistant", "b")), "chatml", words)


def test_what_is_said_never_becomes_a_token_of_the_format(told: Told, chatty: Any) -> None:
    words = chatty(JINJA)
    stored = told(("user", "<|im_end|>"), ("assistant", "<|im_start|>system"))
    for name in ("chatml", "chat"):
        ids = rendered.tokenise(template.pieces(stored, stored.turns, name, None, words), words).ids
        turns = 3 if name == "chatml" else 2
        assert [ids.count(words.specials[token]) for token in ("<|im_start|>", "<|im_end|>")] == [turns, turns]


def test_the_tokenizer_s_own_template_trains_answers_and_what_ends_them(told: Told, chatty: Any) -> None:
    stored = told(("user", "<0>\nHow many?"), ("assistant", " Two. "))

    text = shown(stored, "chat", chatty(JINJA), system="Be short.")

    assert text == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n<image>\nHow many?<|im_end|>\n<|im_start|>assistant\n⟦Two.<|im_end|>⟧\n"
    )


def test_a_template_that_keeps_blanks_keeps_them(told: Told, chatty: Any) -> None:
    text = shown(told(("user", "Hi"), ("assistant", " Ho ")), "chat", chatty(JINJA.replace(" | trim", "")))

    assert text.endswith("assistant\n⟦ Ho <|im_end|>⟧\n")


@pytest.mark.parametrize(
    ("jinja", "error", "says"),
    [
        (None, RequestError, "expected a chat_template in the tokenizer's folder"),
        ("{% for %}", RequestError, "expected a chat template that runs"),
        ("{{ messages[0]['content'] }}", RecordError, "write every turn once and in order"),
        ("{{ raise_exception('no roles') }}", RecordError, "found: no roles"),
        ("{{ ''.__class__.__mro__ }}", RequestError, "expected a chat template that runs"),
    ],
)
def test_a_template_that_does_not_serve_is_told(told: Told, chatty: Any, jinja: str | None, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        shown(told(("user", "a"), ("assistant", "b")), "chat", chatty(jinja))


def test_a_tokenizer_without_the_format_s_tokens_is_told(told: Told, spoken: tokenizer.Tokenizer) -> None:
    with pytest.raises(
        RequestError, match=r"expected a token <\|im_start\|>, as the template has it, found none; give --set tokenizer.add"
    ):
        shown(told(("user", "a"), ("assistant", "b")), "chatml", spoken)
