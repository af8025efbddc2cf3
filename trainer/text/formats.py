"""Chat formats: what stands around a question and an answer.

    chatml    <|im_start|>user\\nQuestion<|im_end|>\\n<|im_start|>assistant\\nAnswer<|im_end|>\\n...  LLaVA-NeXT's Qwen, Yi
    qwen      the same, but an answer ends with the tokenizer's end token and pictures stay where they stand: Basic-VLM
    llama2    <s>[INST] <<SYS>>\\nSystem\\n<</SYS>>\\n\\nQuestion [/INST] Answer </s><s>[INST] Question [/INST] Answer </s>
    llama3    <|start_header_id|>user<|end_header_id|>\\n\\nQuestion<|eot_id|>...
    mistral   <s>[INST] Question [/INST] Answer</s>[INST] Question [/INST] Answer</s>

Sources: llava/conversation.py of haotian-liu/LLaVA and LLaVA-VL/LLaVA-NeXT; https://www.llama.com/docs/model-cards-and-prompt-formats;
https://github.com/mistralai/mistral-common. An answer is trained on with what ends it; a line break behind that is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from trainer.text.rendered import End, Piece, Text, Token

_TOKEN = re.compile(r"(<\|[a-z_]+\|>|<s>)")
END = "<end>"  # the tokenizer's end token


@dataclass(frozen=True, kw_only=True)
class Format:
    """Texts around what is said; special tokens stand in them by name, and {} is what is said."""

    words: str | None  # of the system, if neither the record nor the recipe has any; null: then it says nothing
    system: str
    user: str  # a question
    reply: str  # before an answer
    end: str  # behind it, trained on like the answer; END or a special token, and blanks before it
    later: str | None = None  # one that is not the first; null: as `user`
    between: str = ""  # behind that, before another turn
    in_place: bool = False  # a single picture stays where it stands
    inside: str = ""  # what the first question leaves out behind a system that stands in it


_CHATML = Format(
    words="You are a helpful assistant.",
    system="<|im_start|>system\n{}<|im_end|>\n",
    user="<|im_start|>user\n{}<|im_end|>\n",
    reply="<|im_start|>assistant\n",
    end="<|im_end|>",
    between="\n",
)
_MISTRAL = Format(
    words=None,
    system="[INST] {}\n\n",
    user="[INST] {} [/INST]",
    inside="[INST] ",
    reply="",
    end=END,
)

FORMATS = {
    "chatml": _CHATML,
    "qwen": replace(_CHATML, end=END, in_place=True),
    "llama2": replace(_MISTRAL, system="[INST] <<SYS>>\n{}\n<</SYS>>\n\n", later="<s>[INST] {} [/INST]", end=" " + END),
    "llama3": Format(
        words=None,
        system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        reply="<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
    ),
    "mistral": _MISTRAL,
}


def written(text: str, *, trained: bool = False) -> Iterator[Piece]:
    """A format's text as pieces: its special tokens by name."""
    for piece in _TOKEN.split(text.replace(END, "\0")):
        before, end, after = piece.partition("\0")
        if _TOKEN.fullmatch(piece):
            yield Token(piece, trained)
            continue
        yield Text(before, trained)
        if end:
            yield End(trained)
            yield Text(after, trained)
