"""The tokenizer of a GGUF file as the content of a tokenizer.json.

The file gives tokens, merges and what kind each token is, but the pattern that cuts a text into words by name only: llama.cpp's
llama-vocab.cpp says what the names mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas import RequestError
from trainer.weights import gguf

_KEY = "tokenizer.ggml."
_CONTROL, _USER = 3, 4  # kinds of tokens that stay whole wherever they stand
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BEFORE = {"gpt-2": [_BYTES], "smollm": [{"type": "Digits", "individual_digits": True}, _BYTES]}


def as_tokenizer_json(path: Path) -> dict[str, Any]:
    """What `tokenizers.Tokenizer.from_str` reads. Raises RequestError where the file has no byte-level BPE of a known pattern."""
    file = gguf.read(path)
    model, before = file.stated(f"{_KEY}model", str), file.metadata.get(f"{_KEY}pre", "gpt-2")
    if model != "gpt2" or before not in _BEFORE:
        raise RequestError(f"{path}: expected a tokenizer gpt2 with pattern {' or '.join(_BEFORE)}, found {model} with {before}")
    tokens = file.texts(f"{_KEY}tokens")
    kinds = zip(tokens, file.stated(f"{_KEY}token_type", list), strict=False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(id, token, kind) for id, (token, kind) in enumerate(kinds) if kind in (_CONTROL, _USER)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _BEFORE[before]},
        "post_processor": _bos_in_front(file) if file.metadata.get(f"{_KEY}add_bos_token") else None,
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in file.texts(f"{_KEY}merges")],
        },
    }


def names(path: Path) -> dict[str, str]:
    """What the file calls its bos, eos and unk tokens."""
    file = gguf.read(path)
    stated = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id"}
    return {name: _token(file, _KEY + key) for name, key in stated.items() if _KEY + key in file.metadata}


def chat_template(path: Path) -> str | None:
    """Its Jinja text, where there is one."""
    found = gguf.read(path).metadata.get("tokenizer.chat_template")
    return found if isinstance(found, str) else None


def _token(file: gguf.Gguf, key: str) -> str:
    tokens, id = file.texts(f"{_KEY}tokens"), file.stated(key, int)
    if not 0 <= id < len(tokens):
        raise RequestError(f"{file.path}: {key}: expected one of {len(tokens)} tokens, found {id}")
    return tokens[id]


def _bos_in_front(file: gguf.Gguf) -> dict[str, Any]:
    text = _token(file, f"{_KEY}bos_token_id")
    bos, one, two = {"SpecialToken": {"id": text, "type_id": 0}}, *({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    special = {text: {"id": text, "ids": [file.metadata[f"{_KEY}bos_token_id"]], "tokens": [text]}}
    return {"type": "TemplateProcessing", "single": [bos, one], "pair": [bos, one, two], "special_tokens": special}


def _added(id: int, text: str, kind: int) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": text, **plain, "special": kind == _CONTROL}
