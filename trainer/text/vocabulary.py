"""A small byte-level BPE tokenizer made from the texts of shards: for demos, tests, and whoever has no hub at hand.

The same texts in the same order give the same file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from schemas import Record, RequestError
from trainer.text import template

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
LEAST = 259  # every byte, and the three special tokens


def texts(record: Record) -> Iterator[str]:
    """Every text of a record: of its turns and of its choices."""
    for turns in (record.turns, *(choice.turns for choice in record.choices)):
        yield from (part.text for turn in turns for part in turn.parts if part.text)


def fixed() -> list[str]:
    """What the templates themselves say, as often as it takes to be learned: else every record would spell it out in letters."""
    return [template.SYSTEM + " USER:\n ASSISTANT: "] * 20


def make(lines: Iterable[str], size: int) -> tokenizers.Tokenizer:
    """A tokenizer of at most `size` ids that can write any text and puts <s> in front. Raises RequestError where size is too small."""
    if size < LEAST:
        raise RequestError(f"--vocab: expected at least {LEAST}, found {size}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment] - the stub forgets the setter
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[PAD, BOS, EOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    specials = [(BOS, 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=specials)  # type: ignore[assignment]
    return tokenizer


def save(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, as transformers reads them. Raises RequestError where one is there already."""
    if (folder / "tokenizer.json").exists():
        raise RequestError(f"--out {folder}: expected no tokenizer.json, found one")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
