"""The tokenizer's own chat template: a Jinja text that says how turns are written.

It is run on marks in place of what is said, and the marks are then replaced: so what is said stays data, and the labels are known by
construction. An answer is trained on, and what follows it up to its first special token. https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from schemas import RecordError, RequestError
from trainer.text.rendered import Piece, Text, Token
from trainer.text.tokenizer import Tokenizer

Said = tuple[str, list[Piece], bool]  # role, message, whether an answer is trained on

# A blank that is no template's stands on either side: it is gone where the template takes the blanks off what is said.
_MARK = re.compile("(\x0b?)\ue000([0-9]+)\ue001\x0b?")


def pieces(said: Sequence[Said], tokenizer: Tokenizer | None, *, reply: bool = False) -> Iterator[Piece]:
    """The turns as the template writes them. Raises RequestError where there is none, RecordError where it does not take these turns."""
    if tokenizer is None or tokenizer.chat_template is None:
        raise RequestError("template chat: expected a chat_template in the tokenizer's folder, found none")
    messages = [{"role": role, "content": f"\x0b\ue000{number}\ue001\x0b"} for number, (role, _, _) in enumerate(said)]
    text = _run(tokenizer, messages, reply=reply)
    marks = list(_MARK.finditer(text))
    if [int(mark[2]) for mark in marks] != list(range(len(said))):
        raise RecordError(
            "template", "expected the tokenizer's chat template to write every turn once and in order, found that it does not"
        )
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    yield from _written(text[: marks[0].start()], tokenizer, trained=False)
    for mark, end, (role, message, trained) in zip(marks, ends, said, strict=True):
        yield from message if mark[1] else _stripped(message)
        yield from _written(text[mark.end() : end], tokenizer, trained=trained and role == "assistant" and bool(message))


def _run(tokenizer: Tokenizer, messages: list[dict[str, str]], *, reply: bool) -> str:
    import jinja2

    def refuse(message: str) -> None:
        raise RecordError("template", f"expected turns that the tokenizer's chat template takes, found: {message}"[:300])

    try:
        compiled = _compiled(tokenizer.chat_template or "")
        names = {"bos_token": tokenizer.bos_text, "eos_token": tokenizer.eos_text, "raise_exception": refuse}
        return compiled.render(messages=messages, add_generation_prompt=reply, **names)
    except jinja2.TemplateError as error:
        raise RequestError(f"template chat: expected a chat template that runs, found {error}") from error


@lru_cache(maxsize=8)
def _compiled(text: str) -> Any:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # No strftime_now: templates that ask for it have a date for when it is missing, and a rendering must not depend on the day.
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]).from_string(text)


def _written(text: str, tokenizer: Tokenizer, *, trained: bool) -> Iterator[Piece]:
    """The template's text, trained up to the first special token in it; none is where there is no such token."""
    found = tokenizer.split(text)
    trained = trained and any(piece in tokenizer.specials for piece in found)
    for piece in found:
        if piece in tokenizer.specials:
            yield Token(piece, trained)
            trained = False
        elif piece:
            yield Text(piece, trained)


def _stripped(message: list[Piece]) -> list[Piece]:
    """The message without blanks at its ends."""
    texts = [number for number, piece in enumerate(message) if isinstance(piece, Text)]
    out = list(message)
    for number in texts:
        piece = message[number]
        assert isinstance(piece, Text)
        text = piece.text.lstrip() if number == 0 else piece.text
        out[number] = Text(text.rstrip() if number == len(message) - 1 else text, piece.trained)
    return out
