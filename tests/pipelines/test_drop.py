"""A record less some of its pictures still keeps every rule, and nothing of it points at what is gone."""

from __future__ import annotations

import copy
import json

from hypothesis import given
from hypothesis import strategies as st

from pipelines.drop import without
from pipelines.source import Sample
from schemas import Expression, Span
from shards.writer import ready
from tests.shards.records import Item, everything, items, picture


def sample(item: Item) -> Sample:
    return Sample(item.record, list(item.files), list(item.maps))


def test_what_hangs_on_the_second_picture_goes_with_it() -> None:
    found = without(sample(everything()), {1})

    assert (len(found.record.images), found.files) == (1, [picture(8, 6, 1, "jpg")])
    turn = found.record.turns[0]
    assert [(part.text, part.image, part.region) for part in turn.parts] == [
        (None, 0, None),
        ("a dog ", None, None),
        (None, None, "r1"),
        ("runs", None, None),
    ]
    assert turn.spans == [Span(0, 5, ["r1"]), Span(2, 5, ["r1"])]
    assert [(part.text, part.image) for part in found.record.choices[0].turns[0].parts] == [(None, 0), ("two", None)]
    assert [region.id for region in found.record.regions] == ["r1"]
    assert found.record.expressions == [Expression("the dog", ["r1"]), Expression("a cat", [])]
    assert found.record.relations == []
    assert (len(found.record.maps), len(found.maps)) == (2, 2)
    assert found.counts == {("regions_dropped", "image_dropped"): 1, ("relations_dropped", "image_dropped"): 1}


def test_what_hangs_on_the_first_picture_goes_with_it_and_the_second_becomes_the_first() -> None:
    found = without(sample(everything()), {0})

    assert (found.record.images[0].format, found.files) == ("png", [picture(5, 4, 2, "png")])
    turn = found.record.turns[0]
    assert [(part.text, part.image, part.region) for part in turn.parts] == [
        ("a dog ", None, None),
        ("runs", None, None),
        (None, 0, None),
    ]
    assert turn.spans == [Span(2, 5, ["r2"])]
    assert [(region.id, region.image) for region in found.record.regions] == [("r2", 0)]
    assert found.record.expressions == [Expression("a cat", [])]
    assert (found.record.relations, found.record.maps, found.maps) == ([], [], [])
    assert found.counts == {
        ("spans_dropped", "image_dropped"): 1,
        ("regions_dropped", "image_dropped"): 1,
        ("expressions_dropped", "image_dropped"): 1,
        ("relations_dropped", "image_dropped"): 1,
        ("maps_dropped", "image_dropped"): 2,
    }


def test_meta_that_speaks_of_pictures_is_mended_and_no_other() -> None:
    item = everything()
    item.record.meta = json.dumps({"unplaced": [0, 1], "raw_urls": ["a", "b"], "similarity_matrix": [[0.5]], "id": [0, 1]})

    found = without(sample(item), {0})

    assert json.loads(found.record.meta) == {"unplaced": [0], "raw_urls": ["b"], "similarity_matrix": [[0.5]], "id": [0, 1]}


@given(items().filter(lambda item: len(item.files) > 1), st.data())
def test_what_is_left_of_any_record_keeps_every_rule_of_format_1(item: Item, data: st.DataObject) -> None:
    everyone = range(len(item.files))
    gone = data.draw(st.sets(st.sampled_from(everyone), min_size=1, max_size=len(everyone) - 1))
    text = "".join(turn.text() for turn in item.record.turns)

    found = without(sample(copy.deepcopy(item)), gone)

    assert found.files == [item.files[position] for position in everyone if position not in gone]
    assert "".join(turn.text() for turn in found.record.turns) == text
    ready(found.record, "000000-00000000", found.files, found.maps)
