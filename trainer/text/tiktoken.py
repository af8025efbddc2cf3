"""Qwen's tokenizer (qwen.tiktoken) as the content of a tokenizer.json: the first Qwen ships nothing else.

The file is one token a line, base64 and rank. What it does not say stands in Qwen's tokenization_qwen.py: the pattern that cuts a text
into words, NFC, and the special tokens behind the ranks. https://huggingface.co/Qwen/Qwen-7B-Chat
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from schemas import RequestError

EOS = "<|endoftext|>"
_SPECIAL = (EOS, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def as_tokenizer_json(path: Path) -> dict[str, Any]:
    """What `tokenizers.Tokenizer.from_str` reads. Raises RequestError where the file is no such list."""
    ranks = _read(path)
    letters = _letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    cut = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(len(ranks) + number, name) for number, name in enumerate(_SPECIAL)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [cut, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {spelled[token]: rank for token, rank in ranks.items()},
            "merges": _merges(ranks, spelled),
        },
    }


def _read(path: Path) -> dict[bytes, int]:
    """Rank of each token. They must be 0, 1, 2, ... and begin with the 256 bytes."""
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().split(b"\n"):
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise RequestError(f"{path}: expected a token and its rank on each line, found {error}") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise RequestError(f"{path}: expected every byte, and ranks from 0 without a gap, found other tokens")
    return ranks


def _merges(ranks: dict[bytes, int], spelled: dict[bytes, str]) -> list[list[str]]:
    """Every way to put a token together from two others, in order of the tokens' ranks."""
    merges: list[list[str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in ranks and right in ranks:
                merges.append([spelled[left], spelled[right]])
    return merges


def _letters() -> dict[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it can be printed, else one from 256 on."""
    printed = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255]
    others = [byte for byte in range(256) if byte not in printed]
    letters = {byte: chr(byte) for byte in printed} | {byte: chr(256 + number) for number, byte in enumerate(others)}
    assert set(letters.values()) == set(ByteLevel.alphabet())
    return letters


def _added(id: int, text: str) -> dict[str, Any]:
    return {"id": id, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
