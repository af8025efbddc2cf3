"""`compat = "llava"`: ids and labels as LLaVA-1.5 computes them, bug for bug, so that its weights can be continued.

What it does differently from trainer/text/template.py: special tokens in the text are parsed; labels come from splitting the text at
"</s>" and "ASSISTANT: ", tokenising the rounds again and counting; a sample whose counts differ is kept with nothing to train on (the
"tokenization mismatch" of its log); a picture that no marker places is not shown; `<unk>` in a text is deleted from the sequence. Rows on
which it crashes are refused. Reference: llava/train/train.py at c121f0432da27facab705978f83c4ada465e46fd.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas import Record, Turn
from trainer.text.rendered import IGNORE, IMAGE, MARKER, Rendered
from trainer.text.template import SYSTEM, refuse, unplaced
from trainer.text.tokenizer import Tokenizer

_ANSWER = " ASSISTANT: "
_END = "</s>"


def render(record: Record, turns: Sequence[Turn], template: str, tokenizer: Tokenizer, max_tokens: int) -> Rendered:
    """What the reference makes of the record before its collator. Raises RecordError("template") where it crashes."""
    has_image = bool(record.images)
    if len(record.images) > 1:
        raise refuse("at most one picture in compat llava", len(record.images))
    messages = [(turn.role, _value(turn, unplaced(record))) for turn in turns]
    if unknown := [role for role, _ in messages if role not in ("user", "assistant")]:
        raise refuse("user and assistant turns", unknown[0])
    if has_image:
        messages = [(role, _image_first(text)) for role, text in messages]
    if template == "plain":
        return _plain(messages, tokenizer)
    prompt = _prompt(messages)
    return _v1(prompt, tokenizer, has_image=has_image, max_tokens=max_tokens)


def _value(turn: Turn, free: set[int]) -> str:
    values: list[str] = []
    for part in turn.parts:
        if part.region is not None:
            raise refuse("text and pictures", f"region {part.region}")
        if part.image is not None:
            values.append("" if part.image in free else MARKER)
        else:
            values.append(part.text or "")
    return "".join(values)


def _image_first(text: str) -> str:
    return f"{MARKER}\n{text.replace(MARKER, '').strip()}".strip() if MARKER in text else text


def _plain(messages: list[tuple[str, str]], tokenizer: Tokenizer) -> Rendered:
    if len(messages) != 2 or MARKER not in messages[0][1]:
        raise refuse("two turns and a picture in the first", f"{len(messages)} turns")
    out = _tokenise(MARKER + messages[1][1] + "\n", tokenizer, has_image=True)
    context = len(_tokenise(MARKER, tokenizer, has_image=True).ids)
    labels = [IGNORE] * context + out.ids[context:]
    return _finished(out, labels, tokenizer)


def _prompt(messages: list[tuple[str, str]]) -> str:
    if messages and messages[0][0] == "assistant":
        messages = messages[1:]
    if not messages or any(role != ("user", "assistant")[n % 2] for n, (role, _) in enumerate(messages)):
        raise refuse("user and assistant turns alternating", ", ".join(role for role, _ in messages) or "no turn")
    prompt = SYSTEM + " "
    for role, text in messages:
        name, end = ("USER", " ") if role == "user" else ("ASSISTANT", _END)
        prompt += f"{name}: {text}{end}" if text else f"{name}:"
    return prompt


def _v1(prompt: str, tokenizer: Tokenizer, *, has_image: bool, max_tokens: int) -> Rendered:
    out = _tokenise(prompt, tokenizer, has_image=has_image)
    if not has_image:
        out = out.cut(max_tokens)  # by the tokenizer, before anything is counted
    labels = list(out.ids)
    counted = _mask(labels, prompt, tokenizer, has_image)
    actual = sum(id != tokenizer.unk for id in out.ids)  # its pad token is unk
    if counted < max_tokens and counted != actual:
        labels = [IGNORE] * len(labels)
    return _finished(out, labels, tokenizer)


def _mask(labels: list[int], prompt: str, tokenizer: Tokenizer, has_image: bool) -> int:
    """Mask what the reference masks, in place; how many tokens it has counted."""
    at = 1
    labels[:at] = [IGNORE] * len(labels[:at])
    for number, turns in enumerate(prompt.split(_END)):
        halves = turns.split(_ANSWER)
        if turns == "" or len(halves) != 2:
            break
        length = len(_tokenise(turns, tokenizer, has_image=has_image).ids)
        context = len(_tokenise(halves[0] + _ANSWER, tokenizer, has_image=has_image).ids) - 2
        if number and tokenizer.prefix:  # "USER" is one token after </s> and two at the start of a text, in this vocabulary
            length, context = length - 1, context - 1
        _ignore(labels, at, at + context)
        at += length
    _ignore(labels, at, len(labels))
    return at


def _ignore(labels: list[int], start: int, end: int) -> None:
    for position in range(start, min(end, len(labels))):
        labels[position] = IGNORE


def _tokenise(text: str, tokenizer: Tokenizer, *, has_image: bool) -> Rendered:
    out = Rendered(text=text)
    if tokenizer.bos is not None:
        _append(out, tokenizer.bos, 0, 0)
    at = 0
    for number, chunk in enumerate(text.split(MARKER) if has_image else [text]):
        if number:
            _append(out, IMAGE, at, len(MARKER))
            out.images.append(0)
            at += len(MARKER)
        for place, piece in enumerate(tokenizer.split(chunk)):
            if piece in tokenizer.specials:
                _append(out, tokenizer.specials[piece], at, len(piece))
            else:
                for id, (start, end) in zip(*tokenizer.encode(piece, first=place == 0), strict=True):
                    _append(out, id, at + start, end - start)
            at += len(piece)
    return out


def _append(out: Rendered, id: int, start: int, length: int) -> None:
    out.ids.append(id)
    out.spans.append((start, start + length))


def _finished(out: Rendered, labels: list[int], tokenizer: Tokenizer) -> Rendered:
    hidden = frozenset(position for position, id in enumerate(out.ids) if id == tokenizer.unk)
    return Rendered(ids=out.ids, labels=labels, spans=out.spans, images=out.images, text=out.text, hidden=hidden)
