"""A sentencepiece BPE file (tokenizer.model) as the content of a tokenizer.json: original checkpoints ship only the former.

Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. Read by hand because it is two
messages of three fields, and the library that reads it is a build of C++ that nothing else here needs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from schemas import RequestError

_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
_BPE = 2  # trainer_spec.model_type


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


def as_tokenizer_json(path: Path) -> dict[str, Any]:
    """What `tokenizers.Tokenizer.from_str` reads, in the LLaMA form. Raises RequestError where the file is not such a model."""
    pieces, is_bpe, normalises = _read(path)
    if normalises:
        raise RequestError(f"{path}: expected a sentencepiece model that leaves its text as it is, found one that normalises it")
    unknown = [piece.text for piece in pieces if piece.kind == _UNKNOWN]
    if not is_bpe or len(unknown) != 1:
        raise RequestError(f"{path}: expected a sentencepiece BPE model with one unknown token, found another kind")
    special = [id for id, piece in enumerate(pieces) if piece.kind in (_UNKNOWN, _CONTROL, _USER)]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    vocab = {piece.text: id for id, piece in enumerate(pieces)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(id, pieces[id].text) for id in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [vocab["<s>"]], "tokens": ["<s>"]}},
        }
        if "<s>" in vocab
        else None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": unknown[0],
            "fuse_unk": True,
            "byte_fallback": any(piece.kind == _BYTE for piece in pieces),
            "vocab": vocab,
            "merges": _merges(pieces, vocab),
        },
    }


def _added(id: int, text: str) -> dict[str, Any]:
    return {"id": id, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def _merges(pieces: list[Piece], vocab: dict[str, int]) -> list[list[str]]:
    """Every way to put a piece together from two others, the best-scored piece first."""
    merges: list[tuple[float, int, int, str, str]] = []
    for piece in pieces:
        if piece.kind == _NORMAL:
            for cut in range(1, len(piece.text)):
                left, right = piece.text[:cut], piece.text[cut:]
                if left in vocab and right in vocab:
                    merges.append((-piece.score, vocab[left], vocab[right], left, right))
    return [[left, right] for _, _, _, left, right in sorted(merges)]


def _read(path: Path) -> tuple[list[Piece], bool, bool]:
    """The pieces, whether they are a BPE's, and whether the text is changed first: a character map, or blanks removed (its default)."""
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [_piece(value) for number, value in fields if number == 1 and isinstance(value, bytes)]
        parts = {number: dict(_fields(value)) for number, value in fields if number in (2, 3) and isinstance(value, bytes)}
        normalizer = parts[3]
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise RequestError(f"{path}: expected a sentencepiece model, found other bytes") from error
    return pieces, parts[2].get(3, 1) == _BPE, bool(normalizer.get(2)) or normalizer.get(4, 1) != 0


def _piece(data: bytes) -> Piece:
    values = dict(_fields(data))
    text, score, kind = values[1], values.get(2, b"\0\0\0\0"), values.get(3, _NORMAL)
    if not (isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int)):
        raise ValueError("not a piece")
    return Piece(text.decode(), struct.unpack("<f", score)[0], kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: https://protobuf.dev/programming-guides/encoding/."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        length, at = (8, at) if tag & 7 == 1 else (4, at) if tag & 7 == 5 else _varint(data, at)
        if tag & 7 not in (1, 2, 5) or at + length > len(data):
            raise ValueError("not a protobuf message")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
