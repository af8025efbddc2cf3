"""Data that can not be trained on: one line before anything heavy is made, or the documented behaviour. Never a hang."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ceph import S3
from trainer import assembly
from trainer.__main__ import main
from trainer.recipe import Recipe, as_toml

Tiny = Callable[..., Recipe]
Said = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing heavy is made."""

    def heavy(*_: object, **__: object) -> None:
        raise AssertionError("a model was made")

    monkeypatch.setattr(assembly, "assemble", heavy)


@pytest.fixture
def said(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """said("--source", "a=PLACE", ...): exit status and lines on stderr of training the tiny recipe."""
    path = tmp_path / "recipe.toml"
    path.write_text(as_toml(tiny("log.tensorboard=false", "steps=4")))

    def train(*words: str, out: Path = tmp_path / "out") -> tuple[int, list[str]]:
        capsys.readouterr()
        status = main(["train", str(path), "--out", str(out), *words])
        return status, capsys.readouterr().err.splitlines()

    return train


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--source", "colours=/no/such/place"), "/no/such/place: expected a finished data set, found no manifest.json"),
        (("--set", "mixture.draw=one", "--set", "sources.colours.weight=0"), "source colours: weight: expected a number above 0, found 0"),
        (("--set", "sources.colours.weight=1"), "source colours: weight: expected none, since every step takes a batch of every source"),
        (("--set", "sources.colours.batch_size=0"), "sources.colours: batch_size: expected at least 1, found 0"),
        (("--source", "colours=a", "--source", "colours=b"), "--source colours: expected it once, found it twice"),
    ],
    ids=["missing", "weight-0", "weight-under-every", "batch-0", "source-twice"],
)
def test_what_can_not_be_drawn_is_one_line_before_a_model_is_made(words: tuple[str, ...], expected: str, said: Said) -> None:
    status, lines = said(*words)

    assert (status, len(lines)) == (2, 1)
    assert expected in lines[0]


@pytest.mark.usefixtures("light")
def test_two_sources_with_one_name_are_one_line(tmp_path: Path, said: Said) -> None:
    path = tmp_path / "recipe.toml"
    text = path.read_text()
    path.write_text(text + text[text.index("[[sources]]") :])

    status, lines = said()

    assert (status, len(lines)) == (2, 1)
    assert lines[0].endswith("sources: expected different names, found colours twice")


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("wrong", ["endpoint", "key", "bucket", "prefix"])
def test_a_store_that_does_not_give_is_one_line_before_a_model_is_made(
    wrong: str, said: Said, s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes = {
        "endpoint": {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "SHARDWEAVE_STORE_DEADLINE": "0.5"},
        "key": {"AWS_SECRET_ACCESS_KEY": "wrong"},
    }.get(wrong, {})
    for name, value in {**s3.environment, "HOME": str(tmp_path), **changes}.items():
        monkeypatch.setenv(name, value)
    place = f"{s3.bucket()}{'-not' if wrong == 'bucket' else ''}/place"

    status, lines = said("--source", f"colours={place}")

    told = {
        "endpoint": "expected success within 0.5 s",
        "key": "403 Forbidden",
        "bucket": "NoSuchBucket",
        "prefix": "found no manifest.json",
    }
    assert status == 2
    assert lines[-1].startswith(f"error: {place}")
    assert told[wrong] in lines[-1]


def test_a_manifest_without_its_shards_ends_the_run_by_name(said: Said, colours: str, tmp_path: Path) -> None:
    place = shutil.copytree(colours, tmp_path / "alone")
    for path in [*place.glob("*.tar"), *place.glob("*.parquet")]:
        path.unlink()

    status, lines = said("--source", f"colours={place}")

    assert status == 1
    assert lines[-1].startswith("error: colours: lost shards: expected at most 1.000% of 4 records, found 4 in 1, the last: 000000-000.")


def test_data_that_changed_are_refused_before_a_model_is_made(
    said: Said, sums: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said("--set", "checkpoint.every=2")[0] == 0

    def heavy(*_: object, **__: object) -> None:
        raise AssertionError("a model was made")

    monkeypatch.setattr(assembly, "assemble", heavy)
    status, lines = said("--source", f"colours={sums}", "--resume", "--set", "steps=6")

    assert status == 2
    assert lines[-1].startswith("error: source colours: expected the data that the run began with, fingerprint ")


def test_a_batch_larger_than_its_source_goes_on_into_the_next_epoch(said: Said, tmp_path: Path) -> None:
    status, _ = said("--set", "sources.colours.batch_size=10")  # of four records

    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert status == 0
    assert [line["served_by_source"]["colours"] for line in lines] == [10, 10, 10, 10]
