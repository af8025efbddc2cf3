"""The comparison itself: a record that differs from the raw files in one place is noticed, whatever the place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conformance.commands import Stored
from tests.conformance.conftest import CONVERTERS
from tests.conformance.oracle import Expected, Sample, compare_record

Record = dict[str, Any]


def caption(record: Record, files: dict[str, bytes]) -> None:
    part = next(part for part in record["turns"][0]["parts"] if part["text"])
    part["text"] += " "


def order_of_parts(record: Record, files: dict[str, bytes]) -> None:
    first, second, *_ = record["turns"][0]["parts"]
    record["turns"][0]["parts"][:2] = [second, first]


def choice(record: Record, files: dict[str, bytes]) -> None:
    record["choices"].pop()


def picture(record: Record, files: dict[str, bytes]) -> None:
    files[record["images"][0]["member"]] += b"\0"


def width(record: Record, files: dict[str, bytes]) -> None:
    record["images"][0]["width"] += 1


def similarity(record: Record, files: dict[str, bytes]) -> None:
    record["images"][0]["similarity"] += 0.001


def box(record: Record, files: dict[str, bytes]) -> None:
    record["regions"][0]["box"][2] -= 0.001


def label(record: Record, files: dict[str, bytes]) -> None:
    record["regions"][0]["label"] += "s"


def mask(record: Record, files: dict[str, bytes]) -> None:
    first, second = (region for region in record["regions"][:2] if region["mask"]["counts"])
    first["mask"], second["mask"] = second["mask"], first["mask"]


def points(record: Record, files: dict[str, bytes]) -> None:
    region = next(region for region in record["regions"] if region["points"])
    region["points"][0][2] += 1


def attributes(record: Record, files: dict[str, bytes]) -> None:
    region = next(region for region in record["regions"] if region["attributes"])
    region["attributes"] = None


def expression(record: Record, files: dict[str, bytes]) -> None:
    first, second, *_ = record["expressions"]
    first["text"], second["text"] = second["text"], first["text"]


def relation(record: Record, files: dict[str, bytes]) -> None:
    one = record["relations"][0]
    one["subject"], one["object"] = one["object"], one["subject"]


def segment(record: Record, files: dict[str, bytes]) -> None:
    record["maps"][0]["segments"][0]["area"] += 1


def map(record: Record, files: dict[str, bytes]) -> None:
    files[record["maps"][0]["member"]] += b"\0"


ALTERATIONS = [caption, order_of_parts, choice, picture, width, similarity, box, label, mask, points, attributes, expression, relation]
ALTERATIONS += [segment, map]


@pytest.mark.parametrize("alter", ALTERATIONS, ids=lambda alter: alter.__name__)
def test_a_record_that_is_altered_is_noticed(
    alter: Callable[[Record, dict[str, bytes]], None], samples: Callable[[str], list[Sample]]
) -> None:
    for stored, expected, source in pairs(samples):
        record, files = copy.deepcopy(stored.record), dict(stored.files)
        try:
            alter(record, files)
        except (StopIteration, IndexError, KeyError, TypeError, ValueError):
            continue  # this record has nothing of the kind
        compare_record(stored, expected, source)
        with pytest.raises(AssertionError):
            compare_record(Stored(stored.key, record, files), expected, source)
        return
    pytest.skip(f"no upstream sample holds what {alter.__name__} alters")


def pairs(samples: Callable[[str], list[Sample]]) -> Iterator[tuple[Stored, Expected, str]]:
    """Every written record of every sample beside what it must be."""
    for name in CONVERTERS:
        for one in samples(name):
            keys = sorted([*one.conversion.records, *one.conversion.rejects])
            for key, item in zip(keys, one.items, strict=True):
                if item.expected is not None:
                    yield one.conversion.records[key], item.expected, one.conversion.source
