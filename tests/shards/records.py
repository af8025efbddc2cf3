"""Records for the tests: one plain, one with everything, and any valid one."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from schemas import Choice, Expression, Record, Relation, Segment, Span, mask, record

PILLOW = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}
HOSTILE = [
    "",
    "</s>",
    "<|im_end|>",
    "<image>",
    "[SEG]",
    "\0",
    "\u202e",
    "\U0001f600",
    "a\r\n\tb",
    '"\\',
    "\ufeff",
    "\x7f\x9b",
    "e\u0301",
    "\U0010ffff",
    "]]>",
]


class Item(NamedTuple):
    """What a writer takes."""

    record: Record
    files: Sequence[bytes]
    maps: Sequence[bytes]


def picture(width: int = 8, height: int = 6, seed: int = 0, format: str = "jpg", mode: str = "RGB") -> bytes:
    """The bytes of a small picture that no other seed gives."""
    pixels_HWC = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC).convert(mode).save(stream, PILLOW[format])
    return stream.getvalue()


def captioned(text: str = "a bus", *, seed: int = 0, width: int = 8, height: int = 6, **fields: Any) -> Item:
    """One picture and its text."""
    data = picture(width, height, seed)
    entry = record.image(width=width, height=height, format="jpg", bytes=len(data))
    turns = [record.turn("text", [record.image_part(0), record.text_part(text)])]
    return Item(record.record("made", images=[entry], turns=turns, **fields), [data], [])


def several(number: int) -> Iterator[Item]:
    """Records that differ."""
    return (captioned(f"picture {n}", seed=n, meta={"id": n}) for n in range(number))


def everything() -> Item:
    """A record in which no field is empty."""
    files = [picture(8, 6, 1, "jpg"), picture(5, 4, 2, "png")]
    images = [
        record.image(width=8, height=6, format="jpg", bytes=len(files[0]), origin="a/b.jpg", similarity=0.25, seconds=1.5),
        record.image(width=5, height=4, format="png", bytes=len(files[1])),
    ]
    said = [record.image_part(0), record.text_part("a dog "), record.region_part("r1"), record.text_part("runs"), record.image_part(1)]
    regions = [
        record.region("r1", 0, box=[0.0, 0.0, 4.0, 3.5], label="dog", crowd=False, attributes='{"fur":"wet"}', score=0.5),
        record.region("r2", 1, mask=mask.from_runs([2, 3, 15], [4, 5]), points=[[1.0, 2.0, 2.0]]),
    ]
    made = record.record(
        "made",
        images=images,
        turns=[record.turn("user", said, spans=[Span(0, 5, ["r1"]), Span(2, 5, ["r1", "r2"])], train=True)],
        choices=[Choice([record.turn("assistant", [record.image_part(1), record.image_part(0), record.text_part("two")])])],
        regions=regions,
        expressions=[Expression("the dog", ["r1"]), Expression("a cat", [])],
        relations=[Relation("r1", "beside", "r2")],
        maps=[
            record.label_map(0, "classes", "L8", ignore=255, classes=["sky", "dog"], member="parts"),
            record.label_map(0, "panoptic", "RGB24", segments=[Segment(3, "dog", 7, False)], member="panoptic"),
        ],
        language="en-GB",
        meta={"id": 7, "nested": [1.5, None, {"a": "b"}]},
    )
    return Item(made, files, [picture(8, 6, 3, "png", "L"), picture(8, 6, 4, "png", "RGB")])


text = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
number = st.floats(allow_nan=False, allow_infinity=False)
# What Python code passes where the record says float: a whole number, too.
loose = st.one_of(number, st.integers(-(2**53), 2**53))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
meta = st.dictionaries(text, json_values, max_size=3)


@st.composite
def items(draw: st.DrawFn) -> Item:
    """Any valid record, with its pictures."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from(list(PILLOW))), max_size=3))
    files = [picture(width, height, seed, format) for seed, (width, height, format) in enumerate(shapes)]
    images = [
        record.image(
            width=width,
            height=height,
            format=format,
            bytes=len(data),
            origin=draw(st.none() | text),
            similarity=draw(st.none() | loose),
            seconds=draw(st.none() | loose),
        )
        for (width, height, format), data in zip(shapes, files, strict=True)
    ]
    regions = [draw(region(f"r{n}{draw(text)}", shapes)) for n in range(draw(st.integers(0, 2 if shapes else 0)))]
    ids = [made.id for made in regions]
    drawn_maps = draw(st.lists(st.integers(0, len(shapes) - 1), max_size=2)) if shapes else []
    maps = [record.label_map(image, *draw(st.sampled_from(_MAPS)), member=f"map_{n}") for n, image in enumerate(drawn_maps)]
    made = record.record(
        draw(text.filter(bool)),
        images=images,
        turns=draw(turns(len(shapes), ids)),
        choices=[Choice(draw(turns(len(shapes), ids))) for _ in range(draw(st.integers(0, 2)))],
        regions=regions,
        expressions=[Expression(draw(text), draw(some(ids))) for _ in range(draw(st.integers(0, 2)))],
        relations=[Relation(draw(st.sampled_from(ids)), draw(text), draw(st.sampled_from(ids)))] if ids else [],
        maps=maps,
        language=draw(st.sampled_from([None, "en", "zh-Hant-TW"])),
        meta=draw(meta),
    )
    pngs = [picture(*shapes[map.image][:2], 9, "png", "L" if map.encoding == "L8" else "RGB") for map in maps]
    return Item(made, files, pngs)


