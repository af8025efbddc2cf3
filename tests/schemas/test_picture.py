"""What a picture's bytes say of themselves: format and size by magic bytes, damage by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from schemas import Reject
from schemas.picture import MAX_PIXELS, Picture, decode, measure


def saved(format: str, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    """A noisy picture, so that its bytes are many."""
    channels = len(Pillow.new(mode, (1, 1)).getbands())
    noise_HWC = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    picture = Pillow.frombytes("L", size, noise_HWC[:, :, 0].tobytes()).convert(mode) if channels == 1 else _of(mode, noise_HWC)
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def _of(mode: str, noise_HWC: np.ndarray) -> Pillow.Image:
    return Pillow.frombytes(mode, (noise_HWC.shape[1], noise_HWC.shape[0]), noise_HWC.tobytes())


def reason(data: bytes, verify: str = "header") -> str:
    with pytest.raises(Reject) as refused:
        measure(data, verify)
    return refused.value.reason


WHOLE = {
    "jpg": saved("JPEG"),
    "jpg progressive": saved("JPEG", progressive=True),
    "jpg grey": saved("JPEG", "L"),
    "jpg CMYK": saved("JPEG", "CMYK"),
    "png": saved("PNG"),
    "png palette": saved("PNG", "P"),
    "png 1 bit": saved("PNG", "1"),
    "png transparent": saved("PNG", "RGBA"),
    "gif": saved("GIF", "P"),
    "webp lossy": saved("WEBP"),
    "webp lossless": saved("WEBP", lossless=True),
    "webp transparent": saved("WEBP", "RGBA"),
    "tif": saved("TIFF"),
    "tif CMYK": saved("TIFF", "CMYK"),
    "bmp": saved("BMP"),
}


@pytest.mark.parametrize("verify", ["header", "decode"])
@pytest.mark.parametrize("kind", WHOLE)
def test_format_and_size_are_read_from_the_bytes(kind: str, verify: str) -> None:
    assert measure(WHOLE[kind], verify) == Picture(kind.split()[0], 40, 30)
    assert measure(memoryview(WHOLE[kind]), verify) == Picture(kind.split()[0], 40, 30)


def test_sixteen_bits_a_pixel_are_kept_as_they_are() -> None:
    stream = io.BytesIO()
    Pillow.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)).save(stream, "PNG")

    assert measure(stream.getvalue(), "decode") == Picture("png", 40, 30)


def test_the_size_is_that_of_the_stored_pixels_whatever_exif_says() -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turn by 90 degrees

    assert measure(saved("JPEG", exif=exif)) == Picture("jpg", 40, 30)


def test_a_thumbnail_inside_exif_is_not_the_picture() -> None:
    thumbnail = saved("JPEG", size=(8, 6))
    data = WHOLE["jpg"][:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + WHOLE["jpg"][2:]

    assert measure(data, "decode") == Picture("jpg", 40, 30)


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Pillow.new("P", (40, 30), index) for index in range(3)]
    for format, suffix in (("GIF", "gif"), ("WEBP", "webp")):
        stream = io.BytesIO()
        frames[0].save(stream, format, save_all=True, append_images=frames[1:])
        assert measure(stream.getvalue(), "decode") == Picture(suffix, 40, 30)


def test_an_mpo_is_a_jpg() -> None:
    stream = io.BytesIO()
    first, second = (Pillow.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    first.save(stream, "MPO", save_all=True, append_images=[second])

    assert measure(stream.getvalue(), "decode") == Picture("jpg", 40, 30)


@pytest.mark.parametrize("verify", ["header", "decode"])
@pytest.mark.parametrize("kind", WHOLE)
def test_a_picture_cut_in_the_middle_is_noticed(kind: str, verify: str) -> None:
    data = WHOLE[kind]

    assert reason(data[: len(data) // 2], verify) == "image_truncated"


@pytest.mark.parametrize("kind", ["jpg", "png", "webp lossy", "gif", "bmp"])
def test_a_picture_cut_inside_its_header_is_noticed(kind: str) -> None:
    assert reason(WHOLE[kind][:12]) in ("image_truncated", "image_header")


def test_what_stands_behind_a_whole_picture_does_no_harm() -> None:
    for kind in ("jpg", "png", "gif", "webp lossy"):
        assert measure(WHOLE[kind] + b"behind" * 100).format == kind.split()[0]


def test_a_jpg_without_its_end_marker_is_cut_as_it_is_to_pillow() -> None:
    assert reason(WHOLE["jpg"][:-2]) == "image_truncated"


def test_damage_inside_is_found_by_decoding_only() -> None:
    data = bytearray(WHOLE["png"])
    data[1000:1010] = bytes(10)

    assert measure(bytes(data)) == Picture("png", 40, 30)
    assert reason(bytes(data), "decode") == "image_decode"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "image_empty"),
        (b"<html><body>This image is no longer available</body></html>", "image_format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "image_format"),
        (b"%PDF-1.4", "image_format"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "image_format"),
        (b"\xff\xd8\xff", "image_truncated"),
        (b"BMW for sale, one owner", "image_header"),
        (b"RIFF\x10\0\0\0WEBPVP9 \0\0\0\0" + bytes(20), "image_header"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(data: bytes, expected: str) -> None:
    assert reason(data) == expected
    assert reason(data, "decode") == expected


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    assert measure(_png(MAX_PIXELS // 1000, 1000)).height == 1000
    assert reason(_png(MAX_PIXELS // 1000 + 1, 1000), "decode") == "image_bomb"
    assert reason(_png(2**31 - 1, 2**31 - 1)) == "image_bomb"
    assert reason(WHOLE["gif"][:6] + b"\xff\xff\xff\xff" + WHOLE["gif"][10:]) == "image_bomb"


def test_a_picture_without_pixels_is_refused() -> None:
    assert reason(_png(0, 10)) == "image_header"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_whatever_happens_to_the_bytes_the_answer_is_a_size_or_a_reject(kind: str, data: st.DataObject) -> None:
    changed = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(changed[: data.draw(st.integers(0, len(changed)))])

    try:
        picture = measure(cut, data.draw(st.sampled_from(["header", "decode"])))
    except Reject:
        return
    assert 0 < picture.width * picture.height <= MAX_PIXELS


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_what_a_decoder_accepts_the_header_does_not_refuse(kind: str, data: st.DataObject) -> None:
    cut = WHOLE[kind][: data.draw(st.integers(20, len(WHOLE[kind])))]

    try:
        decode(cut)
    except Reject:
        return
    assert measure(cut) == Picture(kind.split()[0], 40, 30)


def test_photographs_are_measured_as_pillow_measures_them(photo: Callable[..., bytes]) -> None:
    for seed, format in enumerate(("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")):
        data = photo(50 + seed, 20, seed, format)
        with Pillow.open(io.BytesIO(data)) as opened:
            assert measure(data)[1:] == opened.size
