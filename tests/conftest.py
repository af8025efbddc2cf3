"""Small things that every test makes the same way."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

from tests import ceph
from tests import proxy as proxies

# Hundreds of processes that compile torch and pyarrow anew, because none may keep what it compiled, would be most of the time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
hypothesis.settings.register_profile("unhurried", deadline=None)  # how fast something is says a benchmark
hypothesis.settings.load_profile("unhurried")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def photo() -> Callable[..., bytes]:
    """photo(width, height, seed=0, format="JPEG"): the bytes of a picture that no other seed gives."""

    def make(width: int = 32, height: int = 24, seed: int = 0, format: str = "JPEG") -> bytes:
        pixels_HWC = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels_HWC).save(stream, format)
        return stream.getvalue()

    return make


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


def folder(variable: str, default: str) -> Path | None:
    """The folder that an environment variable names, beside the repository by default; None where there is none."""
    path = Path(os.environ.get(variable) or ROOT / default).resolve()
    return path if path.is_dir() else None


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real upstream samples; skips where there is none."""
    path = folder("SHARDWEAVE_DATA", "../shared/data")
    if path is None:
        pytest.skip("no upstream samples: SHARDWEAVE_DATA names no folder")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference outputs; skips where there is none."""
    path = folder("SHARDWEAVE_GOLDEN", "../shared/golden")
    if path is None:
        pytest.skip("no reference outputs: SHARDWEAVE_GOLDEN names no folder")
    return path


@pytest.fixture(scope="session")
def s3() -> Iterator[ceph.S3]:
    """A real S3 service: .endpoint, .environment (for subprocesses, or monkeypatch), .bucket() -> "s3://NAME", new and empty."""
    if reason := ceph.missing():
        pytest.skip(reason)
    with ceph.running() as service:
        yield service


@pytest.fixture
def proxy(s3: ceph.S3) -> Iterator[proxies.Proxy]:
    """A proxy in front of the S3 service that injects faults: see tests/proxy.py."""
    with proxies.before(s3) as running:
        yield running
