"""Resize: pictures whose longer side is above `--max-side` are made smaller at ingest, and whatever lies on them is moved along.

The longer side becomes exactly that many pixels, the shorter one the nearest whole number, at least 1; a picture that is not larger
keeps its bytes. With (w, h) the old and (W, H) the new size:

* Boxes and points: x * W / w and y * H / h, multiplied first, so that what touched an edge touches it still, to the last bit. They are
  distances from the upper left corner, not numbers of pixels: nothing is added. (0, 0, 0), a point that nobody labelled, stays what it is.
* Masks and maps: the new pixel in column i has the value of the old pixel in column floor((2 i + 1) w / 2 W), in which its middle lies, and
  rows likewise. So values are never mixed, and a mask and the map that it came from stay alike. A mask of which no pixel is left goes
  (masks_dropped: resized_away), its region stays. The areas of a map's segments are counted again: 0 for one that vanished.
* Spans, expressions, relations and text: untouched.

Pixels go through Pillow's Lanczos filter. jpg, png and webp stay what they are, gif, tif and bmp become png; of an animation the first
frame is left. jpg: quality 95, 4:2:0; webp: quality 95, or lossless if it was. A JPEG is decoded 2, 4 or 8 times smaller by its DCT as long
as that leaves at least twice the size wanted. Palettes and single bits become colours and greys, because they can not be averaged; greys,
alpha, CMYK in a jpg and greys of 16 bits stay; colours of 16 bits become 8, as Pillow reads them; what has other numbers is `image_mode`.
The ICC profile stays, and EXIF's orientation: the sides are those of the stored pixels, before and after. Other metadata goes, because
sizes and thumbnails in it would be wrong. Pillow turns a tif upright while it decodes it, and so it is stored.

The same Pillow gives the same bytes; which one it was stands in the manifest.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pillow
from PIL.ExifTags import Base as Tag

from pipelines.source import Sample, Tally
from schemas import Image, Map, Mask, RecordError, Region, Reject, ShardweaveError
from schemas import mask as masks

QUALITY = 95  # of jpg and webp
SUBSAMPLING = "4:2:0"
ENOUGH = 2  # times the size wanted: a JPEG may be decoded that small
Size = tuple[int, int]  # width, height

_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}  # the others become png
_AVERAGED = frozenset(("L", "LA", "RGB", "RGBA", "CMYK", "I;16"))
_ALIKE = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "YCbCr": "RGB"}
_MAP_MODES = {"L8": ("L", "P"), "L16": ("I;16",), "RGB24": ("RGB",)}


def shrink(sample: Sample, at: int, max_side: int) -> None:
    """Make the sample's picture at this position no larger than that, and move along what lies on it.

    Raises Reject where the picture can not be had, and then nothing is changed: image_decode, image_mode. Raises RecordError where what
    lies on it does not fit it: mask, map_size, map_encoding.
    """
    image = sample.record.images[at]
    old, new = (image.width, image.height), smaller(image.width, image.height, max_side)
    if new == old:
        return
    format, data = picture(sample.files[at], image, new)
    grid = Grid.of(old, new)
    for region in sample.record.regions:
        if region.image == at:
            _move(region, old, new, grid, sample.counts)
    _move_maps(sample, at, old, grid)
    image.width, image.height, image.format, image.bytes = *new, format, len(data)
    sample.files[at] = data
    sample.counts.note("mended", "resized")


def smaller(width: int, height: int, max_side: int) -> Size:
    """The size whose longer side is at most max_side; halves are rounded up."""
    longer = max(width, height)
    if longer <= max_side:
        return width, height
    return max(1, (2 * width * max_side + longer) // (2 * longer)), max(1, (2 * height * max_side + longer) // (2 * longer))


def nearest(old: int, new: int) -> np.ndarray:
    """int64 (new,): the old pixel in which the middle of each new one lies."""
    return ((2 * np.arange(new, dtype=np.int64) + 1) * old) // (2 * new)


class Grid(NamedTuple):
    """Which of the old pixels are left."""

    rows: np.ndarray  # int64 (new height,)
    columns: np.ndarray  # int64 (new width,)

    @classmethod
    def of(cls, old: Size, new: Size) -> Grid:
        """Of a picture that goes from one size to another."""
        return cls(nearest(old[1], new[1]), nearest(old[0], new[0]))

    def taken(self, values_HW: np.ndarray) -> np.ndarray:
        """The values (new height, new width, ...) at these pixels."""
        return np.ascontiguousarray(values_HW[self.rows][:, self.columns])


def _move(region: Region, old: Size, new: Size, grid: Grid, counts: Tally) -> None:
    if region.box is not None:
        region.box = _scaled(region.box, old, new)
        if any(low >= high for low, high in zip(region.box[:2], region.box[2:], strict=False)):
            region.box = None  # it was as narrow as the last bit of a number
            counts.note("mended", "box_vanished")
    if region.points is not None:
        region.points = [[*_scaled(point[:2], old, new), *point[2:]] for point in region.points]
    if region.mask is not None:
        region.mask = _mask(region.mask, old, grid, counts)


def _scaled(numbers: Sequence[float], old: Size, new: Size) -> list[float]:
    """x, y, x, y, ... of the old picture in the new one."""
    return [number * new[axis % 2] / old[axis % 2] for axis, number in enumerate(numbers)]


def _mask(mask: Mask, old: Size, grid: Grid, counts: Tally) -> Mask | None:
    try:
        bitmap, before = masks.bitmap(mask), masks.area(mask)
    except masks.MaskRefused as error:
        raise RecordError("mask", str(error)) from error
    if mask.size != [old[1], old[0]]:
        raise RecordError("mask", f"expected {[old[1], old[0]]}, found {mask.size}")
    found = masks.from_bitmap(grid.taken(bitmap))
    if masks.area(found) or not before:
        return found
    counts.note("masks_dropped", "resized_away")
    return None


def _move_maps(sample: Sample, at: int, old: Size, grid: Grid) -> None:
    """Those of this picture; one that can not be decoded goes (maps_dropped: map_decode)."""
    kept: list[tuple[Map, bytes]] = []
    for map, data in zip(sample.record.maps, sample.maps, strict=True):
        try:
            kept.append((map, _map(data, map, old, grid) if map.image == at else data))
        except Reject:
            sample.counts.note("maps_dropped", "map_decode")
    sample.record.maps, sample.maps = [map for map, _ in kept], [data for _, data in kept]


def _map(data: bytes, map: Map, old: Size, grid: Grid) -> bytes:
    """The PNG's bytes, its segments' areas counted anew. Raises Reject where it can not be decoded."""
    with _decoding(), Pillow.open(io.BytesIO(data), formats=("PNG",)) as opened:
        if opened.size != old:
            raise RecordError("map_size", f"{map.member}: expected {old[0]}x{old[1]}, found {opened.width}x{opened.height}")
        if opened.mode not in _MAP_MODES.get(map.encoding, ()):
            raise RecordError("map_encoding", f"{map.member}: expected {map.encoding}, found Pillow's mode {opened.mode}")
        opened.load()
        palette = opened.getpalette() if opened.mode == "P" else None
        values = grid.taken(np.asarray(opened))
    areas = _areas(values)
    for segment in map.segments or ():
        segment.area = None if segment.area is None else areas.get(segment.id, 0)
    made = _of_values(values, "L" if palette else opened.mode)
    if palette:
        made.putpalette(palette + [0] * (768 - len(palette)))  # of a shorter one Pillow takes less than 8 bits
    return _saved(made, "PNG")


def _areas(values: np.ndarray) -> dict[int, int]:
    """Pixels by value; of RGB24 R + 256 G + 65536 B."""
    ids = values if values.ndim == 2 else values.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
    found, counts = np.unique(ids, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _of_values(values: np.ndarray, mode: str) -> Pillow.Image:
    little = values.astype("<u2") if mode == "I;16" else values
    return Pillow.frombytes(mode, (values.shape[1], values.shape[0]), little.tobytes())


def picture(data: bytes, image: Image, size: Size) -> tuple[str, bytes]:
    """Format and bytes of this picture in another size. Raises Reject: image_decode, image_mode."""
    with _decoding(), Pillow.open(io.BytesIO(data)) as opened:
        if opened.size != (image.width, image.height):
            raise Reject("image_decode", f"expected {image.width} x {image.height}, found {opened.width} x {opened.height}")
        drafted = opened.draft(None, (ENOUGH * size[0], ENOUGH * size[1])) if opened.format in ("JPEG", "MPO") else None
        opened.load()
        format = image.format if image.format in _FORMATS else "png"
        made = _averaged(opened, format).resize(size, Pillow.Resampling.LANCZOS, drafted[1] if drafted else None)
        about = _about(opened, made.mode)
        return format, _saved(made, _FORMATS[format], **about, **_options(format, data))


def _averaged(opened: Pillow.Image, format: str) -> Pillow.Image:
    """In a mode whose pixels can be averaged, and that the format can hold. Raises Reject(image_mode)."""
    mode = opened.mode
    if mode.startswith("I;16"):
        return _of_values(np.asarray(opened), "I;16")
    if opened.has_transparency_data and mode not in ("LA", "RGBA"):
        return opened.convert("LA" if mode in ("1", "L") else "RGBA")
    wanted = "RGB" if mode == "CMYK" and format != "jpg" else _ALIKE.get(mode, mode)
    if wanted not in _AVERAGED:
        raise Reject("image_mode", f"expected pixels of 8 bits, or greys of 16, found Pillow's mode {mode}")
    return opened if wanted == mode else opened.convert(wanted)


def _about(opened: Pillow.Image, mode: str) -> dict[str, Any]:
    """What is kept beside the pixels. A profile of inks says nothing of lights."""
    profile, orientation = opened.info.get("icc_profile"), _orientation(opened)
    about: dict[str, Any] = {"icc_profile": profile} if profile and (opened.mode == "CMYK") == (mode == "CMYK") else {}
    if orientation not in (None, 1):
        exif = Pillow.Exif()
        exif[Tag.Orientation] = orientation
        about["exif"] = exif.tobytes()
    return about


def _orientation(opened: Pillow.Image) -> int | None:
    """EXIF's, 1 to 8; None where there is none, or nothing that can be read."""
    if opened.format == "TIFF":  # decoded upright
        return None
    try:
        found = opened.getexif().get(Tag.Orientation)
    except Exception:  # noqa: BLE001 - whatever a parser raises on hostile bytes, there is no orientation to keep
        return None
    return found if isinstance(found, int) and 1 <= found <= 8 else None


