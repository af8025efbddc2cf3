from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as Pillow

from schemas import RequestError
from schemas.record import image_part, text_part, turn
from tests.trainer.test_flamingo import TOWER, language
from trainer import __main__ as command
from trainer import model
from trainer.parts import tower
from trainer.recipe import Recipe
from trainer.text import tokenizer
from trainer.use import generate, prompt, trained
from trainer.use.generate import Sampling
from trainer.use.trained import Trained

Tiny = Callable[..., Recipe]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220), "yellow": (230, 220, 40)}
ADDED = (
    'tokenizer.add=["<|endofchunk|>", "<image>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]'
)


@pytest.fixture(scope="module")
def run(ran: Path) -> Trained:
    return trained.load(ran)


@pytest.fixture
def flat(tmp_path: Path) -> Callable[[str], str]:
    """flat("red"): the path of a red picture."""

    def make(name: str) -> str:
        Pillow.new("RGB", (16, 16), COLOURS[name]).save(tmp_path / f"{name}.png")
        return str(tmp_path / f"{name}.png")

    return make


def asked(*options: tuple[str, str], recipe: Recipe, words: tokenizer.Tokenizer) -> str:
    """The prompt of these options as it is written."""
    said, _ = prompt.given(options, recipe.template)
    return prompt.render([said], recipe, words).text


def test_the_model_says_what_colour_a_picture_has(run: Trained, flat: Callable[[str], str]) -> None:
    for colour in COLOURS:
        answer = generate.answer(run, [("image", flat(colour)), ("prompt", "Which colour?")], Sampling())

        assert answer.text == colour
        assert answer.prompt.endswith("questions. USER: <image>\nWhich colour? ASSISTANT:")
        assert answer.ended
        assert 0 < answer.tokens < 10


def test_answers_made_together_are_those_made_alone(run: Trained, flat: Callable[[str], str]) -> None:
    ready = []
    for colour in COLOURS:
        said, images = prompt.given([("image", flat(colour)), ("prompt", "Which colour?")], "v1")
        ready.append(prompt.Prompt(prompt.render([said], run.recipe, run.tokenizer), [prompt.pixels(images[0], run.preprocess)]))

    assert [answer.text for answer in generate.answers(run, ready, Sampling())] == list(COLOURS)


def test_chance_is_the_seed_s(run: Trained) -> None:
    def said(seed: int) -> str:
        sampling = Sampling(temperature=50.0, seed=seed, max_new_tokens=12)
        return generate.answer(run, [("prompt", "Which colour?")], sampling).text

    assert said(1) == said(1)
    assert said(1) != said(2)


def test_max_new_tokens_cuts_an_answer(run: Trained, flat: Callable[[str], str]) -> None:
    answer = generate.answer(run, [("image", flat("red")), ("prompt", "Which colour?")], Sampling(max_new_tokens=1))

    assert (answer.tokens, answer.ended) == (1, False)


def test_a_prompt_that_leaves_no_position_for_an_answer_is_refused(run: Trained) -> None:
    with pytest.raises(RequestError, match=r"expected one that leaves the model a position to answer in, found \d+ tokens and 0 pictures"):
        generate.answer(run, [("prompt", "w" * 600)], Sampling())


def test_an_answer_ends_at_the_model_s_last_position(run: Trained) -> None:
    asked = "w" * 260
    answer = generate.answer(run, [("prompt", asked)], Sampling(temperature=50.0, max_new_tokens=10_000))

    assert answer.tokens < 512


def test_pictures_stand_where_their_options_do_or_where_a_mark_is(run: Trained) -> None:
    how = {"recipe": run.recipe, "words": run.tokenizer}
    two = [("image", "a"), ("image", "b")]

    assert asked(*two, ("prompt", "What differs?"), **how).endswith("USER: <image>\n<image>\nWhat differs? ASSISTANT:")
    assert asked(two[0], ("prompt", "This"), two[1], ("prompt", "or this?"), **how).endswith(
        "USER: <image>\nThis\n<image>\nor this? ASSISTANT:"
    )
    assert asked(*two, ("prompt", "Is <image> as <image>?"), **how).endswith("USER: Is <image> as <image>? ASSISTANT:")
    with pytest.raises(RequestError, match="expected an <image> for each of 2 --image, or none at all, found 1"):
        prompt.given([*two, ("prompt", "Is <image> it?")], "v1")


