"""Every folder of samples, converted once a session; the ledger of the reference outputs, closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import goldens, raw_coco, raw_grand, raw_laion, raw_llava, raw_mmc4, raw_visual_genome
from tests.conformance.oracle import Sample

HERE = Path(__file__).parent
LEDGER = "test_golden_ledger.py"
_deselected: list[str] = []
_skipped: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The ledger is closed behind all that fill it."""
    items.sort(key=lambda item: item.path.name == LEDGER)


def pytest_deselected(items: list[pytest.Item]) -> None:
    _deselected.extend(item.nodeid for item in items if item.path in _golden_files())


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "test_golden_" in report.nodeid and isinstance(report.longrepr, tuple):
        _skipped.append(report.longrepr[2].removeprefix("Skipped: "))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was compared, where the ledger was asked."""
    if any(LEDGER in report.nodeid for found in terminalreporter.stats.values() for report in found if hasattr(report, "nodeid")):
        terminalreporter.section("reference outputs")
        terminalreporter.write("".join(f"{line}\n" for line in goldens.summary()))


@pytest.fixture
def why_incomplete(pytestconfig: pytest.Config) -> Callable[[], str]:
    """Why a test that compares reference outputs may not have run; nothing if all have."""

    def why() -> str:
        named = [Path(pytestconfig.invocation_params.dir, word).resolve() for word in pytestconfig.args if "::" not in word]
        if _deselected or not all(any(file.is_relative_to(path) for path in named) for file in _golden_files()):
            return "not all tests over reference outputs were asked for"
        return next((reason for reason in _skipped if "tokenizer" in reason), "")

    return why


def _golden_files() -> list[Path]:
    return sorted(HERE.glob("test_golden_*.py"))


CONVERTERS: dict[str, Callable[[Path, Path], Iterator[Sample]]] = {
    "coco": raw_coco.samples,
    "coco_panoptic": raw_coco.panoptic_samples,
    "visual_genome": raw_visual_genome.samples,
    "mmc4": raw_mmc4.samples,
    "laion": raw_laion.samples,
    "llava": raw_llava.samples,
    "grand": raw_grand.samples,
}


@pytest.fixture(scope="session")
def samples(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Sample]]:
    """samples("coco"): what is in that folder and what became of it, converted when it is first asked for; skips where there is none."""
    done: dict[str, list[Sample]] = {}

    def convert(name: str) -> list[Sample]:
        if not (data / name).is_dir():
            pytest.skip(f"no upstream samples: {data} has no {name}")
        if name not in done:
            done[name] = list(CONVERTERS[name](data / name, tmp_path_factory.mktemp(name)))
        return done[name]

    return convert


@pytest.fixture(scope="session", params=CONVERTERS)
def sample(request: pytest.FixtureRequest, samples: Callable[[str], list[Sample]]) -> list[Sample]:
    """Every folder of samples in turn."""
    return samples(request.param)
