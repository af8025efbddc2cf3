"""The structure that the README draws: imports point one way, a source is one file, nobody else owns the four names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from pipelines.discover import sources

MAY_IMPORT = {
    "schemas": set(),
    "shards": {"schemas"},
    "pipelines": {"schemas", "shards"},
    "trainer": {"schemas", "shards"},
}


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str, root: Path) -> None:
    for path in (root / folder).rglob("*.py"):
        ours = {name.split(".")[0] for name in imported(path)} & set(MAY_IMPORT)
        assert ours <= MAY_IMPORT[folder] | {folder}, path


def test_a_source_imports_no_sibling_source(root: Path) -> None:
    names = set(sources())
    assert names >= {"coco", "grand", "laion", "llava", "mmc4", "visual_genome"}
    for name in names:
        modules = {".".join(item.split(".")[:2]) for item in imported(root / "pipelines" / f"{name}.py")}
        assert not modules & {f"pipelines.{other}" for other in names - {name}}, name


def test_nothing_imports_a_source_by_name(root: Path) -> None:
    names = {f"pipelines.{name}" for name in sources()}
    for folder in MAY_IMPORT:
        for path in (root / folder).rglob("*.py"):
            assert not {".".join(item.split(".")[:2]) for item in imported(path)} & names, path


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_no_other_distribution_takes_our_name(folder: str) -> None:
    assert not set(packages_distributions().get(folder, [])) - {"shardweave"}


def test_the_base_install_needs_no_torch(root: Path) -> None:
    for folder in ("schemas", "shards", "pipelines"):
        for path in (root / folder).rglob("*.py"):
            assert not {name.split(".")[0] for name in imported(path)} & {"torch", "transformers", "open_clip", "peft"}, path


def test_every_dependency_says_why_in_its_line(root: Path) -> None:
    text = (root / "pyproject.toml").read_text()
    lines = [line for line in text.splitlines() if line.startswith('  "') and "==" not in line and (">=" in line or "<" in line)]
    assert len(lines) > 10
    assert all("#" in line for line in lines), [line for line in lines if "#" not in line]


def test_no_file_names_a_package_host(root: Path) -> None:
    assert not (root / "uv.lock").exists()
    assert all("://" not in line for line in (root / "requirements.txt").read_text().splitlines())
