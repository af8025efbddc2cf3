"""openflamingo-mmc4: KEY.json alone, an MMC4 document with its pictures as base64 inside.
https://github.com/mlfoundations/open_flamingo/blob/main/open_flamingo/scripts/convert_mmc4_to_wds.py

    {"text_list": ["Lock the door.", ...], "url": "http://...", "similarity_matrix": [[0.243, ...], ...],
     "image_info": [{"image_name": "b9040a0dbb22.jpg", "raw_url": "http://...", "matched_text_index": 1, "matched_sim": 0.277,
                     "image_base64": "/9j/4AAQ..."}]}

One record a document: a `text` turn, a part per sentence (a space appended to all but the last), each picture directly before the sentence
that matched_text_index names; one without a sentence stands first, and is listed in meta.unplaced. `similarity` is the matrix's. ChatGPT
sequences (`is_gpt`: `example` with placeholders, `image_map` with `base64_image`) are read too. Kept in meta: id (the key in the tar), url,
could_have_url_duplicate, raw_urls (one an image), is_gpt.

The script leaves a picture that it did not find without image_base64: dropped, by reason; a document all of whose pictures are bad is a
reject. Tars made before July 2023 hold Python's b'...' itself (issue 198 of open_flamingo): read as what it meant.
"""

from __future__ import annotations

import binascii
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from schemas import Image, Part, Reject, record
from schemas.picture import measure
from shards.layouts import Made, Members
from shards.layouts._json import decode

MAX_META = 60_000  # bytes: format 1 allows 64,000
_PLACEHOLDER = re.compile(r"(_!_IMAGE\d+_!_)")


class Picture(msgspec.Struct, gc=False):
    """An entry of image_info or image_map."""

    image_name: str | None = None
    raw_url: str | None = None
    matched_text_index: int | None = None
    matched_sim: float | None = None
    image_base64: str | None = None
    base64_image: str | None = None  # what ChatGPT sequences call it


class Document(msgspec.Struct):
    """A document, or (is_gpt, whatever its value) a ChatGPT sequence."""

    text_list: list[str] | None = None
    image_info: list[Picture] | None = None
    similarity_matrix: Any = None
    url: str | None = None
    could_have_url_duplicate: Annotated[int, msgspec.Meta(ge=-1, le=1)] | bool | None = None
    is_gpt: Any = msgspec.UNSET
    example: str | None = None
    image_map: dict[str, Picture] | None = None


class _Keys(msgspec.Struct):
    text_list: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    image_info: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    is_gpt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_document, _keys = msgspec.json.Decoder(Document), msgspec.json.Decoder(_Keys)


def known(members: Members) -> bool:
    """A JSON member with text_list and image_info, or with is_gpt."""
    try:
        keys = decode(members.get("json", b""), _keys)
    except Reject:
        return False
    return keys.is_gpt is not msgspec.UNSET or msgspec.UNSET not in (keys.text_list, keys.image_info)


def make(id: str, members: Members) -> Made:
    """The document's record. Raises Reject."""
    if "json" not in members:
        raise Reject("json_missing", f"{id[:100]}: expected a .json, found {', '.join(sorted(members))[:200]}")
    document = decode(members["json"], _document)
    return _interleaved(id, document) if document.is_gpt is msgspec.UNSET else _sequence(id, document)


def _interleaved(id: str, document: Document) -> Made:
    if document.text_list is None:
        raise Reject("schema", "expected text_list, found none")
    info, text = document.image_info or [], document.text_list
    found, dropped = _found(info)
    sentences = [_sentence(info[at], len(text)) for at in found]
    for (at, (image, _)), sentence in zip(found.items(), sentences, strict=True):
        image.similarity = _similarity(document.similarity_matrix, info[at], at, sentence)
    unplaced = [index for index, sentence in enumerate(sentences) if sentence is None]
    meta = {"raw_urls": [info[at].raw_url for at in found] or None, "unplaced": unplaced or None}
    return _made(id, document, _reading_order(text, sentences), found.values(), dropped, meta)


