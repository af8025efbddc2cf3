"""Every folder of samples, converted once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance import raw_coco, raw_grand, raw_laion, raw_llava, raw_mmc4, raw_visual_genome
from tests.conformance.oracle import Sample

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
