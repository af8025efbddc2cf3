from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow

import shards
from schemas import RequestError
from schemas.record import image, image_part, record, text_part, turn
from trainer import __main__ as command
from trainer.data import sources
from trainer.data.batch import collate
from trainer.data.examples import example
from trainer.text import render
from trainer.use import evaluate, generate, questions, trained
from trainer.use.generate import Sampling
from trainer.use.trained import Trained


@pytest.fixture(scope="module")
def run(ran: Path) -> Trained:
    return trained.load(ran)


@pytest.fixture
def spoilt(tmp_path: Path, photo: Callable[..., bytes]) -> str:
    """Shards of a record with a picture, one whose picture is cut, one without a picture, and one with nothing to train on."""
    whole = photo(16, 16)
    items = []
    for data in (whole, whole[: len(whole) // 2]):
        turns = [turn("user", [image_part(0)]), turn("assistant", [text_part("noise")])]
        items.append((record("spoilt", images=[image(width=16, height=16, format="jpg", bytes=len(data))], turns=turns), [data], []))
    for trains in (True, False):
        turns = [turn("user", [text_part("a")]), turn("assistant", [text_part("b")], train=trains)]
        items.append((record("spoilt", turns=turns), [], []))
    shards.write(tmp_path / "spoilt", items)
    return str(tmp_path / "spoilt")


@torch.no_grad()
def by_hand(run: Trained, place: str) -> tuple[float, int]:
    """Mean loss and tokens, a record at a time."""
    show = render.renderer(run.recipe, run.tokenizer)
    found = [run.model(collate([example(sample, show, run.preprocess)])) for sample in sources.first(shards.open(place), None)]
    tokens = sum(int(loss.counts_B) for loss in found)
    return sum(float(loss.sums_B) for loss in found) / tokens, tokens


def test_the_loss_is_the_mean_over_the_supervised_tokens_of_every_record_once(run: Trained, colours: str, sums: str) -> None:
    found = evaluate.losses(run, [f"colours={colours}", f"sums={sums}"])

    for name, place in (("colours", colours), ("sums", sums)):
        loss, tokens = by_hand(run, place)
        assert found[name].loss == pytest.approx(loss, rel=1e-5)
        assert found[name].tokens == tokens
    assert [found[name].records for name in found] == [4, 3]
    assert evaluate.losses(run, [f"sums={sums}"])["sums"] == found["sums"]


def test_the_size_of_a_batch_does_not_change_it(ran: Path, colours: str) -> None:
    sizes = [evaluate.losses(trained.load(ran, settings=[f"held_out.batch_size={size}"]), [f"colours={colours}"]) for size in (1, 3, 16)]

    assert [found["colours"].tokens for found in sizes] == [sizes[0]["colours"].tokens] * 3
    assert [found["colours"].loss for found in sizes] == pytest.approx([sizes[0]["colours"].loss] * 3, rel=1e-5)


def test_the_first_so_many_records_may_do(run: Trained, colours: str) -> None:
    assert evaluate.losses(run, [f"colours={colours}"], records=3)["colours"].records == 3


def test_bad_records_are_counted_and_the_status_says_so(
    ran: Path, spoilt: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert command.main(["evaluate", str(ran), "--source", f"spoilt={spoilt}", "--json"]) == 1

    found = json.loads(capsys.readouterr().out)["spoilt"]
    assert (found["records"], found["bad"]) == (3, 1)
    assert "spoilt: skipped: record 1: image_decode" in caplog.text


def test_a_source_is_shown_as_the_recipe_shows_it(ran: Path, colours: str) -> None:
    run = trained.load(ran, settings=["sources.colours.template=plain"])

    known, unknown = (evaluate.losses(run, [f"{name}={colours}"])[name] for name in ("colours", "others"))

    assert known.tokens < unknown.tokens + 4
    assert known.loss != unknown.loss


def test_the_command_tells_loss_and_tokens(ran: Path, colours: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["evaluate", str(ran), "--source", f"colours={colours}"]) == 0

    assert capsys.readouterr().out.startswith("colours: loss 0.")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "error: --source: expected NAME=PLACE, found none, and no held-out sources in the recipe"),
        (["--source", "colours"], "error: --source: expected NAME=PLACE, found 'colours'"),
        (["--source", "colours=/nowhere"], "error: /nowhere"),
        (["--questions", "/nowhere.jsonl", "--out", "/x.jsonl"], "error: /nowhere.jsonl: No such file or directory"),
        (["--questions", "/nowhere.jsonl"], "error: --questions: expected --out FILE"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(ran: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = command.main(["evaluate", str(ran), *arguments])

    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith(told)
    assert err.count("\n") == 1


@pytest.fixture
def exam(tmp_path: Path) -> Path:
    """question.jsonl beside a folder of pictures: four about a picture, one without."""
    (tmp_path / "pictures" / "flat").mkdir(parents=True)
    lines: list[dict[str, int | str]] = [{"question_id": "text", "text": "Which colour?", "category": "none"}]
    for number, (name, colour) in enumerate(
        {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220), "yellow": (230, 220, 40)}.items()
    ):
        Pillow.new("RGB", (16, 16), colour).save(tmp_path / "pictures" / "flat" / f"{name}.png")
        lines.append({"question_id": number, "image": f"flat/{name}.png", "text": "<image>\nWhich colour?"})
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "question.jsonl"


def answered(run: Trained, exam: Path, out: Path, batch_size: int = 1) -> int:
    images = exam.parent / "pictures"
    return questions.answer(run, questions.ready(exam, images, out), images, out, Sampling(max_new_tokens=8), batch_size=batch_size)


def test_questions_are_answered_in_order_in_llava_s_form(ran: Path, exam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--questions", str(exam), "--images", str(tmp_path / "pictures"), "--out", str(tmp_path / "answers.jsonl")]

    assert command.main(["evaluate", str(ran), *arguments, "--max-new-tokens", "8"]) == 0

    assert capsys.readouterr().out == f"5 answers, written to {tmp_path}/answers.jsonl\n"
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == ["text", 0, 1, 2, 3]
    assert [line["text"] for line in lines[1:]] == ["red", "green", "blue", "yellow"]
    for line in lines:
        assert list(line) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
        assert (line["model_id"], line["metadata"]) == ("colours", {})
    assert lines[1]["prompt"] == "<image>\nWhich colour?"
    assert len({line["answer_id"] for line in lines}) == 5


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_stopped_command_goes_on_to_the_same_bytes(run: Trained, exam: Path, tmp_path: Path, batch_size: int) -> None:
    answered(run, exam, tmp_path / "whole.jsonl", batch_size)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "cut.jsonl.part").write_bytes(whole[: len(whole) * 3 // 5])

    assert answered(run, exam, tmp_path / "cut.jsonl", batch_size) == 5

    assert (tmp_path / "cut.jsonl").read_bytes() == whole
    assert not (tmp_path / "cut.jsonl.part").exists()


def test_nothing_is_answered_twice(run: Trained, exam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(run, exam, tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "most.jsonl.part").write_bytes(b"".join(lines[:4]))
    asked = []
    answers = generate.answers
    monkeypatch.setattr(
        "trainer.use.generate.answers", lambda run, prompts, sampling: (asked.append(len(prompts)), answers(run, prompts, sampling))[1]
    )

    answered(run, exam, tmp_path / "most.jsonl")

    assert asked == [1]


def test_answers_that_are_there_are_not_written_over(run: Trained, exam: Path, tmp_path: Path) -> None:
    answered(run, exam, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "others.jsonl.part").write_bytes(whole.replace(b'"colours"', b'"others"'))

    with pytest.raises(RequestError, match="expected a new file, found one"):
        answered(run, exam, tmp_path / "whole.jsonl")
    with pytest.raises(
        RequestError, match=r"others.jsonl.part: line 1: expected colours's answer to the question in that place, found another"
    ):
        answered(run, exam, tmp_path / "others.jsonl")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            '{"question_id": 1, "text": "a", "image": "gone.png"}',
            r"question.jsonl: expected its pictures in \S+, found 1 missing, the first gone.png",
        ),
        (
            '{"question_id": 1, "text": "a", "image": "../question.jsonl"}',
            r"expected a picture inside \S+, found a path that leads out of it",
        ),
        ('{"question_id": 1, "image": "gone.png"}', "question.jsonl: line 6: expected question as JSON, found .*text"),
        ("{", "question.jsonl: line 6: expected question as JSON"),
    ],
)
def test_a_wrong_question_is_told_before_the_first_is_answered(exam: Path, tmp_path: Path, line: str, told: str) -> None:
    exam.write_text(exam.read_text() + line + "\n")

    with pytest.raises(RequestError, match=told):
        questions.ready(exam, tmp_path / "pictures", tmp_path / "answers.jsonl")