_MAPS = [("classes", "L8"), ("panoptic", "RGB24")]


def some(ids: list[str]) -> st.SearchStrategy[list[str]]:
    """A few of the ids."""
    return st.lists(st.sampled_from(ids), max_size=2) if ids else st.just([])


@st.composite
def turns(draw: st.DrawFn, images: int, ids: list[str]) -> list[Any]:
    """Turns that place every image, and say something."""
    parts = [record.image_part(n) for n in range(images)] + [record.text_part(draw(text)) for _ in range(draw(st.integers(1, 3)))]
    parts += [record.region_part(id) for id in draw(some(ids))]
    parts = draw(st.permutations(parts))
    cut = draw(st.integers(0, len(parts)))
    made = [record.turn(draw(roles), part, train=draw(st.none() | st.booleans())) for part in (parts[:cut], parts[cut:])]
    for one in made:
        one.spans = draw(nested(len(one.text()), ids))
    return [*made, record.turn("assistant", [record.text_part("x")])]


roles = st.sampled_from(["text", "system", "user", "assistant", "tool"])


@st.composite
def nested(draw: st.DrawFn, length: int, ids: list[str]) -> list[Span]:
    """Up to two spans, the second inside the first."""
    if not length:
        return []
    start = draw(st.integers(0, length - 1))
    end = draw(st.integers(start + 1, length))
    outer = Span(start, end, draw(some(ids)))
    return draw(st.sampled_from([[], [outer], [outer, Span(start, draw(st.integers(start + 1, end)), [])]]))


@st.composite
def region(draw: st.DrawFn, id: str, shapes: list[tuple[int, int, str]]) -> Any:
    """A region inside one of the images."""
    image = draw(st.integers(0, len(shapes) - 1))
    width, height, _ = shapes[image]
    x, y = draw(st.integers(0, width - 1)), draw(st.floats(0, height - 0.5))
    bitmap = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 2, (height, width))
    return record.region(
        id,
        image,
        box=draw(st.sampled_from([None, [x, y, x + 1, height]])),
        mask=draw(st.sampled_from([None, mask.from_bitmap(bitmap)])),
        points=draw(st.none() | st.lists(st.tuples(loose, loose, loose).map(list), max_size=2)),
        label=draw(st.none() | text),
        crowd=draw(st.none() | st.booleans()),
        attributes=draw(st.none() | json_values.map(record.json_text)),
        score=draw(st.none() | loose),
    )
