"""GranD's spans, and scenes of the stages that the sample lacks: short and dense captions, masks, ids that dangle or come twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.conformance import raw_grand
from tests.conformance.oracle import Sample, coco, compare, compare_counts
from tests.conformance.raw_grand import captions, crosses, details, occurs, scenes, stands

Span = tuple[int, int, list[str]]


def test_spans_are_the_phrases_of_the_raw_captions(samples: Callable[[str], list[Sample]]) -> None:
    for one in samples("grand"):
        compare_spans(one)


def compare_spans(sample: Sample) -> None:
    """Every span of every caption is a phrase of its scene, and no phrase that stands in its caption is lost."""
    known = {name: scene for path in sample.conversion.annotations for name, scene in scenes(path).items()}
    dropped = 0
    for stored in sample.conversion.records.values():
        regions = {region["id"] for region in stored.record["regions"]}
        scene = known[json.loads(stored.record["meta"])["id"]]
        turns = [turns["turns"][0] for turns in (stored.record, *stored.record["choices"])]
        for turn, caption in zip(turns, captions(scene), strict=False):
            spans = [(span["start"], span["end"], span["regions"]) for span in turn["spans"]]
            dropped += compare_caption(caption, spans, regions)
    assert sum(sample.conversion.manifest.get("spans_dropped", {}).values()) == dropped


def compare_caption(caption: dict[str, Any], spans: list[Span], regions: set[str]) -> int:
    """How many of the caption's phrases no span has; asserts that none of them could have had one."""
    text, dropped = caption["caption"], 0
    grounded = [(phrase, at, [id for id in ids if id in regions]) for phrase, at, ids in details(caption)]
    for start, end, named in spans:
        fits = [ids for phrase, _, ids in grounded if phrase.strip().lower() == text[start:end].strip().lower() and ids]
        assert fits, f"{text[start:end]!r} is no phrase of {text!r}"
        assert set(named) <= {id for ids in fits for id in ids}
    for phrase, at, ids in grounded:
        if not ids or not any(matches(text, span, phrase, at, ids) for span in spans):
            dropped += 1
            possible = ids and (stands(text, phrase, at) or occurs(text, phrase))
            assert not possible or any(crosses(at or (0, len(text)), span[:2]) for span in spans), f"{phrase!r} of {text!r} was lost"
    return dropped


def matches(text: str, span: Span, phrase: str, at: tuple[int, int] | None, ids: list[str]) -> bool:
    """Whether the span is this phrase: where its offsets say if it stands there, or else where it does stand."""
    start, end, named = span
    place = (start, end) == at if stands(text, phrase, at) else text[start:end].lower() == phrase.strip().lower()
    return place and set(ids) <= set(named)


def test_scenes_of_the_later_stages(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"sa_{number}.json").write_text(json.dumps({f"sa_{number}.jpg": scene(number)}))

    (one,) = raw_grand.samples(tmp_path, tmp_path / "work")

    compare(one.conversion, one.items)
    compare_counts(one.conversion, one.items, *one.pictures)
    compare_spans(one)
    assert one.conversion.verdict["problems"] == []
    assert one.conversion.manifest["regions_dropped"]["duplicate_id"] == 6
    for stored in one.conversion.records.values():
        first = stored.record["turns"][0]["spans"][0]
        assert first == {"start": 0, "end": 9, "regions": ["0"]}


def scene(number: int) -> dict[str, Any]:
    """A scene as the last stages write it, with upstream's own defects."""
    width, height = 220 + number, 150
    random = np.random.default_rng(number)
    labels = ["red car", "street_sign", "man"]
    objects = [thing(id, labels[id % 3], random, width, height) for id in range(7)]
    objects += [thing(3, "twice", random, width, height)]
    return {
        "objects": objects,
        "floating_objects": [{**thing(20, "float", random, width, height), "attributes": "of one string"}],
        "floating_attributes": [{"bbox": [1.5, 2.5, 30.0, 40.0], "labels": [], "score": 0.4, "attributes": ["istant: red awning"]}],
        "landmark": {"category": "Outdoor scene", "fine_category": "Urban landscape"},
        "affordances": {"Sit": {"description": "on it", "object_ids": [2, 302], "labels": ["bench"]}},
        "id_counter": 30,
        "relationships": {
            "object_ids": [0, 1],
            "floating_object_ids": [],
            "grounding": [{"phrase": "a red car", "object_ids": [0, 999]}, {"phrase": "nothing", "object_ids": [999]}],
        },
        "short_captions": [
            {"caption": "A man beside a sign", "details": [detail("man", [2, 5], id=2), detail("gone", [0, 4], id=1)]},
            {"caption": "a sign, a sign", "details": [detail("a sign", [8, 14], id=1), detail("a sign", None, id=4)]},
        ],
        "dense_caption": {
            "caption": "A red car on the street, a man by the red car.",
            "details": [
                detail("a red car", [0, 9], ids=[0, 500]),
                detail("the street", None, ids=[1]),
                detail("a man", [26 + number, 31 + number], ids=[2, 5]),
                detail("car on the", [6, 16], ids=[6]),
                detail("nobody", [3, 9], ids=[2]),
                detail("the red car", [34, 45], ids=[777]),
            ],
        },
        "additional_context": "It is \u201csunny\u201d.",
    }


def thing(id: int, label: str, random: np.random.Generator, width: int, height: int) -> dict[str, Any]:
    left, top = (float(value) for value in random.uniform(0, 100, 2).round(2))
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[int(top) : int(top) + 20, int(left) : int(left) + 30] = 1
    counts = coco.encode(mask)["counts"].decode()
    return {
        "bbox": [left, top, left + 30.25, top + 20.5],
        "labels": [label, "thing"],
        "label": label,
        "score": round(float(random.random()), 2),
        "attributes": [None, ["Assistant: shiny", "old"], "plain"][id % 3],
        "id": id,
        "depth": 12.5,
        "segmentation": {"size": [height, width], "counts": counts} if id % 4 else None,
        "segmentation_source": "SAM",
    }


def detail(phrase: str, tokens: list[int] | None, **ids: Any) -> dict[str, Any]:
    return {"phrase": phrase, "tokens_positive": tokens, "bbox": [0, 0, 1, 1], **ids}
