"""MMC4's other two assignments, and shards that hold what the sample lacks: zips, more pictures than sentences, pictures without one."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance import raw_mmc4
from tests.conformance.oracle import Sample, compare, compare_counts


@pytest.mark.parametrize("assignment", ["lsa", "argmax"])
def test_pictures_stand_where_the_assignment_says(assignment: str, data: Path, tmp_path: Path) -> None:
    if not (data / "mmc4").is_dir():
        pytest.skip(f"no upstream samples: {data} has no mmc4")

    for one in raw_mmc4.samples(data / "mmc4", tmp_path, assignment):
        compare(one.conversion, one.items)
        assert one.conversion.verdict["problems"] == []


@pytest.mark.parametrize("assignment", list(raw_mmc4.LAYOUTS))
def test_shards_in_zips_with_any_number_of_pictures(assignment: str, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    for shard in (3, 12):
        documents = [document(random, shard, number) for number in range(20)]
        with zipfile.ZipFile(tmp_path / f"docs_no_face_shard_{shard}_v2.jsonl.zip", "w") as archive:
            archive.writestr(f"docs_no_face_shard_{shard}_v2.jsonl", "\n".join(map(json.dumps, documents)) + "\n")

    (one,) = raw_mmc4.samples(tmp_path, tmp_path / "work", assignment)

    compare(one.conversion, one.items)
    compare_counts(one.conversion, one.items, *one.pictures)
    assert one.conversion.verdict["problems"] == []


def document(random: np.random.Generator, shard: int, number: int) -> dict[str, Any]:
    """A document of up to 5 sentences and up to 7 pictures, some of them without a sentence."""
    sentences, pictures = int(random.integers(1, 6)), int(random.integers(0, 8))
    matrix = random.random((pictures, sentences))
    matched = [int(at) for at in random.integers(0, sentences + 1, pictures)]
    return {
        "text_list": [f"Sentence {at} of document {number} \u2019s shard {shard}." for at in range(sentences)],
        "image_info": [
            {"image_name": f"{shard:04x}{number:04x}{at:04x}.jpg", "raw_url": "http://x/y", "matched_text_index": index, "matched_sim": 0.1}
            for at, index in enumerate(matched)
        ],
        "similarity_matrix": matrix.tolist(),
        "url": f"http://example.org/{number}",
        "could_have_url_duplicate": 0,
    }


def test_pictures_are_in_reading_order_and_carry_their_similarity(samples: Callable[[str], list[Sample]]) -> None:
    for one in samples("mmc4"):
        for stored in one.conversion.records.values():
            images = stored.record["images"]
            unplaced = json.loads(stored.record["meta"]).get("unplaced") or []

            assert [image["similarity"] is None for image in images] == [number in unplaced for number in range(len(images))]
