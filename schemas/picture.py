"""Pictures: what their bytes say of themselves. Known by magic bytes, never by suffix; never re-encoded.

`measure` reads format and size from the header and notices a cut-off file where the format allows it; what looks cut off is decoded
before it is refused, so `header` never refuses what a decoder accepts. `decode` really decodes the pixels (JPEG at
an eighth of its size: every coefficient is read, few are transformed).

The stated answers: EXIF orientation, CMYK, palettes, 16 bits and transparency are kept as they are, width and height are those of
the stored pixels; of an animation the first frame counts; a GIF named .jpg is a gif; a page of HTML, an empty file and
formats no browser shows are `image_format` and `image_empty`; above MAX_PIXELS is `image_bomb`.
"""

from __future__ import annotations

import functools
import io
import struct
import warnings
from typing import NamedTuple

from PIL import Image as Pillow

from schemas.errors import Reject

MAX_PIXELS = 178_956_970  # Pillow's own limit: a quarter of a gibibyte of RGB


class Picture(NamedTuple):
    """Format (one of schemas.record.IMAGE_FORMATS) and size in stored pixels."""

    format: str
    width: int
    height: int


def measure(data: bytes | memoryview, verify: str = "header") -> Picture:
    """Format and size of these bytes.

    verify is "header" or "decode". Raises Reject: image_empty, image_format, image_header, image_truncated, image_bomb or image_decode.
    """
    if not len(data):
        raise Reject("image_empty", "expected a picture, found 0 bytes")
    picture, whole = _header(data)
    if picture.width < 1 or picture.height < 1:
        raise Reject("image_header", f"expected a size, found {picture.width} x {picture.height}")
    if picture.width * picture.height > MAX_PIXELS:
        raise Reject("image_bomb", f"expected at most {MAX_PIXELS} pixels, found {picture.width} x {picture.height}")
    if verify == "decode" or not whole:
        decode(data, "image_decode" if whole else "image_truncated")
    return picture


def decode(data: bytes | memoryview, reason: str = "image_decode") -> None:
    """Decode the first frame. Raises Reject(reason) where the decoder gives up."""
    _quiet()
    try:
        with Pillow.open(io.BytesIO(data)) as opened:
            if opened.format in ("JPEG", "MPO"):
                opened.draft(opened.mode, (max(1, opened.width // 8), max(1, opened.height // 8)))
            opened.load()
    except Pillow.DecompressionBombError as error:
        raise Reject("image_bomb", str(error)[:200]) from error
    except MemoryError:
        raise  # of this process: with more of it the picture is a picture
    except Exception as error:  # whatever a decoder raises on hostile bytes, it did not decode
        raise Reject(reason, f"{type(error).__name__}: {error}"[:200]) from error


@functools.cache
def _quiet() -> None:
    """Pillow warns about EXIF it can not read, which says nothing about pixels, and of sizes, which are bounded here."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _header(data: bytes | memoryview) -> tuple[Picture, bool]:
    """The picture, and whether its end is where its format says."""
    head = bytes(data[:32])
    if head[:3] == b"\xff\xd8\xff":
        return _jpeg(bytes(data) if isinstance(data, memoryview) else data)
    try:
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(head, data)
        if head[:6] in (b"GIF87a", b"GIF89a"):
            # Not the logical screen: decoders enlarge it where the first frame leaves it.
            return _by_decoder("gif", data)[0], bytes(data[-1:]) == b";"
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return _webp(head, data)
    except struct.error as error:
        raise Reject("image_truncated", f"expected a header, found {len(data)} bytes") from error
    if head[:2] == b"BM" or head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _by_decoder("bmp" if head[:2] == b"BM" else "tif", data)
    raise Reject("image_format", f"expected jpg, png, gif, webp, tif or bmp, found {head[:12]!r}")


_NO_LENGTH = frozenset((0x01, *range(0xD0, 0xDA)))
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg(data: bytes) -> tuple[Picture, bool]:
    """Walk the segments to the frame header: https://www.w3.org/Graphics/JPEG/itu-t81.pdf, annex B."""
    at, end = 2, len(data)
    while at + 9 < end:
        if data[at] != 0xFF:
            at = data.find(b"\xff", at)  # padding that decoders skip
            if at < 0:
                break
            continue
        marker = data[at + 1]
        if marker in _START_OF_FRAME:
            height, width = (data[at + 5] << 8) | data[at + 6], (data[at + 7] << 8) | data[at + 8]
            if height == 0:  # the number of lines may come later, in a DNL segment
                return _by_decoder("jpg", data)
            # FF D9 can not occur inside coded data, so the last one behind the frame header ends the picture.
            return Picture("jpg", width, height), data.rfind(b"\xff\xd9") > at
        if marker in (0xFF, 0x00) or marker in _NO_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + ((data[at + 2] << 8) | data[at + 3])
    raise Reject("image_truncated", f"expected a JPEG frame header, found none in {end} bytes")


def _png(head: bytes, data: bytes | memoryview) -> tuple[Picture, bool]:
    width, height, _depth, colour, compression, filtering, _interlace = struct.unpack_from(">IIBBBBB", head, 16)
    if head[12:16] != b"IHDR" or compression or filtering or colour not in (0, 2, 3, 4, 6):
        raise Reject("image_header", f"expected a PNG header, found {head[12:29]!r}")
    return Picture("png", width, height), b"IEND" in bytes(data[-64:])


def _webp(head: bytes, data: bytes | memoryview) -> tuple[Picture, bool]:
    """https://developers.google.com/speed/webp/docs/riff_container"""
    (size,) = struct.unpack_from("<I", head, 4)
    whole = size + 8 <= len(data)
    kind = head[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(head[24:27], "little")
        height = 1 + int.from_bytes(head[27:30], "little")
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", head, 26))
    else:
        raise Reject("image_header", f"expected a VP8 chunk, found {kind!r}")
    return Picture("webp", width, height), whole


def _by_decoder(format: str, data: bytes | memoryview) -> tuple[Picture, bool]:
    """Rare formats: Pillow reads the header; where their end is, only decoding tells."""
    _quiet()
    try:
        with Pillow.open(io.BytesIO(data)) as opened:
            return Picture(format, opened.width, opened.height), False
    except Pillow.DecompressionBombError as error:
        raise Reject("image_bomb", str(error)[:200]) from error
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder raises on hostile bytes, there is no header
        raise Reject("image_header", f"{type(error).__name__}: {error}"[:200]) from error
