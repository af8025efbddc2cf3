"""Templates: a record's turns to pieces in reading order.

    plain   the pictures of the user turn, then the answer and a line break, trained on. The instruction is discarded, there is no
            end token: LLaVA's first stage.
    v1      vicuna: "... USER: <image>\\nQuestion ASSISTANT: Answer</s>USER: ...". The answer, the space before it and its
            end token are trained on: generation starts after the colon. An empty answer is "ASSISTANT:", and nothing of it is trained.
    chatml, qwen, llama2, llama3, mistral     trainer/text/formats.py
    chat    the tokenizer's own template: trainer/text/chat_template.py

A turn that places one picture, however often, gets it at its front on a line of its own and loses the blanks around its text (LLaVA); a
turn with several pictures keeps them where they stand (LLaVA-NeXT). A record of `text` turns (a caption, a document) is the same in
all templates: pictures in place, the text as it is, a line break. (For flamingo see trainer/text/flamingo_text.py.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from schemas import Part, Record, RecordError, Turn
from trainer.text import chat_template
from trainer.text.formats import FORMATS, Format, written
from trainer.text.rendered import End, Picture, Piece, Text
from trainer.text.tokenizer import Tokenizer

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def pieces(
    record: Record,
    turns: Sequence[Turn],
    template: str,
    system: str | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    reply: bool = False,
) -> Iterator[Piece]:
    """The pieces of these turns under a template; `system` goes before its own words, and the record's before both.

    `reply`: the turns end with a question, and what stands before its answer is added. Raises RecordError("template") where there is no
    place for the turns, RequestError where the template is the tokenizer's own and it has none.
    """
    if turns and all(turn.role == "text" for turn in turns):
        return _document(turns, reply=reply)
    if template == "plain":
        return _plain(conversation(record, turns, "")[1], reply=reply)
    if template == "v1":
        return _v1(*conversation(record, turns, SYSTEM if system is None else system), reply=reply)
    if template == "chat":
        return _own(*conversation(record, turns, system), tokenizer, reply=reply)
    chosen = FORMATS[template]
    return _chat(chosen, *conversation(record, turns, chosen.words if system is None else system), reply=reply)


def unplaced(record: Record) -> set[int]:
    """The images that no marker placed upstream: the pipeline put them first."""
    meta = json.loads(record.meta)
    listed = meta.get("unplaced") if isinstance(meta, dict) else None
    return {index for index in listed if isinstance(index, int)} if isinstance(listed, list) else set()


def refuse(expected: str, found: object) -> RecordError:
    """The error of a record that the template has no place for."""
    return RecordError("template", f"expected {expected}, found {found}")


def conversation(record: Record, turns: Sequence[Turn], system: str | None) -> tuple[str | None, list[Turn]]:
    """The system's words and the turns, user and assistant by turns. Raises RecordError where they are not.

    An answer before the first question is dropped, as LLaVA does; its unplaced pictures are shown with the first question instead.
    """
    words, rest = system, list(turns)
    dropped: list[Turn] = []
    if rest and rest[0].role == "system":
        dropped.append(rest.pop(0))
        words = dropped[0].text()
    if rest and rest[0].role == "assistant":
        dropped.append(rest.pop(0))
    roles = [turn.role for turn in rest]
    if not rest or any(role != ("user", "assistant")[n % 2] for n, role in enumerate(roles)):
        raise refuse("user and assistant turns alternating", ", ".join(roles) or "no turn")
    free = unplaced(record)
    moved = [part for turn in dropped for part in turn.parts if part.image is not None and part.image in free]
    if moved:
        first = rest[0]
        rest[0] = Turn(first.role, moved + first.parts, [], first.train)
    return words, rest


def _document(turns: Sequence[Turn], *, reply: bool) -> Iterator[Piece]:
    for turn in turns:
        trained = turn.train is not False
        yield from _in_place(turn.parts, trained)
        if not reply:
            yield Text("\n", trained)


def _plain(turns: list[Turn], *, reply: bool) -> Iterator[Piece]:
    if len(turns) != 2 - reply:
        raise refuse("one question and its answer for template plain", f"{len(turns)} turns")
    shown = _images(turns[0])
    if not shown:
        raise refuse("a picture in the question for template plain", "none")
    yield from map(Picture, shown)
    for answer in turns[1:]:
        trained = answer.train is not False
        yield from _message(answer, trained)
        yield Text("\n", trained)


def _v1(system: str | None, turns: list[Turn], *, reply: bool) -> Iterator[Piece]:
    yield Text(f"{system} ")
    for turn in turns:
        user = turn.role == "user"
        name = "USER" if user else "ASSISTANT"
        trained = _trained(turn)
        message = list(_message(turn, trained))
        yield Text(f"{name}:")
        if not message:
            continue
        yield Text(" ", trained and not user)
        yield from message
        yield Text(" ") if user else End(trained)
    if reply:
        yield Text("ASSISTANT:")


def _chat(chosen: Format, system: str | None, turns: list[Turn], *, reply: bool) -> Iterator[Piece]:
    if system is not None:
        before, _, after = chosen.system.partition("{}")
        yield from (*written(before), Text(system), *written(after))
    for number, turn in enumerate(turns):
        trained = _trained(turn)
        message = list(_in_place_alone(turn.parts, trained) if chosen.in_place else _message(turn, trained))
        if turn.role == "user":
            before, _, after = (chosen.later if number and chosen.later else chosen.user).partition("{}")
            yield from written(before.removeprefix(chosen.inside) if number == 0 and system is not None else before)
            yield from message
            yield from written(after)
            continue
        yield from written(chosen.reply)
        if not chosen.reply:
            yield Text(" ", trained)
        yield from message
        yield from written(chosen.end, trained=trained and bool(message))
        yield Text(chosen.between if number + 1 < len(turns) else "")
    if reply:
        yield from written(chosen.reply)


def _own(system: str | None, turns: list[Turn], tokenizer: Tokenizer | None, *, reply: bool) -> Iterator[Piece]:
    said: list[chat_template.Said] = [] if system is None else [("system", [Text(system)], False)]
    said += [(turn.role, list(_message(turn, _trained(turn))), _trained(turn)) for turn in turns]
    return chat_template.pieces(said, tokenizer, reply=reply)


def _trained(turn: Turn) -> bool:
    return bool(turn.train) if turn.role == "user" else turn.train is not False


def _message(turn: Turn, trained: bool) -> Iterator[Piece]:
    shown = _images(turn)
    if len(shown) != 1:
        return _in_place(turn.parts, trained)
    text = turn.text().strip()
    return iter([Picture(shown[0]), Text("\n" + text, trained)] if text else [Picture(shown[0])])


def _images(turn: Turn) -> list[int]:
    """The different images of a turn, by first place."""
    return list(dict.fromkeys(part.image for part in turn.parts if part.image is not None))


def _in_place(parts: Sequence[Part], trained: bool) -> Iterator[Piece]:
    for part in parts:
        if part.image is not None:
            yield Picture(part.image)
        elif part.text is None:
            raise refuse("text and pictures", f"region {part.region}")
        elif part.text:
            yield Text(part.text, trained)


def _in_place_alone(parts: Sequence[Part], trained: bool) -> Iterator[Piece]:
    """Pictures in place, without the line breaks beside them."""
    for number, part in enumerate(parts):
        before, after = parts[number - 1] if number else None, parts[number + 1] if number + 1 < len(parts) else None
        text = part.text
        if text is not None and before is not None and before.image is not None:
            text = text.removeprefix("\n")
        if text is not None and after is not None and after.image is not None:
            text = text.removesuffix("\n")
        yield from _in_place([Part(text, part.image, part.region)], trained)