def test_a_prompt_is_data(run: Trained) -> None:
    out = prompt.render([turn("user", [text_part("a</s>b <|im_end|>")])], run.recipe, run.tokenizer)

    assert run.tokenizer.eos not in out.ids


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        ("v1", ["</s>"]),
        ("chatml", ["</s>", "<|im_end|>"]),
        ("qwen", ["</s>"]),
        ("llama2", ["</s>"]),
        ("llama3", ["</s>", "<|eot_id|>"]),
        ("mistral", ["</s>"]),
        ("flamingo", ["</s>", "<|endofchunk|>"]),
    ],
)
def test_an_answer_ends_as_the_template_ends_it(tiny: Tiny, template: str, ends: list[str]) -> None:
    recipe = tiny(f"template={template}", ADDED)
    words = tokenizer.load(recipe.tokenizer)

    assert prompt.stops(recipe, words) == sorted(words.specials[end] for end in ends)


def test_a_caption_ends_with_its_line(tiny: Tiny) -> None:
    recipe = tiny("template=plain")
    words = tokenizer.load(recipe.tokenizer)

    ends = prompt.stops(recipe, words)

    assert set(words.encode("\n", first=False)[0]) < set(ends)
    assert all(words.backend.decode([id]).endswith("\n") for id in ends if id != words.eos)
    assert asked(("image", "a"), ("prompt", "A photo of"), recipe=recipe, words=words) == "<image>A photo of"


def test_flamingo_is_shown_pairs_and_goes_on_from_the_last(tiny: Tiny) -> None:
    recipe = tiny("template=flamingo", "model.family=flamingo", ADDED)
    words = tokenizer.load(recipe.tokenizer)
    how = {"recipe": recipe, "words": words}
    pairs = [("image", "a"), ("prompt", "A dog. "), ("image", "b"), ("prompt", " A")]
    turns = [turn("user", [image_part(0), text_part("Who? ")]), turn("assistant", [text_part("Ann")]), turn("user", [text_part("Why?")])]

    assert asked(*pairs, **how) == "<image>A dog.<|endofchunk|><image>A"
    assert (
        asked(("image", "a"), ("image", "b"), ("prompt", "Seen:<image>A dog.<image>"), **how) == "Seen:<image>A dog.<|endofchunk|><image>"
    )
    talk = prompt.render(turns, recipe, words)
    assert talk.text == "<image>Question:Who? Short answer:Ann<|endofchunk|>Question:Why? Short answer:"
    assert talk.ids.count(words.specials["<image>"]) == 1


def test_flamingo_answers(tiny: Tiny, flat: Callable[[str], str]) -> None:
    recipe = tiny(*TOWER, language("llama"), "template=flamingo", ADDED)
    words = tokenizer.load(recipe.tokenizer)
    built = model.build(recipe, words.size, words.specials).eval()
    run = Trained(name="new", recipe=recipe, tokenizer=words, preprocess=tower.preprocess(recipe), model=built)
    pairs = [("image", flat("red")), ("prompt", "A"), ("image", flat("blue"))]

    answer = generate.answer(run, pairs, Sampling(max_new_tokens=4))

    assert answer.prompt == "<image>A<|endofchunk|><image>"
    assert answer.tokens <= 4


def test_the_command_answers_in_one_line(ran: Path, flat: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(ran), "--image", flat("blue"), "--prompt", "Which colour?"]

    assert command.main(arguments) == 0
    assert capsys.readouterr().out == "blue\n"
    assert command.main([*arguments, "--step", "50", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"prompt", "text", "tokens", "ended"}


def test_a_conversation_goes_over_stdin(
    ran: Path, flat: Callable[[str], str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Which colour?\n\nWhich colour?\n"))

    assert command.main(["generate", str(ran), "--image", flat("green"), "--json"]) == 0

    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["text"] == "green"
    assert second["prompt"].endswith("USER: <image>\nWhich colour? ASSISTANT: green</s>USER: Which colour? ASSISTANT:")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["/nowhere"], "error: /nowhere: expected a run folder with recipe.toml, found none"),
        (["RUN", "--image", "/nowhere.png", "--prompt", "a"], "error: /nowhere.png: No such file or directory"),
        (
            ["RUN", "--image", "RUN/recipe.toml", "--prompt", "a"],
            "error: RUN/recipe.toml: expected a picture that the tower takes, found image_decode",
        ),
        (["RUN", "--prompt", "a <image>"], "error: --prompt: expected an <image> for each of 0 --image"),
        (["RUN", "--prompt", "a", "--set", "template=llama3"], "error: tokenizer: expected a token <|start_header_id|>"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(ran: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = command.main(["generate", *(argument.replace("RUN", str(ran)) for argument in arguments)])

    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith(told.replace("RUN", str(ran)))
    assert err.count("\n") == 1
