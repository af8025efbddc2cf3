"""What the tests of bad weather share."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storm.watch import Child


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """A process that commands are run in: it may die or hang, and says how much memory each took."""
    with Child() as running:
        yield running


@pytest.fixture
def ground() -> Iterator[Path]:
    """A folder in memory where there is one: gigabytes of zeros are not for a disk."""
    place = Path(tempfile.mkdtemp(prefix="storm-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield place
    shutil.rmtree(place)


@pytest.fixture
def mounted(ground: Path) -> Iterator[Path]:
    """A disk of 300 kB."""
    disk = ground / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)
