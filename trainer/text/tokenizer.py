"""Tokenizers from a local folder or a GGUF file, in the form the original systems used them. No network, no torch.

What comes out: token ids and, for each, where its characters stand in the text. Text is data: `encode` knows no special tokens, so
`</s>` in a caption is three ordinary tokens. The few that a template needs (bos, eos) are put in by id.

Forms:
    llama   one space in front of each chunk (the start of the text, what follows a picture) and none after an end token:
            LlamaTokenizer with legacy=False. A chunk that begins with a space gets another, as sentencepiece does and
            Metaspace(prepend "first") does not.
    file    what the file says.
    auto    llama where the file is a LLaMA-like BPE (no normalisation but of spaces, and one put in front), else file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers

from schemas import RequestError
from trainer.recipe import TokenizerChoice
from trainer.text import gguf_tokenizer, sentencepiece, tiktoken
from trainer.weights import json_object, packaged

Offsets = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Text to ids. `specials` maps the text of every special token to its id."""

    backend: tokenizers.Tokenizer
    prefix: str  # goes before the first text of a chunk
    bos: int | None  # None: no text begins with one
    bos_text: str
    eos: int
    eos_text: str
    unk: int | None
    specials: dict[str, int]
    size: int  # ids are below it
    chat_template: str | None = None  # Jinja: trainer/text/chat_template.py

    def encode(self, text: str, *, first: bool) -> tuple[list[int], Offsets]:
        """Ids and [start, end) code points of each. `first`: nothing stands before this text in its chunk."""
        if not text:
            return [], []
        shift = len(self.prefix) if first else 0
        encoding = self.backend.encode(self.prefix[:shift] + text, add_special_tokens=False)
        return encoding.ids, [(max(0, start - shift), max(0, end - shift)) for start, end in encoding.offsets]

    def special(self, name: str) -> int:
        """The id of a special token. Raises RequestError where there is none of that name."""
        if name not in self.specials:
            raise RequestError(
                f"tokenizer: expected a token {name}, as the template has it, found none; give --set tokenizer.add='[\"{name}\"]'"
            )
        return self.specials[name]

    def split(self, text: str) -> list[str]:
        """The text cut so that special tokens stand alone, longest first: how the originals parse them. Only `compat` asks for it."""
        pattern = "|".join(re.escape(special) for special in sorted(self.specials, key=len, reverse=True))
        return [piece for piece in re.split(f"({pattern})", text) if piece] if pattern else [text]


def load(choice: TokenizerChoice) -> Tokenizer:
    """The tokenizer of a recipe. Raises RequestError where the folder holds none, or does not say what ends a text."""
    if choice.path is None:
        raise RequestError("tokenizer.path: expected a folder with tokenizer.json, found none; give --set tokenizer.path=FOLDER")
    folder = packaged.path(choice.path)
    stored = _with_added(_stored(folder), choice.add)
    names = _names(folder)
    added: list[dict[str, Any]] = stored.get("added_tokens") or []
    specials = {token["content"]: token["id"] for token in added if not token["content"].isspace()}
    original = _parsed(stored, folder)
    eos_text = choice.eos or names.get("eos_token")
    eos = original.token_to_id(eos_text) if eos_text else None
    if eos_text is None or eos is None:
        raise RequestError(f"{folder}: expected an eos_token in tokenizer_config.json, found {eos_text!r}; give --set tokenizer.eos=TEXT")
    llama = choice.form == "llama" or (choice.form == "auto" and _is_llama(stored))
    return Tokenizer(
        backend=_text_only(stored, folder, llama=llama),
        prefix=" " if llama else "",
        bos=_bos(original, choice.bos, names, folder),
        bos_text=choice.bos or names.get("bos_token", ""),
        eos=eos,
        eos_text=eos_text,
        unk=original.token_to_id(names.get("unk_token") or "<unk>"),
        specials=specials,
        size=max(original.get_vocab(with_added_tokens=True).values()) + 1,
        chat_template=_chat_template(folder),
    )


