"""Templates: a record's turns to pieces in reading order.

    plain   the pictures of the user turn, then the answer and a line break, trained on. The instruction is discarded, there is no
            end token: LLaVA's first stage.
    v1      vicuna: "... USER: <image>\\nQuestion ASSISTANT: Answer</s>USER: ...". The answer, the space before it and its
            end token are trained on: generation starts after the colon. An empty answer is "ASSISTANT:", and nothing of it is trained.

A turn that places one picture, however often, gets it at its front on a line of its own and loses the blanks around its text (LLaVA); a
turn with several pictures keeps them where they stand (LLaVA-NeXT). A record of `text` turns (a caption, a document) is the same in
both templates: pictures in place, the text as it is, a line break.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from schemas import Part, Record, RecordError, Turn
from trainer.rendered import End, Picture, Piece, Text

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def pieces(record: Record, turns: Sequence[Turn], template: str) -> Iterator[Piece]:
    """The pieces of these turns under "plain" or "v1". Raises RecordError("template") where it has no place for them."""
    if turns and all(turn.role == "text" for turn in turns):
        return _document(turns)
    system, conversation = _conversation(record, turns)
    return _plain(conversation) if template == "plain" else _v1(system, conversation)


def unplaced(record: Record) -> set[int]:
    """The images that no marker placed upstream: the pipeline put them first."""
    meta = json.loads(record.meta)
    listed = meta.get("unplaced") if isinstance(meta, dict) else None
    return {index for index in listed if isinstance(index, int)} if isinstance(listed, list) else set()


def refuse(expected: str, found: object) -> RecordError:
    """The error of a record that the template has no place for."""
    return RecordError("template", f"expected {expected}, found {found}")


def _conversation(record: Record, turns: Sequence[Turn]) -> tuple[str, list[Turn]]:
    """The system text and the turns, user and assistant by turns.

    An answer before the first question is dropped, as LLaVA does; its unplaced pictures are shown with the first question instead.
    """
    system, rest = SYSTEM, list(turns)
    dropped: list[Turn] = []
    if rest and rest[0].role == "system":
        dropped.append(rest.pop(0))
        system = dropped[0].text()
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
    return system, rest


def _document(turns: Sequence[Turn]) -> Iterator[Piece]:
    for turn in turns:
        trained = turn.train is not False
        yield from _in_place(turn.parts, trained)
        yield Text("\n", trained)


def _plain(turns: list[Turn]) -> Iterator[Piece]:
    if len(turns) != 2:
        raise refuse("one question and its answer for template plain", f"{len(turns)} turns")
    question, answer = turns
    shown = _images(question)
    if not shown:
        raise refuse("a picture in the question for template plain", "none")
    trained = answer.train is not False
    yield from map(Picture, shown)
    yield from _message(answer, trained)
    yield Text("\n", trained)


def _v1(system: str, turns: list[Turn]) -> Iterator[Piece]:
    yield Text(system + " ")
    for turn in turns:
        user = turn.role == "user"
        name = "USER" if user else "ASSISTANT"
        trained = bool(turn.train) if user else turn.train is not False
        message = list(_message(turn, trained))
        yield Text(f"{name}:")
        if not message:
            continue
        yield Text(" ", trained and not user)
        yield from message
        yield Text(" ") if user else End(trained)


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
