"""Questions to answers, as LLaVA's tools write and read them: question.jsonl, answers.jsonl.

    {"question_id": 7, "image": "COCO_val2014_000000000042.jpg", "text": "What is this?\\nAnswer with one word.", "category": "..."}
    {"question_id": 7, "prompt": "What is this?\\n...", "text": "dog", "answer_id": "...", "model_id": "stage2", "metadata": {}}

A question without an image is text alone; further keys are not read. Answers stand in the order of the questions. They are written into
ANSWERS.part and get their name when all are there; the same command goes on with what a stopped one has written. An answer's id is made
from question, model and text, not drawn: the same run writes the same file. Source: model_vqa.py and model_vqa_loader.py in llava/eval of
haotian-liu/LLaVA.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import msgspec
from tqdm import tqdm

from schemas import RequestError
from schemas.record import image_part, text_part, turn
from shards import splitmix
from trainer.text.rendered import MARKER
from trainer.use import generate, prompt
from trainer.use.generate import Sampling
from trainer.use.prompt import Prompt
from trainer.use.trained import Trained


class Question(msgspec.Struct):
    """A line of question.jsonl."""

    question_id: int | str
    text: str
    image: str | None = None


class Answered(msgspec.Struct):
    """A line of answers.jsonl."""

    question_id: int | str
    prompt: str
    text: str
    answer_id: str
    model_id: str
    metadata: dict[str, Any] = {}


def ready(path: Path, images: Path | None, out: Path) -> list[Question]:
    """The questions of a file, before a model is loaded for them.

    Raises RequestError with the line that is no question, where pictures are missing, or where the answers are there already.
    """
    if out.exists():
        raise RequestError(f"--out {out}: expected a new file, found one")
    asked = [question for _, question in _lines(path.read_bytes(), path, Question)]
    missing = [question.image for question in asked if question.image is not None and not _file(question.image, images).is_file()]
    if missing:
        raise RequestError(f"{path}: expected its pictures in {images}, found {len(missing)} missing, the first {missing[0]}")
    return asked


def answer(run: Trained, asked: Sequence[Question], images: Path | None, out: Path, sampling: Sampling, *, batch_size: int = 1) -> int:
    """Write the answers, `batch_size` made at a time; how many there are. Raises RequestError where a stopped command left others."""
    aside = out.with_name(f"{out.name}.part")
    with aside.open("a+b") as file:
        done = _written(file, asked, run.name, aside, batch_size)
        for at in tqdm(range(done, len(asked), batch_size), initial=done // batch_size, unit="batch", disable=None):
            part = asked[at : at + batch_size]
            seeded = replace(sampling, seed=splitmix.key(sampling.seed, at))
            found = generate.answers(run, [_prompt(run, question, images) for question in part], seeded)
            file.writelines(_line(question, said.text, run.name) for question, said in zip(part, found, strict=True))
            file.flush()
        os.fsync(file.fileno())
    aside.replace(out)
    return len(asked)


def _lines(data: bytes, path: Path, kind: type) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                yield number, msgspec.json.decode(line, type=kind)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RequestError(f"{path}: line {number}: expected {kind.__name__.lower()} as JSON, found {error}") from error


def _file(name: str, images: Path | None) -> Path:
    """The picture of this name inside the folder. Raises RequestError where there is no folder, or the name leads out of it."""
    if images is None:
        raise RequestError(f"--images: expected the folder of {name}, found none")
    path = (images / name).resolve()
    if not path.is_relative_to(images.resolve()):
        raise RequestError(f"{name}: expected a picture inside {images}, found a path that leads out of it")
    return path


def _prompt(run: Trained, question: Question, images: Path | None) -> Prompt:
    """The picture in front. Under template plain the text is what the answer goes on from; under flamingo it is asked as a question."""
    pictures = [] if question.image is None else [prompt.pixels(_file(question.image, images), run.preprocess)]
    parts = [*(image_part(index) for index in range(len(pictures))), text_part(question.text.replace(MARKER, "").strip())]
    role = "text" if run.recipe.template == "plain" else "user"
    return Prompt(prompt.render([turn(role, parts)], run.recipe, run.tokenizer), pictures)


def _written(file: IO[bytes], asked: Sequence[Question], model: str, where: Path, batch_size: int) -> int:
    """How many answers a stopped command has left, of whole batches; the rest goes. Raises RequestError where they are others' answers."""
    file.seek(0)
    lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
    for number, found in _lines(b"".join(lines), where, Answered):
        expected = asked[number - 1] if number <= len(asked) else None
        if expected is None or (found.question_id, found.prompt, found.model_id) != (expected.question_id, expected.text, model):
            raise RequestError(
                f"{where}: line {number}: expected {model}'s answer to the question in that place, found another; remove the file"
            )
    done = len(lines) if len(lines) == len(asked) else len(lines) - len(lines) % batch_size
    file.truncate(sum(map(len, lines[:done])))
    return done


def _line(question: Question, text: str, model: str) -> bytes:
    seen = msgspec.json.encode([question.question_id, question.text, model, text])
    id = hashlib.sha256(seen).hexdigest()[:22]
    made = Answered(question_id=question.question_id, prompt=question.text, text=text, answer_id=id, model_id=model)
    return msgspec.json.encode(made) + b"\n"
