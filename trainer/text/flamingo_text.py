"""How OpenFlamingo sees a record: <image> before the text of each picture, <|endofchunk|> behind it.

    interleaved   Text before.<image>Sentence. More.<|endofchunk|><image>Sentence.<|endofchunk|></s>
                  What stands behind a picture and its <|endofchunk|> are trained on; the text before the first picture and the end are not.
    caption       <image>A caption.<|endofchunk|></s>        all of it is trained on but <image>
    conversation  <image>Question:What?Short answer:This<|endofchunk|></s>, with a space before "Short": the answers are trained on

A blank is taken off the text on either side of a picture. A picture that no marker placed, that is less like its sentence than
min_similarity, or that is behind max_images is not shown; its sentence stays. Here pictures are counted in reading order.

compat = "openflamingo" is the original bug for bug: the k-th <image> gets the k-th picture in upstream order, which is another wherever
the assignment is not monotone; max_images counts in upstream order, and cuts a ChatGPT sequence inside the next chunk; special tokens in
a text are parsed. Reference: open_flamingo/train/data.py and train_utils.py at 655f693. Its paper: https://arxiv.org/abs/2308.01390
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from schemas import Part, Record, Turn
from trainer.recipe import Source
from trainer.text import rendered
from trainer.text.rendered import IGNORE, IMAGE, End, LeftOut, Picture, Piece, Rendered, Text, Token
from trainer.text.template import conversation, refuse, unplaced
from trainer.text.tokenizer import Tokenizer

IMAGE_TOKEN, END_OF_CHUNK = "<image>", "<|endofchunk|>"


class Chunk(NamedTuple):
    """A picture and the text up to the next one; the first chunk may have none."""

    picture: int | None
    text: str
    trained: bool


def render(record: Record, turns: Sequence[Turn], source: Source, tokenizer: Tokenizer, max_tokens: int, coin: float = 1.0) -> Rendered:
    """What the model sees, cut at max_tokens: ids hold the tokens <image> and <|endofchunk|> themselves.

    Raises RecordError where there is no place for the record, LeftOut where the source's rules leave it out.
    """
    pieces = list(_pieces(record, turns, source))
    out = rendered.tokenise(pieces, tokenizer).cut(max_tokens)
    _keep(record, out, source, len(out.images), coin, last=out.ids[-1:] == [IMAGE])
    if all(label == IGNORE for label in out.labels):
        raise LeftOut("nothing_to_train", f"expected text behind a picture within {max_tokens} tokens, found none")
    return with_tokens(out, tokenizer)


def prompt(record: Record, turns: Sequence[Turn]) -> Iterator[Piece]:
    """What an answer goes on from: a document whose last chunk is open, or a conversation up to the last question's answer."""
    if any(turn.role != "text" for turn in turns):
        yield from _conversation(record, turns, reply=True)
        return
    shown = [part.image for part in _parts(turns) if part.image is not None]
    chunks = _chunks(_parts(turns), shown, turns)
    closed = list(_interleaved(chunks))[:-1]
    yield from closed[:-1] if chunks[-1].picture is not None else closed


def with_tokens(out: Rendered, tokenizer: Tokenizer) -> Rendered:
    """The same with the token <image> where a picture is: in Flamingo no picture fills a position."""
    picture = tokenizer.special(IMAGE_TOKEN)
    return replace(out, ids=[picture if id == IMAGE else id for id in out.ids])


def in_compat(record: Record, turns: Sequence[Turn], source: Source, tokenizer: Tokenizer, max_tokens: int, coin: float = 1.0) -> Rendered:
    """What the reference makes of the record, cut. `images` are its tensors in its order: not those of the <image> tokens."""
    if source.task == "caption":
        text = IMAGE_TOKEN + "".join(turn.text() for turn in turns).strip() + END_OF_CHUNK + tokenizer.eos_text
        images = list(range(len(record.images)))
    else:
        text, images = _reference_text(record, turns, source, tokenizer)
    out = _parsed(text, tokenizer)
    out = replace(out, ids=out.ids[:max_tokens], spans=out.spans[:max_tokens], images=images)
    picture, end = tokenizer.special(IMAGE_TOKEN), tokenizer.special(END_OF_CHUNK)
    if source.task == "caption":
        return replace(out, labels=[IGNORE if id == picture else id for id in out.ids])
    _keep(record, out, source, out.ids.count(picture), coin, last=out.ids[-1:] == [picture])
    return replace(out, labels=list(_reference_labels(out.ids, picture, end)))


def _pieces(record: Record, turns: Sequence[Turn], source: Source) -> Iterator[Piece]:
    if any(turn.role != "text" for turn in turns):
        return _conversation(record, turns)
    if source.task == "caption":
        return _caption(record, turns)
    chunks = _chunks(_parts(turns), _shown(record, turns, source), turns)
    return _interleaved(chunks)


def _interleaved(chunks: Sequence[Chunk]) -> Iterator[Piece]:
    for number, chunk in enumerate(chunks):
        text = chunk.text.removesuffix(" ") if number + 1 < len(chunks) else chunk.text
        if chunk.picture is not None:
            yield Picture(chunk.picture)
            text = text.removeprefix(" ")
        alone = chunk.picture is None and len(chunks) == 1  # a text without pictures is a text
        yield Text(text, chunk.trained and (chunk.picture is not None or alone))
        if chunk.picture is not None:
            yield Token(END_OF_CHUNK, chunk.trained)
    yield End(False)


def _caption(record: Record, turns: Sequence[Turn]) -> Iterator[Piece]:
    if not record.images:
        raise LeftOut("no_usable_image", "expected a picture for a caption, found none")
    trained = all(turn.train is not False for turn in turns)
    yield from (Picture(index) for index in range(len(record.images)))
    yield Text("".join(turn.text() for turn in turns).strip(), trained)
    yield Token(END_OF_CHUNK, trained)
    yield End(trained)