def _sequence(id: str, document: Document) -> Made:
    if document.example is None:
        raise Reject("schema", "expected a ChatGPT sequence with its example, found none")
    pictures = document.image_map or {}
    names = list(pictures)
    found, dropped = _found(list(pictures.values()))
    index_of = {names[at]: index for index, at in enumerate(found)}
    pieces = _PLACEHOLDER.split(document.example)
    unknown = [piece for piece in pieces[1::2] if piece not in pictures]
    if unknown and not found:
        raise Reject("placeholder_unknown", f"expected a picture for {unknown[0]}, found none in image_map")
    parts = list(_placed(pieces, index_of))
    shown = {part.image for part in parts}
    unplaced = [index for index in range(len(found)) if index not in shown]
    raw_urls = [pictures[name].raw_url for name in index_of] or None
    meta = {"is_gpt": True, "raw_urls": raw_urls, "unplaced": unplaced or None}
    dropped.update({"placeholder_unknown": len(unknown)} if unknown else {})
    return _made(id, document, [*map(record.image_part, unplaced), *parts], found.values(), dropped, meta)


def _found(pictures: Sequence[Picture]) -> tuple[dict[int, tuple[Image, bytes]], Counter[str]]:
    """The good pictures by position, and why the others are none. Raises Reject where there are only others."""
    found: dict[int, tuple[Image, bytes]] = {}
    refused: list[Reject] = []
    for at, picture in enumerate(pictures):
        try:
            found[at] = _decoded(picture)
        except Reject as reject:
            refused.append(reject)
    if refused and not found:
        raise refused[0]
    return found, Counter(reject.reason for reject in refused)


def _decoded(picture: Picture) -> tuple[Image, bytes]:
    text = picture.image_base64 if picture.image_base64 is not None else picture.base64_image
    if text is None:
        raise Reject("image_missing", f"{(picture.image_name or '')[:100]}: expected image_base64, found none")
    if text.startswith(("b'", 'b"')) and text.endswith(text[1]):
        text = text[2:-1]
    try:
        data = binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except ValueError as error:  # binascii.Error is one
        raise Reject("image_base64", f"expected base64, found {text[:20]!r}: {error}") from error
    format, width, height = measure(data)
    origin = picture.image_name or picture.raw_url
    return record.image(width=width, height=height, format=format, bytes=len(data), origin=origin), data


def _sentence(picture: Picture, count: int) -> int | None:
    at = picture.matched_text_index
    return at if at is not None and 0 <= at < count else None


def _similarity(matrix: Any, picture: Picture, at: int, sentence: int | None) -> float | None:
    if sentence is None:
        return None
    try:
        value = matrix[at][sentence]
    except (TypeError, LookupError):
        value = picture.matched_sim
    return float(value) if isinstance(value, int | float) and abs(value) < 2**63 else None  # false for a NaN


def _reading_order(text: Sequence[str], sentences: Sequence[int | None]) -> list[Part]:
    """Pictures without a sentence, then each sentence behind its pictures."""
    before: dict[int | None, list[Part]] = {}
    for index, sentence in enumerate(sentences):
        before.setdefault(sentence, []).append(record.image_part(index))
    parts = before.get(None, [])
    for at, words in enumerate(text):
        parts += before.get(at, ())
        parts.append(record.text_part(words if at == len(text) - 1 else f"{words} "))
    return parts


def _placed(pieces: Sequence[str], index_of: Mapping[str, int]) -> Iterable[Part]:
    """The text cut at its placeholders, a picture at each that has one."""
    for at, piece in enumerate(pieces):
        if at % 2 == 0 and piece:
            yield record.text_part(piece)
        elif at % 2 and piece in index_of:
            yield record.image_part(index_of[piece])


def _made(
    id: str,
    document: Document,
    parts: Sequence[Part],
    found: Iterable[tuple[Image, bytes]],
    dropped: Mapping[str, int],
    more: dict[str, Any],
) -> Made:
    images, files = [image for image, _ in found], [data for _, data in found]
    if not images and not any(part.text for part in parts):
        raise Reject("empty", "expected text or a picture, found neither")
    fields = {"url": document.url, "could_have_url_duplicate": document.could_have_url_duplicate, **more}
    made = record.record("openflamingo-mmc4", images=images, turns=[record.turn("text", parts)], meta={"id": id, **_fitting(fields)})
    return Made(made, files, dropped)


def _fitting(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What fits into meta, in order of use."""
    kept: dict[str, Any] = {}
    room = MAX_META
    for name, value in fields.items():
        size = len(name) + 4 + len(msgspec.json.encode(value))
        if value is not None and size <= room:
            kept[name] = value
            room -= size
    return kept
