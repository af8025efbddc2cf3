"""Pictures for the page: thumbnails, masks and label maps as PNG or JPEG bytes. What is stored is shown as it is stored."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow

from schemas import Map, Mask, Reject, mask, picture

COLOURS = (  # view.css has the same; told apart with every common kind of colour blindness, as far as twelve can be
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (148, 103, 189),
    (140, 86, 75),
    (188, 189, 34),
    (23, 190, 207),
    (227, 119, 194),
    (127, 127, 127),
)
TYPES = {"jpg": "image/jpeg", "png": "image/png", "gif": "image/gif", "webp": "image/webp", "bmp": "image/bmp", "tif": "image/tiff"}
LARGEST = 64_000_000  # pixels that are decoded for somebody who only looks
LONG_SIDE = 2048  # pixels of a mask or map as it is drawn


class Painted(NamedTuple):
    """Bytes and their media type."""

    data: bytes
    type: str


def stored(data: memoryview | bytes) -> Painted:
    """The bytes as they are; what no browser shows, as PNG. Raises Reject where they are no picture."""
    found = picture.measure(data)
    return resized(data, LONG_SIDE) if found.format == "tif" else Painted(bytes(data), TYPES[found.format])


def resized(data: memoryview | bytes, side: int) -> Painted:
    """The first frame, at most `side` pixels long. Raises Reject where it can not be decoded, or is too large to be looked at."""
    found = picture.measure(data)
    if found.width * found.height > LARGEST:
        raise Reject("image_large", f"expected at most {LARGEST} pixels to be shown, found {found.width} x {found.height}")
    try:
        with Pillow.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (side, side))
            small = opened.convert("RGBA" if opened.has_transparency_data else "RGB")
    except Exception as error:  # whatever a decoder raises on hostile bytes
        raise Reject("image_decode", f"{type(error).__name__}: {error}"[:200]) from error
    small.thumbnail((side, side), Pillow.Resampling.BILINEAR)
    return _encoded(small, "PNG" if small.mode == "RGBA" else "JPEG")


def drawn_mask(found: Mask, colour: int) -> Painted:
    """The mask's pixels in a colour, all others transparent. Raises MaskRefused, and Reject where it is too large."""
    height, width = found.size
    if height * width > LARGEST:
        raise Reject("mask_large", f"expected at most {LARGEST} pixels to be shown, found {width} x {height}")
    return _coloured(mask.bitmap(found)[:: _stride(width, height), :: _stride(width, height)], [COLOURS[colour % len(COLOURS)]])


def drawn_map(data: memoryview | bytes, found: Map) -> Painted:
    """The map's segments or classes in colours, in the order of `entries`; what it does not name is transparent. Raises Reject."""
    size = picture.measure(data)
    if size.width * size.height > LARGEST:
        raise Reject("map_large", f"expected at most {LARGEST} pixels to be shown, found {size.width} x {size.height}")
    try:
        with Pillow.open(io.BytesIO(data)) as opened:
            stored_HW = np.asarray(opened.convert("RGB") if found.encoding == "RGB24" else opened)
    except Exception as error:  # whatever a decoder raises on hostile bytes
        raise Reject("map_decode", f"{type(error).__name__}: {error}"[:200]) from error
    every = _stride(size.width, size.height)
    ids_HW = stored_HW[::every, ::every].astype(np.int64)
    if ids_HW.ndim == 3:
        ids_HW = ids_HW[..., :3] @ np.array([1, 256, 65536])
    values, place = np.unique(ids_HW, return_inverse=True)
    order = {id: at for at, (id, _) in enumerate(entries(found))}
    named = np.array([order[value] % 255 + 1 if value in order else 0 for value in values.tolist()], np.uint8)
    return _coloured(named[place].reshape(ids_HW.shape), [COLOURS[at % len(COLOURS)] for at in range(min(255, len(order)))])


def entries(found: Map) -> list[tuple[int, str]]:
    """Ids and names of what a map holds."""
    if found.segments is not None:
        return [(segment.id, segment.label or "") for segment in found.segments]
    return [(id, name) for id, name in enumerate(found.classes or ()) if id != found.ignore]


def _stride(width: int, height: int) -> int:
    return -(-max(width, height) // LONG_SIDE)


def _coloured(places_HW: np.ndarray, colours: list[tuple[int, int, int]]) -> Painted:
    """0 is transparent, 1 the first colour."""
    made = Pillow.fromarray(np.ascontiguousarray(places_HW, np.uint8)).convert("P")
    made.putpalette([0, 0, 0, *(part for colour in colours for part in colour)])
    stream = io.BytesIO()
    made.save(stream, "PNG", transparency=0)
    return Painted(stream.getvalue(), "image/png")


def _encoded(made: Pillow.Image, format: str) -> Painted:
    stream = io.BytesIO()
    made.save(stream, format, quality=82)
    return Painted(stream.getvalue(), f"image/{format.lower()}")


def sniffed(data: bytes) -> str:
    """The media type that the first bytes claim, also where the rest is broken: a browser shows of it what it can."""
    try:
        return TYPES[picture.measure(data).format]
    except Reject:
        known = {b"\xff\xd8": "jpg", b"\x89P": "png", b"GI": "gif", b"RI": "webp", b"BM": "bmp"}
        return TYPES.get(known.get(data[:2], ""), "application/octet-stream")
