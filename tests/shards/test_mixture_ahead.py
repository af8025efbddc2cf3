"""What a recipe will make of a data set: asked of the trainer's own commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="no trainer: the extra `train` is not installed")
pytest.importorskip("jinja2", reason="no page: the extra `view` is not installed")

import shards
from shards.__main__ import main
from shards.view import mixture
from shards.view.tokens import Tokens
from tests.shards.records import several


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("places")
    for name, count in (("few", 20), ("many", 60)):
        shards.write(folder / name, several(count), source=name)
    return {name: folder / name for name in ("few", "many")}


@pytest.fixture(scope="module")
def tokenizer(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    out = tmp_path_factory.mktemp("tokenizer") / "made"
    words = ["tokenizer", "--from", str(places["many"]), "--vocab", "300", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "trainer", *words], cwd=root, check=True, capture_output=True, timeout=120)
    return out


def cells(html: str) -> dict[str, list[str]]:
    """The rows of the mixture's table, by source."""
    (section,) = re.findall(r'<section aria-label="Mixture">.*?</section>', html, re.DOTALL)
    rows = re.findall(r'<tr><th scope="row"><bdi>(\w+)</bdi></th>(.*?)</tr>', section, re.DOTALL)
    return {name: re.findall(r"<td>(.*?)</td>", row) for name, row in rows}


def test_the_numbers_page_says_how_a_recipe_will_mix_its_sources(places: dict[str, Path], tokenizer: Path, tmp_path: Path) -> None:
    words = ["--recipe", "tiny-demo", "--set", f"tokenizer.path={tokenizer}", "--source", f"many={places['many']}", "--records", "10"]
    assert main(["view", str(places["few"]), *words, "--export", str(tmp_path / "r")]) == 0

    found = cells((tmp_path / "r").read_text())

    assert list(found) == ["many", "few"]
    for name, count in (("few", 20), ("many", 60)):
        share, records, epochs, tokens, supervised, part = found[name]
        assert share == "50.00 %"  # every step takes a batch of each
        assert float(epochs.replace(",", "")) == pytest.approx(float(records) * 100_000 / count, rel=1e-3)
        assert float(supervised) == pytest.approx(float(tokens) * float(records), rel=1e-3)
        assert 0 < float(tokens) < 30  # "picture 7" and the end
        assert 40 < float(part.removesuffix(" %")) < 60


def test_a_recipe_that_makes_no_plan_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("steps = 'many'\n")

    found = mixture.run(str(tmp_path / "mine.toml"), {}, Tokens("x", [], None))

    assert found.rows == []
    assert "steps" in (found.problem or "")


def test_another_source_is_named_with_its_place(places: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(places["few"]), "--recipe", "tiny-demo", "--source", "many"]) == 2
    assert "expected NAME=PLACE" in capsys.readouterr().err