def export(choice: TokenizerChoice, to: Path, add: Sequence[str] = ()) -> None:
    """Write the tokenizer as a folder of transformers', with the recipe's tokens and these. Special tokens are parsed again there."""
    folder = packaged.path(choice.path or ".")
    stored = _with_added(_stored(folder), (*choice.add, *add))
    if choice.form == "llama" or (choice.form == "auto" and _is_llama(stored)):
        stored |= {
            "normalizer": None,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        }
    (to / "tokenizer.json").write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")
    stated: dict[str, Any] = dict(_names(folder)) | ({"eos_token": choice.eos} if choice.eos else {})
    stated |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "chat_template": _chat_template(folder)}
    (to / "tokenizer_config.json").write_text(json.dumps(stated, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _stored(folder: Path) -> dict[str, Any]:
    """The content of tokenizer.json, or the same made from what is there instead."""
    if folder.suffix == ".gguf":
        return gguf_tokenizer.as_tokenizer_json(folder)
    if (folder / "tokenizer.json").is_file():
        return json_object.read(folder / "tokenizer.json")
    if (folder / "tokenizer.model").is_file():
        return sentencepiece.as_tokenizer_json(folder / "tokenizer.model")
    if ranks := sorted(folder.glob("*.tiktoken")):
        return tiktoken.as_tokenizer_json(ranks[0])
    raise RequestError(f"tokenizer.path {folder}: expected tokenizer.json, tokenizer.model or a .tiktoken file, found none")


def _with_added(stored: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """With the special tokens of these names, the new ones behind the last id."""
    added: list[dict[str, Any]] = list(stored.get("added_tokens") or [])
    ids = [token["id"] for token in added]
    vocab = stored.get("model", {}).get("vocab") or {}
    ids += vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    for name in names:
        if not any(token["content"] == name for token in added):
            ids.append(vocab[name] if isinstance(vocab, dict) and name in vocab else max(ids, default=-1) + 1)
            plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            added.append({"id": ids[-1], "content": name, **plain})
    return {**stored, "added_tokens": added}


def _parsed(stored: dict[str, Any], folder: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(stored))
    except Exception as error:  # tokenizers raises bare Exception
        raise RequestError(f"{folder}: expected a tokenizer, found {error}") from error


def _names(folder: Path) -> dict[str, str]:
    """What the folder calls its bos, eos and unk tokens."""
    if folder.suffix == ".gguf":
        return gguf_tokenizer.names(folder)
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            for key, value in json_object.read(folder / file).items():
                text = value.get("content") if isinstance(value, dict) else value
                if key in ("bos_token", "eos_token", "unk_token") and isinstance(text, str):
                    names[key] = text
    if not names and any(folder.glob("*.tiktoken")):
        return {"eos_token": tiktoken.EOS}
    if not names and not (folder / "tokenizer.json").is_file():
        return {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}  # sentencepiece's own defaults
    return names


def _chat_template(folder: Path) -> str | None:
    """The template called default where there are several."""
    if folder.suffix == ".gguf":
        return gguf_tokenizer.chat_template(folder)
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    found = json_object.read(path).get("chat_template") if path.is_file() else None
    if isinstance(found, list):
        found = next((entry.get("template") for entry in found if isinstance(entry, dict) and entry.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _bos(original: tokenizers.Tokenizer, asked: str | None, names: dict[str, str], folder: Path) -> int | None:
    """The token that the file puts before every text, or the one asked for."""
    if asked is not None:
        if original.token_to_id(asked) is None:
            raise RequestError(f"tokenizer.bos: expected a token of {folder}, found {asked!r}")
        return original.token_to_id(asked)
    bos = original.token_to_id(names["bos_token"]) if "bos_token" in names else None
    return bos if bos is not None and original.encode("").ids[:1] == [bos] else None


def _is_llama(stored: dict[str, Any]) -> bool:
    model, before = stored["model"], stored.get("pre_tokenizer") or {}
    steps = [step.get("type") for step in (stored.get("normalizer") or {}).get("normalizers", [])]
    if model.get("type") != "BPE" or set(steps) - {"Prepend", "Replace"}:
        return False
    metaspace = before.get("type") == "Metaspace" and not before.get("split", True)
    return "Prepend" in steps or (metaspace and before.get("prepend_scheme") in ("first", "always"))


def _text_only(stored: dict[str, Any], folder: Path, *, llama: bool) -> tokenizers.Tokenizer:
    """A tokenizer for which no text is special.

    Added tokens that are not flagged special ([SEG], <think>) count as special too. Runs of spaces are the exception: they are how some
    vocabularies store ordinary text.
    """
    added = [{**token, "special": not token["content"].isspace()} for token in stored.get("added_tokens") or []]
    backend = _parsed({**stored, "added_tokens": added, "truncation": None, "padding": None}, folder)
    backend.encode_special_tokens = True
    if llama:
        backend.normalizer = normalizers.Replace(" ", "▁")  # type: ignore[assignment] - the stub forgets the setter
        backend.pre_tokenizer = None  # type: ignore[assignment]
    return backend
