from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from schemas import RequestError
from trainer import recipe as recipes
from trainer.recipe import Recipe, Source


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stepz = 3", "mine.toml: stepz: unknown key (did you mean steps?)"),
        ("[optimizer]\nlearning = 1", "mine.toml: optimizer.learning: unknown key"),
        ("[schedule]\nwarmup = 1", "mine.toml: schedule.warmup: unknown key (did you mean warmup_steps?)"),
        ('[[sources]]\nname = "a"\nbatchsize = 1', "mine.toml: sources.a.batchsize: unknown key (did you mean batch_size?)"),
        ('steps = "many"', "mine.toml: steps: expected a whole number, found 'many'"),
        ("steps = true", "mine.toml: steps: expected a whole number, found True"),
        ("steps = 1.5", "mine.toml: steps: expected a whole number, found 1.5"),
        ("steps = 0", "mine.toml: steps: expected at least 1, found 0"),
        ("optimizer = 3", "mine.toml: optimizer: expected a table, found 3"),
        ("[optimizer]\nlr = nan", "mine.toml: optimizer: lr: expected at least 0, found nan"),
        ("[optimizer]\nbetas = [0.9]", "mine.toml: optimizer.betas: expected 2 numbers, found 1"),
        ("[freeze]\nvision = 0", "mine.toml: freeze.vision: expected true or false, found 0"),
        ('task = "v11"', "mine.toml: task: unknown key"),
        ('[mixture]\ndraw = "evry"', "mine.toml: mixture.draw: expected one of every, one, mixed, found 'evry' (did you mean every?)"),
        (
            "[mixture]\nbatch_size = 4",
            "mine.toml: mixture: expected batch sizes of the sources where draw is every, found one of the mixture",
        ),
        ('[mixture]\ngroups = {a = "x"}', "mine.toml: mixture.groups.a: expected a number, found 'x'"),
        ("[loader]\nprefetch = 0", "mine.toml: loader: prefetch: expected at least 1, found 0"),
        ("[checkpoint]\nevry = 1", "mine.toml: checkpoint.evry: unknown key (did you mean every?)"),
        ('[[sources]]\nname = "a"\nwindow = 0', "mine.toml: sources.a: window: expected at least 1, found 0"),
        ("[[sources]]\nbatch_size = 1", "mine.toml: sources.0.name: expected a value, found none"),
        ('sources = [{name = "a"}, {name = "a"}]', "mine.toml: sources: expected different names, found a twice"),
        ("sources = 3", "mine.toml: sources: expected a list, found 3"),
        ("steps = ", "mine.toml: expected TOML, found"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_file_and_key(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(RequestError) as caught:
        recipes.load(written(tmp_path, text))

    assert str(caught.value).startswith(f"{tmp_path}/{told}")
    assert "\n" not in str(caught.value)


def test_a_whole_number_will_do_for_a_number(tmp_path: Path) -> None:
    assert recipes.load(written(tmp_path, "[optimizer]\nlr = 1")).optimizer.lr == 1.0


def test_settings_change_values_and_need_no_quotes(tmp_path: Path) -> None:
    path = written(tmp_path, 'steps = 3\n[[sources]]\nname = "a"')

    changed = recipes.load(path, settings=["optimizer.lr=1e-4", "tokenizer.path=/a/b", "sources.a.batch_size=2", 'vision.config={x = "y"}'])

    assert changed.optimizer.lr == 1e-4
    assert changed.tokenizer.path == "/a/b"
    assert changed.sources == (Source(name="a", batch_size=2),)
    assert changed.vision.config == {"x": "y"}


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("optimizer.lr", "--set: expected a.b=value, found 'optimizer.lr'"),
        ("sources.b.batch_size=2", "--set sources.b.batch_size: expected a table or a source called 'b', found none"),
        ("steps.x=2", "--set steps.x: expected a table above 'x', found 3"),
    ],
)
def test_a_setting_that_fits_nowhere_is_refused(tmp_path: Path, setting: str, told: str) -> None:
    with pytest.raises(RequestError) as caught:
        recipes.load(written(tmp_path, 'steps = 3\n[[sources]]\nname = "a"'), settings=[setting])

    assert str(caught.value) == told


def test_a_place_is_put_into_the_source_of_that_name(tmp_path: Path) -> None:
    path = written(tmp_path, '[[sources]]\nname = "captions"\nbatch_size = 3')

    assert recipes.load(path, sources=["captions=/x"]).sources == (Source(name="captions", shards="/x", batch_size=3),)
    with pytest.raises(RequestError, match=r"caption: expected one of the recipe's sources, captions .did you mean captions"):
        recipes.load(path, sources=["caption=/x"])


def test_a_recipe_that_lists_no_sources_takes_any(tmp_path: Path) -> None:
    found = recipes.load(written(tmp_path, ""), sources=["a=/x", "b=/y"], settings=["sources.b.loss_multiplier=0.5"])

    assert [(source.name, source.shards, source.loss_multiplier) for source in found.sources] == [("a", "/x", 1.0), ("b", "/y", 0.5)]


def test_a_recipe_is_a_file_or_a_shipped_name() -> None:
    assert "tiny-demo" in recipes.shipped()
    assert recipes.load("tiny-demo").template == "plain"
    with pytest.raises(RequestError, match=r"recipe tiny-dem: expected a file or one of .* .did you mean tiny-demo"):
        recipes.load("tiny-dem")


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_shipped_recipe_loads(name: str) -> None:
    assert isinstance(recipes.load(name), Recipe)


def test_a_recipe_written_down_reads_back_as_itself(tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("pictures.mean=[0.1, 0.2, 0.3]", 'vision.config.name="a \\"quoted\\" name"', "optimizer.eps=1e-9")

    assert recipes.load(written(tmp_path, recipes.as_toml(recipe))) == recipe


def test_the_recipe_in_the_readme_loads(tmp_path: Path, root: Path) -> None:
    text = (root / "trainer" / "README.md").read_text().split("```toml\n")[1].split("```")[0]

    recipe = recipes.load(written(tmp_path, text))

    assert [(source.name, source.batch_size) for source in recipe.sources] == [("instruct", 12), ("captions", 4)]