def _conversation(record: Record, turns: Sequence[Turn], *, reply: bool = False) -> Iterator[Piece]:
    """OpenFlamingo's prompt for questions, open_flamingo/eval/models/open_flamingo.py: a question and an answer are a chunk."""
    system, spoken = conversation(record, turns, "")
    yield Text(f"{system} " if system else "")
    for turn in spoken:
        trained = bool(turn.train) if turn.role == "user" else turn.train is not False
        yield from (Picture(part.image) for part in turn.parts if part.image is not None)
        if turn.role == "user":
            yield Text("Question:")
            yield Text(turn.text().strip(), trained)
            yield Text(" Short answer:")
        else:
            yield Text(turn.text().strip(), trained)
            yield Token(END_OF_CHUNK, trained)
    if not reply:
        yield End(False)


def _keep(record: Record, out: Rendered, source: Source, pictures: int, coin: float, *, last: bool) -> None:
    """Raises LeftOut where the rules for interleaved records leave it out. ChatGPT sequences are under the first one alone."""
    if source.task == "caption":
        return
    if pictures < source.min_images:
        found = f"{pictures} within its {len(out.ids)} tokens"
        raise LeftOut("too_few_image_tokens", f"expected at least {source.min_images} pictures, found {found}")
    if pictures != 1 or _is_gpt(record):
        return
    if source.keep_single < 1 and coin <= 1 - source.keep_single:
        raise LeftOut(
            "single_image_coin", f"expected to keep {source.keep_single:g} of the records with one picture, found the coin at {coin:g}"
        )
    if last:
        raise LeftOut("single_image_at_last_token", "expected text behind the only picture, found none")


def _shown(record: Record, turns: Sequence[Turn], source: Source) -> list[int]:
    """The pictures that are shown, in reading order; one may be shown twice. Raises LeftOut where there is none and must be."""
    free = unplaced(record)
    placed = [part.image for part in _parts(turns) if part.image is not None and part.image not in free]
    least = source.min_similarity
    alike = [index for index in placed if least is None or _similar(record, index, least)]
    if source.min_images and not placed:
        raise LeftOut("no_usable_image", "expected a picture, found none that a sentence belongs to")
    if source.min_images and not alike:
        raise LeftOut("all_pairs_below_threshold", f"expected a similarity of at least {least}, found none")
    return alike[: source.max_images]


def _similar(record: Record, index: int, least: float) -> bool:
    """A picture whose similarity upstream does not state is kept."""
    similarity = record.images[index].similarity
    return similarity is None or similarity >= least


def _parts(turns: Sequence[Turn]) -> list[Part]:
    parts = [part for turn in turns for part in turn.parts]
    if any(part.region is not None for part in parts):
        raise refuse("text and pictures", "a region")
    return parts


def _chunks(parts: Sequence[Part], shown: Sequence[int], turns: Sequence[Turn]) -> list[Chunk]:
    """The text of each picture that is shown."""
    trained = all(turn.train is not False for turn in turns)
    chunks: list[Chunk] = [Chunk(None, "", trained)]
    coming = list(shown)
    for part in parts:
        if part.image is None:
            chunks[-1] = chunks[-1]._replace(text=chunks[-1].text + (part.text or ""))
        elif coming[:1] == [part.image]:
            chunks.append(Chunk(coming.pop(0), "", trained))
    return chunks if chunks[0].text or len(chunks) == 1 else chunks[1:]


def _is_gpt(record: Record) -> bool:
    meta = json.loads(record.meta)
    return isinstance(meta, dict) and bool(meta.get("is_gpt"))


def _reference_text(record: Record, turns: Sequence[Turn], source: Source, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """The string that the reference hands to the tokenizer, and its pictures in upstream order."""
    gpt = _is_gpt(record)
    shown = sorted(_shown(record, turns, replace(source, max_images=None)))
    images = shown[: source.max_images]
    marked = shown if gpt else images
    text = ""
    for part in _parts(turns):
        if part.image is None:
            text += part.text or ""
        elif part.image in marked:
            text += END_OF_CHUNK + IMAGE_TOKEN
    text = text.replace(END_OF_CHUNK, "", 1)
    for blank, closed in ((f" {END_OF_CHUNK}", END_OF_CHUNK), (f"{IMAGE_TOKEN} ", IMAGE_TOKEN), (f" {IMAGE_TOKEN}", IMAGE_TOKEN)):
        text = text.replace(blank, closed)
    if gpt and source.max_images is not None and text.count(IMAGE_TOKEN) > source.max_images:
        text = IMAGE_TOKEN.join(text.split(IMAGE_TOKEN)[: source.max_images])
    return text + END_OF_CHUNK + tokenizer.eos_text, images


def _reference_labels(ids: Sequence[int], picture: int, end: int) -> Iterator[int]:
    open_chunk = False
    for before, id in zip(itertools.chain([None], ids), ids, strict=False):
        open_chunk = (open_chunk and before != end) or before == picture
        yield IGNORE if id == picture or not open_chunk else id


def _parsed(text: str, tokenizer: Tokenizer) -> Rendered:
    out = Rendered(text=text)
    if tokenizer.bos is not None:
        out.ids.append(tokenizer.bos)
        out.spans.append((0, 0))
    at = 0
    for number, piece in enumerate(tokenizer.split(text)):
        if piece in tokenizer.specials:
            out.ids.append(tokenizer.specials[piece])
            out.spans.append((at, at + len(piece)))
        else:
            ids, spans = tokenizer.encode(piece, first=number == 0)
            out.ids.extend(ids)
            out.spans.extend((at + start, at + end) for start, end in spans)
        at += len(piece)
    return out