def _options(format: str, data: bytes) -> dict[str, Any]:
    if format == "jpg":
        return {"quality": QUALITY, "subsampling": SUBSAMPLING}
    if format == "webp":
        return {"lossless": True} if _lossless(data) else {"quality": QUALITY}
    return {}


def _lossless(data: bytes) -> bool:
    """Whether the first frame of a webp is: https://developers.google.com/speed/webp/docs/riff_container"""
    lossless, lossy = data.find(b"VP8L"), data.find(b"VP8 ")
    return lossless >= 0 and (lossy < 0 or lossless < lossy)


def _saved(made: Pillow.Image, format: str, **options: Any) -> bytes:
    made.info.clear()  # what Pillow would write of it unasked
    stream = io.BytesIO()
    made.save(stream, format, **options)
    return stream.getvalue()


@contextmanager
def _decoding() -> Iterator[None]:
    """Whatever a decoder raises on hostile bytes is Reject(image_decode)."""
    _quiet()
    try:
        yield
    except (ShardweaveError, MemoryError):
        raise
    except Exception as error:
        raise Reject("image_decode", f"{type(error).__name__}: {error}"[:200]) from error


@functools.cache
def _quiet() -> None:
    """Pillow warns about EXIF that it can not read, which says nothing about pixels, and of sizes, which were bounded before."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
