"""Every record of every source against what independent code reads in the raw files."""

from __future__ import annotations

from tests.conformance.oracle import Sample, compare, compare_counts


def test_every_folder_is_converted(sample: list[Sample]) -> None:
    assert sample
    for one in sample:
        assert one.conversion.records, f"{one.conversion.source} wrote no record from {one.conversion.inputs}"


def test_every_record_and_every_reject_is_what_the_raw_files_say(sample: list[Sample]) -> None:
    for one in sample:
        compare(one.conversion, one.items)


def test_check_counts_what_the_raw_files_name(sample: list[Sample]) -> None:
    for one in sample:
        compare_counts(one.conversion, one.items, *one.pictures)


def test_a_deep_check_finds_nothing_wrong(sample: list[Sample]) -> None:
    for one in sample:
        images = sum(len(stored.record["images"]) for stored in one.conversion.records.values())

        assert one.conversion.verdict_status == 0
        assert one.conversion.verdict == {"ok": True, "records": len(one.conversion.records), "images": images, "problems": []}


def test_the_exit_status_says_whether_too_much_was_rejected(sample: list[Sample]) -> None:
    for one in sample:
        rejected = sum(item.expected is None for item in one.items)

        assert one.conversion.status == (1 if rejected > 0.05 * len(one.items) else 0)
