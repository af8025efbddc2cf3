from __future__ import annotations

from pathlib import Path

import pytest

import shards
from tests.shards.records import captioned, everything


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished data set of 7 records (one with every field, two rejected) in several shards. Not to be changed: copy it."""
    place = tmp_path_factory.mktemp("written") / "place"
    made = [everything(), *(captioned(f"picture {n}", seed=n, meta={"id": f"id{n}"}) for n in range(6))]
    bad = [captioned(language="not a language"), captioned("\ud800")]
    shards.write(place, [*made[:3], *bad, *made[3:]], source="made", shard_bytes=14_336)
    return place
