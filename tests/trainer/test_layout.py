"""One glance shows the trainer's structure: groups by noun, whose imports point one way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_layout import imported

FAMILIES = ("llava", "flamingo")
# Each may import those before it, and itself.
ORDER = (
    *("recipe", "weights", "text", "data", "parts", "model"),
    *FAMILIES,
    *("engines", "run", "assembly", "blank", "log", "loop", "dataset", "use", "__main__"),
)


def files(root: Path, name: str) -> list[Path]:
    return [*(root / "trainer" / name).rglob("*.py"), *(root / "trainer").glob(f"{name}.py")]


def ours(path: Path) -> set[str]:
    """The groups that a file imports, also inside functions."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("trainer.")}


def test_every_file_and_folder_of_the_trainer_has_its_place(root: Path) -> None:
    found = {path.stem for path in (root / "trainer").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}

    assert found - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_group_imports_what_comes_before_it_alone(root: Path, name: str) -> None:
    allowed = set(ORDER[: ORDER.index(name) + 1])

    assert files(root, name)
    for path in files(root, name):
        assert ours(path) <= allowed, path


@pytest.mark.parametrize("name", [name for name in ORDER if name not in ("use", *FAMILIES)])
def test_nobody_but_an_export_knows_a_family(root: Path, name: str) -> None:
    for path in files(root, name):
        assert not ours(path) & set(FAMILIES), path


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_knows_no_other(root: Path, name: str) -> None:
    assert not ours(root / "trainer" / f"{name}.py") & (set(FAMILIES) - {name})


def test_the_loop_fits_on_a_few_screens(root: Path) -> None:
    assert len((root / "trainer" / "loop.py").read_text().splitlines()) <= 300
