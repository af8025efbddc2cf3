"""The demo's trees: the same bytes each time, and shardweave counts in them what was planted. The whole demo is `make demo`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from demo import account, photos
from demo.run import DemoError
from demo.trees import TREES, Planted, Tree
from pipelines.__main__ import main as pipelines

pytest.importorskip("skimage", reason="no photographs: scikit-image is not installed")


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tree]:
    """All six, from one deck, as the demo writes them."""
    return _written(tmp_path_factory.mktemp("upstream"))


def _written(folder: Path) -> dict[str, Tree]:
    deck = photos.Deck()
    return {name: module.write(folder / name, deck) for name, module in TREES.items()}


def _digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_trees_are_the_same_bytes_each_time(trees: dict[str, Tree], tmp_path: Path) -> None:
    for name, again in _written(tmp_path).items():
        assert _digest(again.folder) == _digest(trees[name].folder)


@pytest.mark.parametrize("name", ["coco", "llava", "grand"])
def test_what_was_planted_is_counted(name: str, trees: dict[str, Tree], tmp_path: Path) -> None:
    flags = [*trees[name].flags(), "--max-reject-rate", "0.3"]

    assert pipelines(["convert", name, *flags, "--out", str(tmp_path / name), "--workers", "1"]) == 0

    account.converted(name, str(tmp_path / name), TREES[name].PLANTED)


def test_a_count_that_differs_ends_the_demo() -> None:
    planted = Planted(written=3, images=3, rejected={"json": 1}, references=3, missing=0)
    found = {"ok": True, "records": 2, "images": 3}

    with pytest.raises(DemoError, match="records: planted 3, counted 2"):
        account.verified("coco", found, planted)


def test_views_are_all_different() -> None:
    views = photos.Deck()
    dealt = views.deal(len(views))

    assert len({view.bytes() for view in dealt}) == len(dealt)
    assert len({caption for view in dealt for caption in view.captions()}) == 3 * len(dealt)


def test_a_used_up_deck_says_so() -> None:
    with pytest.raises(IndexError, match="expected 1000 views"):
        photos.Deck().deal(1000)
