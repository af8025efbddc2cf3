"""Pictures made smaller at ingest, with everything that lies on them: values written out by hand, properties, and the real command."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageCms

import shards
from pipelines.__main__ import main
from pipelines.resize import nearest, picture, shrink, smaller
from pipelines.source import Sample
from schemas import Map, RecordError, Region, Reject, Segment, mask, record
from schemas.picture import measure
from shards.check import check
from shards.writer import ready
from tests.shards.records import PILLOW, Item, items
from tests.shards.records import picture as noise

ORIENTATION = 0x0112


def saved(pixels: Pillow.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    pixels.save(stream, PILLOW[format], **options)
    return stream.getvalue()


def opened(data: bytes) -> Pillow.Image:
    found = Pillow.open(io.BytesIO(data))
    found.load()
    return found


def png(values: Any, mode: str) -> bytes:
    """A PNG of these values, one an item, or three for RGB."""
    array = np.array(values, "<u2" if mode == "I;16" else np.uint8)
    return saved(Pillow.frombytes(mode, (array.shape[1], array.shape[0]), array.tobytes()), "png")


def sample(data: bytes, *, regions: list[Region] | None = None, maps: list[tuple[Map, bytes]] | None = None) -> Sample:
    """A record of one picture and what lies on it."""
    found = measure(data)
    image = record.image(width=found.width, height=found.height, format=found.format, bytes=len(data))
    turns = [record.turn("text", [record.image_part(0), record.text_part("a bus")])]
    made = record.record("made", images=[image], turns=turns, regions=regions or [], maps=[map for map, _ in maps or []])
    return Sample(made, [data], [data for _, data in maps or []])


def shrunk(data: bytes, max_side: int, format: str = "") -> Pillow.Image:
    """The picture after it; format: that it is stored in then."""
    found = sample(data)
    shrink(found, 0, max_side)
    image = found.record.images[0]
    assert image.format == format
    assert measure(found.files[0]) == (image.format, image.width, image.height)
    assert image.bytes == len(found.files[0])
    return opened(found.files[0])


@pytest.mark.parametrize(
    ("old", "max_side", "new"),
    [
        ((640, 480), 320, (320, 240)),
        ((480, 640), 320, (240, 320)),
        ((640, 427), 336, (336, 224)),  # 224.175
        ((4, 3), 2, (2, 2)),  # a half goes up
        ((5, 3), 2, (2, 1)),  # 1.2
        ((1000, 1), 10, (10, 1)),  # at least 1
        ((320, 320), 320, (320, 320)),
        ((7, 3), 100, (7, 3)),
    ],
)
def test_the_longer_side_becomes_what_was_asked_for(old: tuple[int, int], max_side: int, new: tuple[int, int]) -> None:
    assert smaller(*old, max_side) == new


@pytest.mark.parametrize(("old", "new", "taken"), [(8, 4, [1, 3, 5, 7]), (5, 2, [1, 3]), (3, 3, [0, 1, 2]), (7, 3, [1, 3, 5]), (9, 1, [4])])
def test_a_new_pixel_is_the_old_one_in_which_its_middle_lies(old: int, new: int, taken: list[int]) -> None:
    assert nearest(old, new).tolist() == taken


def test_a_picture_that_is_not_larger_keeps_its_bytes() -> None:
    data = noise(8, 6)
    found = sample(data, regions=[record.region("a", 0, box=[0.0, 0.0, 8.0, 6.0])])

    shrink(found, 0, 8)

    assert (found.files, found.counts) == ([data], {})
    assert found.record.regions[0].box == [0.0, 0.0, 8.0, 6.0]


# A picture of 8 x 4 goes to 4 x 2: of its columns 1, 3, 5 and 7 are left, of its rows 1 and 3.
BITMAP = [
    [1, 1, 1, 1, 1, 1, 1, 1],
    [0, 0, 1, 1, 0, 0, 0, 1],
    [1, 0, 0, 0, 0, 0, 0, 0],
    [0, 1, 1, 1, 1, 1, 1, 0],
]
SMALL = [
    [0, 1, 0, 1],
    [1, 1, 1, 0],
]


def test_boxes_points_and_masks_move_along() -> None:
    regions = [
        record.region("box", 0, box=[2.0, 1.0, 8.0, 4.0], points=[[7.0, 3.0, 2.0], [0.0, 0.0, 0.0], [-1.0, 5.0, 1.0]]),
        record.region("mask", 0, mask=mask.from_bitmap(np.array(BITMAP)), label="bus", crowd=True, score=0.5, attributes="[1]"),
        record.region("bare", 0),
    ]
    found = sample(noise(8, 4), regions=regions)

    shrink(found, 0, 4)

    moved, masked, bare = found.record.regions
    assert moved.box == [1.0, 0.5, 4.0, 2.0]
    assert moved.points == [[3.5, 1.5, 2.0], [0.0, 0.0, 0.0], [-0.5, 2.5, 1.0]]
    assert masked.mask is not None
    assert masked.mask.size == [2, 4]
    assert mask.bitmap(masked.mask).tolist() == SMALL
    assert (masked.label, masked.crowd, masked.score, masked.attributes) == ("bus", True, 0.5, "[1]")
    assert (bare.box, bare.mask, bare.points) == (None, None, None)
    assert found.counts == {("mended", "resized"): 1}


def test_sides_are_scaled_as_the_pixels_were() -> None:
    """5 x 3 goes to 2 x 1: two fifths and a third."""
    found = sample(noise(5, 3), regions=[record.region("a", 0, box=[1.0, 1.0, 5.0, 3.0])])

    shrink(found, 0, 2)

    assert found.record.regions[0].box == [0.4, 1 / 3, 2.0, 1.0]


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_map_of_8_bits_keeps_its_values_and_its_palette(mode: str) -> None:
    pixels = Pillow.frombytes("L", (8, 4), np.array(BITMAP, np.uint8).tobytes())
    if mode == "P":
        pixels.putpalette([0, 0, 0, 200, 10, 10, 0, 99, 0, *range(51)])
    data = saved(pixels, "png")
    found = sample(noise(8, 4), maps=[(record.label_map(0, "classes", "L8", member="parts"), data)])

    shrink(found, 0, 4)

    small = opened(found.maps[0])
    assert (small.mode, np.asarray(small).tolist()) == (mode, SMALL)
    if mode == "P":
        assert (small.getpalette() or [])[:60] == [0, 0, 0, 200, 10, 10, 0, 99, 0, *range(51)]
    ready(found.record, "000000-00000000", found.files, found.maps)  # what the writer asks of it


def test_a_map_of_16_bits_keeps_its_values() -> None:
    data = png(np.array(BITMAP) * 60_000 + 7, "I;16")
    found = sample(noise(8, 4), maps=[(record.label_map(0, "classes", "L16", member="parts"), data)])

    shrink(found, 0, 4)

    assert np.asarray(opened(found.maps[0])).tolist() == [[7, 60_007, 7, 60_007], [60_007, 60_007, 60_007, 7]]
    ready(found.record, "000000-00000000", found.files, found.maps)


def test_the_areas_of_a_panoptic_maps_segments_are_counted_again() -> None:
    """Ids are R + 256 G + 65536 B: 70000 = 112 + 256 * 17 + 65536."""
    pixels = np.where(np.array(BITMAP)[..., None], [112, 17, 1], [3, 0, 0])
    pixels[2, 0] = [9, 0, 0]  # in a row that is not left
    segments = [Segment(70_000, "bus", 17, False), Segment(3, "sky", 14, None), Segment(9, "bird", 1, False), Segment(4, "sea", None, None)]
    made = record.label_map(0, "panoptic", "RGB24", ignore=0, segments=segments, member="panoptic")
    found = sample(noise(8, 4), maps=[(made, png(pixels, "RGB"))])

    shrink(found, 0, 4)

    assert np.asarray(opened(found.maps[0])).tolist() == [[[112, 17, 1] if one else [3, 0, 0] for one in row] for row in SMALL]
    assert [(segment.id, segment.area) for segment in found.record.maps[0].segments or []] == [(70_000, 5), (3, 3), (9, 0), (4, None)]


def test_what_lies_on_another_picture_stays() -> None:
    found = sample(noise(8, 4), regions=[record.region("a", 1, box=[1.0, 1.0, 8.0, 4.0])])
    found.record.images.append(record.image(width=8, height=4, format="jpg", bytes=1))

    shrink(found, 0, 4)

    assert found.record.regions[0].box == [1.0, 1.0, 8.0, 4.0]
    assert (found.record.images[1].width, found.record.images[1].bytes) == (8, 1)


def test_a_mask_of_which_no_pixel_is_left_goes_and_is_counted() -> None:
    thin = np.zeros((4, 8), int)
    thin[0, 0] = 1
    regions = [record.region("a", 0, box=[0.0, 0.0, 1.0, 1.0], mask=mask.from_bitmap(thin))]
    regions.append(record.region("empty", 0, mask=mask.from_bitmap(thin * 0)))  # it was empty before
    found = sample(noise(8, 4), regions=regions)

    shrink(found, 0, 4)

    assert (found.record.regions[0].mask, found.record.regions[0].box) == (None, [0.0, 0.0, 0.5, 0.5])
    assert found.record.regions[1].mask is not None
    assert found.counts == {("mended", "resized"): 1, ("masks_dropped", "resized_away"): 1}


@pytest.mark.parametrize(
    ("format", "mode", "format_then", "mode_then"),
    [
        ("jpg", "RGB", "jpg", "RGB"),
        ("jpg", "L", "jpg", "L"),
        ("jpg", "CMYK", "jpg", "CMYK"),
        ("png", "RGB", "png", "RGB"),
        ("png", "RGBA", "png", "RGBA"),
        ("png", "L", "png", "L"),
        ("png", "LA", "png", "LA"),
        ("png", "P", "png", "RGB"),
        ("png", "1", "png", "L"),
        ("webp", "RGB", "webp", "RGB"),
        ("webp", "RGBA", "webp", "RGBA"),
        ("gif", "RGB", "png", "RGB"),
        ("bmp", "RGB", "png", "RGB"),
        ("tif", "RGB", "png", "RGB"),
        ("tif", "CMYK", "png", "RGB"),
        ("tif", "L", "png", "L"),
    ],
)
def test_format_and_kind_of_pixels_stay_where_they_can(format: str, mode: str, format_then: str, mode_then: str) -> None:
    pixels = Pillow.new("RGB", (12, 8), "white" if mode == "1" else (204, 102, 51)).convert(mode)
    if mode.endswith("A"):
        pixels.putalpha(200)

    small = shrunk(saved(pixels, format), 6, format_then)

    assert (small.size, small.mode) == ((6, 4), mode_then)
    assert np.abs(np.asarray(small.convert("RGB"), int) - np.asarray(pixels.convert("RGB"), int)[:4, :6]).max() <= 6


def test_greys_of_16_bits_stay() -> None:
    small = shrunk(png(np.full((4, 8), 40_000), "I;16"), 4, "png")

    assert (small.mode, np.asarray(small).tolist()) == ("I;16", [[40_000] * 4] * 2)


def test_greys_of_16_bits_in_a_tif_become_a_png() -> None:
    for order in "<>":
        stream = io.BytesIO()
        Pillow.frombytes("I;16", (8, 4), np.full((4, 8), 40_000, "<u2").tobytes()).save(stream, "TIFF", big_endian=order == ">")
        small = shrunk(stream.getvalue(), 4, "png")
        assert (small.mode, np.asarray(small).tolist()) == ("I;16", [[40_000] * 4] * 2)


def test_colours_of_transparent_pixels_do_not_bleed() -> None:
    pixels = Pillow.new("RGBA", (12, 8), (255, 0, 0, 255))
    pixels.paste((0, 255, 0, 0), (5, 0, 12, 8))

    small = np.asarray(shrunk(saved(pixels, "png"), 6, "png"))

    assert small[..., 1][small[..., 3] > 8].max() == 0
    assert small[:, 0, :3].tolist() == [[255, 0, 0]] * 4


@pytest.mark.parametrize(("format", "mode"), [("png", "P"), ("png", "L"), ("png", "RGB"), ("gif", "P")])
def test_a_transparent_colour_becomes_alpha(format: str, mode: str) -> None:
    pixels = Pillow.new("L", (8, 4), 0)
    pixels.paste(1, (0, 0, 4, 4))
    if mode == "P":
        pixels.putpalette([10, 20, 30, 200, 100, 50])
    data = saved(pixels if mode in ("P", "L") else pixels.convert("RGB"), format, transparency=(0, 0, 0) if mode == "RGB" else 0)

    small = shrunk(data, 4, "png")

    assert small.mode == ("LA" if mode == "L" else "RGBA")
    alpha = np.asarray(small.getchannel("A"))
    assert (alpha[:, 0].tolist(), alpha[:, 3].tolist()) == ([255, 255], [0, 0])


def test_of_an_animation_the_first_frame_is_left() -> None:
    frames = [Pillow.new("RGB", (8, 4), colour) for colour in ("red", "blue")]
    for format, then in (("gif", "png"), ("webp", "webp"), ("png", "png")):
        small = shrunk(saved(frames[0], format, save_all=True, append_images=frames[1:]), 4, then)
        assert getattr(small, "n_frames", 1) == 1
        red, green, blue = np.asarray(small.convert("RGB")).reshape(-1, 3).mean(0)
        assert red > 240
        assert max(green, blue) < 15


def test_numbers_of_32_bits_are_refused() -> None:
    data = saved(Pillow.new("F", (8, 4), 0.5), "tif")

    with pytest.raises(Reject) as caught:
        shrink(sample(data), 0, 4)

    assert caught.value.reason == "image_mode"


@pytest.mark.parametrize(("lossless", "kind"), [(True, b"VP8L"), (False, b"VP8 ")])
def test_a_lossless_webp_stays_one(lossless: bool, kind: bytes) -> None:
    found = sample(saved(opened(noise(16, 8)), "webp", lossless=lossless))

    shrink(found, 0, 8)

    assert kind in found.files[0][:40]


@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_stays_and_with_it_the_upright_picture(format: str, orientation: int) -> None:
    """Upper left quarter red, of the stored pixels; whoever turns it upright finds it where he found it before."""
    pixels = Pillow.new("RGB", (16, 8), "blue")
    pixels.paste("red", (0, 0, 8, 4))
    exif = Pillow.Exif()
    exif[ORIENTATION], exif[0x010E], exif[0xA002] = orientation, "a description", 16

    small = shrunk(saved(pixels, format, exif=exif.tobytes()), 8, format)

    assert small.size == (8, 4)
    assert dict(small.getexif()) == ({} if orientation == 1 else {ORIENTATION: orientation})
    red = np.asarray(small.convert("RGB"))[..., 0]
    assert (red[:1, :2].min() > 200, red[3:].max() < 60) == (True, True)


def test_a_tif_is_stored_upright_as_it_was_measured() -> None:
    pixels = Pillow.new("RGB", (16, 8), "blue")
    pixels.paste("red", (0, 0, 8, 4))
    data = saved(pixels, "tif", tiffinfo={ORIENTATION: 6})  # to be turned by a quarter, clockwise
    found = sample(data)
    assert (found.record.images[0].width, found.record.images[0].height) == (8, 16)

    shrink(found, 0, 8)

    small = opened(found.files[0])
    assert (small.size, dict(small.getexif())) == ((4, 8), {})
    red = np.asarray(small)[..., 0]
    assert (red[:4, 2:].mean() > 200, red[:, :2].mean() < 60) == (True, True)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 99])
def test_an_exif_that_can_not_be_read_does_no_harm(exif: bytes) -> None:
    assert shrunk(saved(opened(noise(16, 8)), "jpg", exif=exif), 8, "jpg").size == (8, 4)


@pytest.mark.parametrize(
    ("format", "mode", "stays"), [("jpg", "RGB", True), ("png", "RGB", True), ("webp", "RGB", True), ("tif", "CMYK", False)]
)
def test_a_profile_stays_unless_it_speaks_of_inks(format: str, mode: str, stays: bool) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = saved(opened(noise(16, 8)).convert(mode), format, icc_profile=profile)

    assert shrunk(data, 8, "png" if format == "tif" else format).info.get("icc_profile") == (profile if stays else None)


def test_a_jpeg_that_is_decoded_smaller_looks_as_one_that_is_not() -> None:
    """67 x 45 to 8 x 5: decoded at a quarter, 17 x 12, of which 16.75 x 11.25 are the picture."""
    slope = np.linspace(0, 255, 67)[None, :, None] * np.ones((45, 1, 3))
    data = saved(Pillow.fromarray(slope.astype(np.uint8)), "jpg", quality=95)
    expected = np.asarray(opened(data).resize((8, 5), Pillow.Resampling.LANCZOS), int)

    assert np.abs(np.asarray(shrunk(data, 8, "jpg"), int) - expected).max() <= 4


@pytest.mark.parametrize("damage", ["middle", "cut", "another size"])
def test_a_picture_that_can_not_be_decoded_is_refused_and_nothing_is_moved(damage: str) -> None:
    data = noise(64, 48, format="png")
    found = sample(data, regions=[record.region("a", 0, box=[0.0, 0.0, 64.0, 48.0])])
    half = len(data) // 2
    broken = {"middle": data[:half] + bytes(64) + data[half + 64 :], "cut": data[:half], "another size": noise(32, 48, format="png")}
    found.files[0] = broken[damage]

    with pytest.raises(Reject) as caught:
        shrink(found, 0, 32)

    assert caught.value.reason == "image_decode"
    assert (found.record.images[0].width, found.record.regions[0].box, found.counts) == (64, [0.0, 0.0, 64.0, 48.0], {})


def test_a_map_that_can_not_be_decoded_goes_and_is_counted() -> None:
    data = noise(64, 48, 1, "png", "L")
    half = len(data) // 2
    maps = [(record.label_map(0, "classes", "L8", member="bad"), data[:half] + bytes(64) + data[half + 64 :])]
    maps.append((record.label_map(0, "classes", "L8", member="good"), data))
    found = sample(noise(64, 48), maps=maps)

    shrink(found, 0, 32)

    assert [map.member for map in found.record.maps] == ["good"]
    assert [opened(data).size for data in found.maps] == [(32, 24)]
    assert found.counts["maps_dropped", "map_decode"] == 1


@pytest.mark.parametrize(("size", "mode", "reason"), [((8, 6), "L", "map_size"), ((8, 4), "RGB", "map_encoding")])
def test_a_map_that_does_not_fit_is_a_broken_record(size: tuple[int, int], mode: str, reason: str) -> None:
    maps = [(record.label_map(0, "classes", "L8", member="bad"), noise(*size, 1, "png", mode))]

    with pytest.raises(RecordError) as caught:
        shrink(sample(noise(8, 4), maps=maps), 0, 4)

    assert caught.value.reason == reason


def test_the_same_picture_gives_the_same_bytes() -> None:
    for format in PILLOW:
        found = sample(noise(40, 30, format=format))
        image = found.record.images[0]
        assert picture(found.files[0], image, (20, 15)) == picture(found.files[0], image, (20, 15))


sides = st.integers(1, 5000)


@given(sides, sides, sides, st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
def test_a_box_stays_inside_and_at_the_edges_that_it_touched(width: int, height: int, max_side: int, at: list[float]) -> None:
    x0, x1 = sorted((at[0] * width, at[1] * width))
    y0, y1 = sorted((at[2] * height, at[3] * height))
    new = smaller(width, height, max_side)
    touching = [0.0, 0.0, float(width), float(height)]

    region, whole = record.region("a", 0, box=[x0, y0, x1, y1]), record.region("b", 0, box=touching)
    moved(region, (width, height), new)
    moved(whole, (width, height), new)

    assert whole.box == [0.0, 0.0, float(new[0]), float(new[1])]
    assert max(new) <= max_side or new == (width, height)
    if x0 < x1 and y0 < y1:
        box = region.box
        assert box is not None
        assert 0 <= box[0] < box[2] <= new[0]
        assert 0 <= box[1] < box[3] <= new[1]
        assert (x1 == width) <= (box[2] == new[0])


def moved(region: Region, old: tuple[int, int], new: tuple[int, int]) -> None:
    from pipelines.resize import Grid, _move
    from pipelines.source import Tally

    _move(region, old, new, Grid.of(old, new), Tally())


@given(st.integers(2, 60), st.integers(2, 60), st.integers(1, 60), st.data())
def test_a_masks_area_is_scaled_to_within_a_row_and_a_column(width: int, height: int, max_side: int, data: st.DataObject) -> None:
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    bitmap = np.zeros((height, width), int)
    bitmap[y0:y1, x0:x1] = 1
    new = smaller(width, height, max_side)
    region = record.region("a", 0, mask=mask.from_bitmap(bitmap))

    moved(region, (width, height), new)

    wide, high = (x1 - x0) * new[0] / width, (y1 - y0) * new[1] / height
    area = 0 if region.mask is None else mask.area(region.mask)
    assert max(0, wide - 1) * max(0, high - 1) <= area <= (wide + 1) * (high + 1)
    if (x0, y0, x1, y1) == (0, 0, width, height):
        assert area == new[0] * new[1]


@settings(max_examples=60)
@given(items(), st.integers(1, 8))
def test_any_valid_record_is_valid_when_its_pictures_are_smaller(item: Item, max_side: int) -> None:
    found = Sample(item.record, list(item.files), list(item.maps))

    for at in range(len(found.files)):
        shrink(found, at, max_side)

    made, _ = ready(found.record, "000000-00000000", found.files, found.maps)
    for image, data in zip(made.images, found.files, strict=True):
        assert max(image.width, image.height) <= max_side
        assert measure(data, "decode") == (image.format, image.width, image.height)


@pytest.fixture
def upstream(tmp_path: Path) -> list[str]:
    """COCO: two pictures of 24 x 16 and one of 8 x 6, instances, keypoints and a panoptic map."""
    sizes = {1: (24, 16), 2: (24, 16), 3: (8, 6)}
    images = [{"id": n, "file_name": f"{n}.jpg", "width": w, "height": h} for n, (w, h) in sizes.items()]
    instances = [
        {"id": 10, "image_id": 1, "category_id": 1, "bbox": [2, 4, 22, 12], "iscrowd": 0, "segmentation": [[0, 0, 12, 0, 12, 8, 0, 8]]},
        {"id": 11, "image_id": 3, "category_id": 1, "bbox": [1, 1, 2, 2], "iscrowd": 0},
    ]
    keypoints = [{"id": 10, "image_id": 1, "category_id": 1, "bbox": [2, 4, 22, 12], "keypoints": [6, 9, 2, 0, 0, 0], "num_keypoints": 1}]
    segments = [{"id": 300, "category_id": 1, "area": 192, "iscrowd": 0}, {"id": 5, "category_id": 1, "area": 192, "iscrowd": 0}]
    categories = [{"id": 1, "name": "bus", "keypoints": ["nose", "tail"]}]
    files = {
        "instances": {"images": images, "annotations": instances, "categories": categories},
        "keypoints": {"images": images, "annotations": keypoints, "categories": categories},
        "panoptic": {
            "images": images,
            "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
            "categories": categories,
        },
    }
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    for n, size in sizes.items():
        (tmp_path / f"images/{n}.jpg").write_bytes(noise(*size, n))
    values = np.zeros((16, 24, 3), np.uint8)
    values[:, :12], values[:, 12:] = [44, 1, 0], [5, 0, 0]  # 300 and 5
    (tmp_path / "maps/1.png").write_bytes(png(values, "RGB"))
    given = ["coco", "--images", str(tmp_path / "images"), "--panoptic-maps", str(tmp_path / "maps")]
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        given += [f"--{name}", str(tmp_path / f"{name}.json")]
    return given


def converted(upstream: list[str], out: Path, *more: object) -> dict[str, Any]:
    assert main(["convert", *upstream, "--out", str(out), *map(str, more)]) == 0
    assert check(out, deep=True).problems == []
    return json.loads((out / "manifest.json").read_bytes())


def test_the_command_resizes_and_everything_follows(upstream: list[str], tmp_path: Path) -> None:
    found = converted(upstream, tmp_path / "out", "--max-side", 12, "--workers", 1)

    assert found["options"]["max_side"] == 12
    assert found["mended"]["resized"] == 2
    first, second, third = shards.open(tmp_path / "out")
    assert [(s.record.images[0].width, s.record.images[0].height) for s in (first, second, third)] == [(12, 8), (12, 8), (8, 6)]
    region = first.record.regions[0]
    assert (region.box, region.points) == ([1.0, 2.0, 12.0, 8.0], [[3.0, 4.5, 2.0], [0.0, 0.0, 0.0]])
    assert region.mask is not None
    assert mask.bitmap(region.mask).tolist() == [[1] * 6 + [0] * 6] * 4 + [[0] * 12] * 4
    assert [(segment.id, segment.area) for segment in first.record.maps[0].segments or []] == [(300, 48), (5, 48)]
    assert third.record.regions[0].box == [1.0, 1.0, 3.0, 3.0]
    assert third.image(0) == (tmp_path / "images/3.jpg").read_bytes()


def test_the_bytes_do_not_depend_on_the_number_of_workers(upstream: list[str], tmp_path: Path) -> None:
    one = converted(upstream, tmp_path / "one", "--max-side", 12, "--workers", 1)
    two = converted(upstream, tmp_path / "two", "--max-side", 12, "--workers", 2)

    assert one == two
    assert one["shards"]


def test_another_size_is_another_data_set(upstream: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted(upstream, tmp_path / "out", "--max-side", 12, "--workers", 1)
    capsys.readouterr()

    assert main(["convert", *upstream, "--out", str(tmp_path / "out"), "--max-side", "10"]) == 2
    assert "expected max_side 12 to go on, found 10" in capsys.readouterr().err


def test_a_broken_picture_is_a_reject_of_its_own_name(upstream: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its header is whole, so that it would be written if nobody had to decode it."""
    data = noise(24, 16, 2, "png")
    half = len(data) // 2
    (tmp_path / "images/2.jpg").write_bytes(data[:half] + bytes(64) + data[half + 64 :])

    assert main(["convert", *upstream, "--out", str(tmp_path / "out"), "--max-side", "12", "--json", "--workers", "1"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["totals"]["written"], found["rejected"]) == (2, {"image_decode": 1})


@settings(max_examples=150)
@given(st.sampled_from(sorted(PILLOW)), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_whatever_is_wrong_with_a_pictures_bytes_it_is_smaller_or_refused(format: str, flips: list[tuple[float, int]]) -> None:
    data = bytearray(noise(12, 8, format=format))
    for at, value in flips:
        data[int(at * len(data))] = value
    with contextlib.suppress(Reject):
        found = sample(bytes(data))
        shrink(found, 0, 6)
        assert measure(found.files[0], "decode")[1:] == (found.record.images[0].width, found.record.images[0].height)
