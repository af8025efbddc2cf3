"""Answers of a trained model: to a prompt with pictures, to many, and in a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from schemas import RequestError
from schemas.record import image_part, text_part, turn
from shards import splitmix
from trainer.data.batch import Example, collate
from trainer.engines import precision
from trainer.model import Model
from trainer.text.rendered import IGNORE
from trainer.use import prompt
from trainer.use.prompt import Prompt
from trainer.use.trained import Trained


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0: the likeliest one
    top_p: float = 1.0  # of the likeliest that make up so much of the probability
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said."""

    prompt: str  # as the template writes it
    text: str  # without what ends it, and without blanks around it
    tokens: int
    ended: bool  # by the model, and not by max_new_tokens


def answer(run: Trained, options: Sequence[tuple[str, str]], sampling: Sampling) -> Answer:
    """The answer to --image and --prompt options. Raises RequestError."""
    asked, images = prompt.given(options, run.recipe.template)
    shown = [prompt.pixels(path, run.preprocess) for path in images]
    return answers(run, [Prompt(prompt.render([asked], run.recipe, run.tokenizer), shown)], sampling)[0]


def chat(run: Trained, images: Sequence[Path], lines: Iterable[str], sampling: Sampling) -> Iterator[Answer]:
    """An answer to each line, in one conversation; the pictures are shown with the first. Raises RequestError."""
    shown = [prompt.pixels(path, run.preprocess) for path in images]
    turns = []
    for number, line in enumerate(line.rstrip("\n") for line in lines if line.strip()):
        before = [] if number else [part for index in range(len(shown)) for part in (image_part(index), text_part("\n"))]
        turns.append(turn("user", [*before, text_part(line)]))
        ready = Prompt(prompt.render(turns, run.recipe, run.tokenizer), shown)
        said = answers(run, [ready], replace(sampling, seed=sampling.seed + number))[0]
        turns.append(turn("assistant", [text_part(said.text)]))
        yield said


@torch.inference_mode()
def answers(run: Trained, prompts: Sequence[Prompt], sampling: Sampling) -> list[Answer]:
    """An answer to each prompt, made together. Raises RequestError where a prompt leaves the model no position."""
    model, words = run.model, run.tokenizer
    ends = run.stops
    made = collate([Example(rendered=asked.rendered, pixels=asked.shown()) for asked in prompts])
    room = min(_room(model, asked, sampling.max_new_tokens) for asked in prompts)
    torch.manual_seed(splitmix.key(sampling.seed, "generate") >> 1)
    with precision.autocast(run.recipe):
        found = model.generate(
            made.to(run.recipe.device), max_new_tokens=room, eos_token_id=ends, pad_token_id=words.eos, **_choice(sampling)
        )
    rows = [_until(row, ends) for row in found.tolist()]
    texts = [words.backend.decode(ids, skip_special_tokens=True).strip() for ids, _ in rows]
    return [
        Answer(prompt=asked.rendered.text, text=text, tokens=len(ids), ended=ended)
        for asked, text, (ids, ended) in zip(prompts, texts, rows, strict=True)
    ]


def _room(model: Model, asked: Prompt, wanted: int) -> int:
    """How many tokens may follow: as wanted, or up to the model's last position."""
    rendered, more = asked.rendered, [0] * wanted
    spans, labels = [*rendered.spans, *((0, 0) for _ in more)], [*rendered.labels, *(IGNORE for _ in more)]
    fits = model.fit(replace(rendered, ids=[*rendered.ids, *more], labels=labels, spans=spans))
    room = len(fits.ids) - len(rendered.ids)
    if room < 1:
        found = f"{len(rendered.ids)} tokens and {len(asked.rendered.images)} pictures"
        raise RequestError(f"prompt: expected one that leaves the model a position to answer in, found {found}")
    return room


def _choice(sampling: Sampling) -> dict[str, Any]:
    if not sampling.temperature:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}


def _until(ids: list[int], ends: Sequence[int]) -> tuple[list[int], bool]:
    """The ids up to the first that ends an answer, and whether there is one."""
    at = next((number for number, id in enumerate(ids) if id in ends), len(ids))
    return ids[:at], at < len(ids)
