from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image as Pillow

from schemas import RecordError
from trainer.data.pixels import Preprocess, decoded, squared


def processor(*, size: int = 4, squash: bool = False, pad: bool = False) -> Preprocess:
    return Preprocess(size=size, mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 1.0), squash=squash, pad=pad)


def png(picture: Pillow.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


def halves(width: int, height: int) -> Pillow.Image:
    """Left half white, right half black."""
    picture = Pillow.new("RGB", (width, height))
    picture.paste((255, 255, 255), (0, 0, width // 2, height))
    return picture


def test_pixels_are_scaled_and_normalised_channels_first() -> None:
    pixels_CHW = processor().pixels(png(Pillow.new("RGB", (4, 4), (255, 0, 51))))

    assert pixels_CHW.shape == (3, 4, 4)
    assert pixels_CHW.dtype == np.float32
    np.testing.assert_allclose(pixels_CHW[:, 0, 0], [1.0, -0.5, 0.2], atol=1e-6)


def test_square_crops_the_middle_and_pad_keeps_all() -> None:
    wide = png(halves(16, 4))

    cropped = processor().pixels(wide)[0]
    padded = processor(pad=True).pixels(wide)[0]

    assert cropped[:, 0].min() == 1.0
    assert cropped[:, 3].max() == -1.0
    assert abs(float(padded[0, 0])) < 0.1  # the mean colour above the strip
    assert (padded[1:3, 0] > 0.2).all()


def test_siglip_squashes_to_the_square() -> None:
    squashed = processor(squash=True).pixels(png(halves(16, 4)))[0]

    assert squashed[:, 0].min() > 0.9
    assert squashed[:, 3].max() < -0.9


def test_the_square_has_the_mean_colour_and_an_odd_pixel_goes_below() -> None:
    square = squared(Pillow.new("RGB", (4, 1), (9, 9, 9)), (127, 63, 0))

    assert square.size == (4, 4)
    assert [square.getpixel((0, y)) for y in range(4)] == [(127, 63, 0), (9, 9, 9), (127, 63, 0), (127, 63, 0)]


def test_blank_is_the_mean_colour() -> None:
    assert np.abs(processor().blank()).max() < 0.01


def test_orientation_is_not_applied() -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turned by a quarter

    assert decoded(png(halves(6, 4), exif=exif)).size == (6, 4)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert processor().pixels(png(Pillow.new(mode, (5, 7)))).shape == (3, 4, 4)


@pytest.mark.parametrize("data", [b"", b"<html>", png(halves(64, 64))[:40]])
def test_bytes_that_do_not_decode_are_a_bad_record(data: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        processor().pixels(data)

    assert caught.value.reason == "image_decode"


def test_a_line_of_pixels_is_refused_before_it_fills_the_memory() -> None:
    line = png(Pillow.new("L", (20_000, 1)))

    for preprocess in (processor(size=336), processor(pad=True)):
        with pytest.raises(RecordError, match="image_shape"):
            preprocess.pixels(line)


def photo_like(width: int, height: int, **options: object) -> bytes:
    """A JPEG with soft and hard edges."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / (20 + 9 * n)) * np.cos(y / (31 - 7 * n)) for n in range(3)]
    picture = Pillow.fromarray(np.stack(waves, -1).astype(np.uint8))
    picture.paste((250, 20, 30), (width // 3, height // 4, width // 2, height // 2))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=92, **options)
    return stream.getvalue()


@pytest.mark.parametrize(("squash", "pad"), [(False, False), (True, False), (False, True)])
def test_dct_scaling_changes_values_by_less_than_a_255th_on_average(squash: bool, pad: bool) -> None:
    whole = Preprocess(size=64, mean=(0.0,) * 3, std=(1.0,) * 3, squash=squash, pad=pad)
    data = photo_like(1100, 900)

    difference = 255 * np.abs(dataclasses.replace(whole, dct_scaling=True).pixels(data) - whole.pixels(data))

    assert difference.max() > 0  # it was decoded smaller
    assert difference.mean() < 1
    assert np.percentile(difference, 99) <= 20  # of a line where padding begins


@pytest.mark.parametrize("size", [(191, 500), (190, 189)])
def test_dct_scaling_leaves_alone_what_is_not_three_times_as_large(size: tuple[int, int]) -> None:
    whole = Preprocess(size=64, mean=(0.0,) * 3, std=(1.0,) * 3, squash=False, pad=False)
    data = photo_like(*size)

    assert np.array_equal(dataclasses.replace(whole, dct_scaling=True).pixels(data), whole.pixels(data))


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_dct_scaling_takes_jpegs_of_every_mode_and_leaves_other_formats_alone(mode: str) -> None:
    scaling = Preprocess(size=8, mean=(0.0,) * 3, std=(1.0,) * 3, squash=False, pad=False, dct_scaling=True)
    stream = io.BytesIO()
    Pillow.new(mode, (300, 200)).save(stream, "JPEG")

    assert scaling.pixels(stream.getvalue()).shape == (3, 8, 8)
    assert scaling.pixels(png(halves(300, 200))).shape == (3, 8, 8)
