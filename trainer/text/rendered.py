"""Pieces to tokens: ids and labels are built together, one tokenisation of each chunk.

A template gives pieces in reading order: text, a picture, special tokens. A token is trained on if and only if all its characters lie in
trained text; nothing is tokenised twice and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from schemas import RecordError
from trainer.text.tokenizer import Tokenizer

IGNORE = -100  # label of a position that is not trained on
IMAGE = -200  # id of a position that a picture fills
MARKER = "<image>"  # how a picture is shown in `Rendered.text`


class Text(NamedTuple):
    """Text of the template or the record."""

    text: str
    trained: bool = False


class Picture(NamedTuple):
    """The image at this index of the record."""

    image: int


class End(NamedTuple):
    """The tokenizer's end token."""

    trained: bool


class Token(NamedTuple):
    """A special token by name."""

    name: str
    trained: bool = False


Piece = Text | Picture | End | Token


class LeftOut(RecordError):
    """The recipe's own rules leave this record out: a hole, and no damage."""

    def __reduce__(self) -> tuple[type[LeftOut], tuple[str, str]]:
        return LeftOut, (self.reason, self.detail)


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """What the model sees of a record. All lists but `images` have one entry a token."""

    ids: list[int] = field(default_factory=list)  # IMAGE where a picture goes
    labels: list[int] = field(default_factory=list)  # not shifted; IGNORE where nothing is trained
    spans: list[tuple[int, int]] = field(default_factory=list)  # code points of `text`
    images: list[int] = field(default_factory=list)  # one index into the record's images for each IMAGE, in order
    text: str = ""
    hidden: frozenset[int] = frozenset()  # positions that never reach the model: a bug of LLaVA's, in `compat` only

    def cut(self, max_tokens: int, picture: int = IMAGE) -> Rendered:
        """The first max_tokens positions, a picture counting as one: LLaVA's collator. `text` stays whole. `picture` is its id."""
        ids = self.ids[:max_tokens]
        return replace(
            self,
            ids=ids,
            labels=self.labels[:max_tokens],
            spans=self.spans[:max_tokens],
            images=self.images[: ids.count(picture)],
            hidden=frozenset(position for position in self.hidden if position < max_tokens),
        )


def tokenise(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Rendered:
    """The tokens of these pieces, not cut. A chunk is what stands between pictures; a special token breaks it, but starts no new one.

    The tokenizer's bos stands in front, unless the first piece is that token. Raises RequestError where it has not a token of that name.
    """
    out = Rendered()
    text: list[str] = []
    run: list[Text] = []
    first = True
    pieces = list(pieces)
    says_bos = any(isinstance(piece, Token) and piece.name == tokenizer.bos_text for piece in pieces[:1])
    if tokenizer.bos is not None and not says_bos:
        _append(out, tokenizer.bos, IGNORE, (0, 0))
    for piece in pieces:
        if isinstance(piece, Text):
            run.append(piece)
            continue
        first = not _flush(out, run, text, tokenizer, first) and first
        at = sum(map(len, text))
        if isinstance(piece, Picture):
            text.append(MARKER)
            _append(out, IMAGE, IGNORE, (at, at + len(MARKER)))
            out.images.append(piece.image)
            first = True
        else:
            name = tokenizer.eos_text if isinstance(piece, End) else piece.name
            id = tokenizer.eos if isinstance(piece, End) else tokenizer.special(name)
            text.append(name)
            _append(out, id, id if piece.trained else IGNORE, (at, at + len(name)))
            first = False
    _flush(out, run, text, tokenizer, first)
    return replace(out, text="".join(text))


def _append(out: Rendered, id: int, label: int, span: tuple[int, int]) -> None:
    out.ids.append(id)
    out.labels.append(label)
    out.spans.append(span)


def _flush(out: Rendered, run: list[Text], text: list[str], tokenizer: Tokenizer, first: bool) -> bool:
    """Tokenise the run as one text; whether there was any."""
    joined = "".join(piece.text for piece in run)
    trained = b"".join((b"\1" if piece.trained else b"\0") * len(piece.text) for piece in run)
    offset = sum(map(len, text))
    for id, (start, end) in zip(*tokenizer.encode(joined, first=first), strict=True):
        # A space put in front has no characters of its own: it goes with the character behind it.
        whole = 0 not in trained[start : max(end, start + 1)]
        _append(out, id, id if whole else IGNORE, (offset + start, offset + end))
    text.append(joined)
    run.clear()
    return bool(joined)
