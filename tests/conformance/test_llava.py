"""LLaVA rows that the sample lacks: several pictures, markers anywhere, no picture, pictures that are not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conformance import raw_llava
from tests.conformance.oracle import compare, compare_counts, paint


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(texts)]


ROWS: list[dict[str, Any]] = [
    {"id": "front", "image": "a.jpg", "conversations": said("<image>\nWhat?", "This.")},
    {"id": "behind", "image": "a.jpg", "conversations": said("What?\n<image>", "This.", "And?", "That <image> too.")},
    {"id": "no marker", "image": "sub/b.jpg", "conversations": said("What?", "This.")},
    {"id": "text", "conversations": said("Is <image> a word?", "Yes.")},
    {"id": "null", "image": None, "conversations": said("Hello", "")},
    {"id": "two", "image": ["a.jpg", "sub/b.jpg"], "conversations": said("<image><image>Which?", "The first.")},
    {"id": "one of two", "image": ["gone.jpg", "a.jpg"], "conversations": said("<image> or <image>?", "The second.")},
    {"id": "three for two", "image": ["a.jpg", "sub/b.jpg"], "conversations": said("<image><image><image>?", "No.")},
    {"id": "gone", "image": "gone.jpg", "conversations": said("<image>?", "No.")},
    {"id": "suffix", "image": "sub/c.png", "conversations": said("<image></s>[SEG]<|im_end|>", "[0.1, 0.2, 0.3, 0.4]")},
    {"id": "role", "image": "a.jpg", "conversations": [{"from": "narrator", "value": "<image>"}]},
    {"id": "silent", "image": "a.jpg", "conversations": []},
]


def test_rows_of_every_kind(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.jpg", "sub/c.jpg", "unused.jpg"):
        paint(tmp_path / "images" / name, 60, 40)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))

    (one,) = raw_llava.samples(tmp_path, tmp_path / "work")

    compare(one.conversion, one.items)
    compare_counts(one.conversion, one.items, *one.pictures)
    assert one.conversion.manifest["rejected"].keys() >= {"markers_differ", "image_missing"}
    assert one.conversion.manifest["images_dropped"] == {"image_missing": 1}
    assert one.conversion.verdict["problems"] == []
