"""From a name to a measured picture and its untouched bytes."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.images import Images
from schemas import Reject, RequestError


@pytest.fixture
def pictures(tmp_path: Path, photo: Callable[..., bytes]) -> Path:
    folder = tmp_path / "pictures"
    (folder / "ocr").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(photo(32, 24, 1))
    (folder / "ocr" / "782118577.gif").write_bytes(photo(8, 6, 2, "GIF"))
    (folder / "ocr" / "1437717772.jpg").write_bytes(photo(10, 6, 3, "GIF"))
    return folder


def test_a_picture_is_measured_and_its_bytes_are_untouched(pictures: Path) -> None:
    found = Images([pictures]).read("a.jpg", similarity=0.5, seconds=2.0)

    data = (pictures / "a.jpg").read_bytes()
    assert found.data == data
    assert not found.other_suffix
    image = found.image
    assert (image.width, image.height, image.format, image.bytes, image.origin) == (32, 24, "jpg", len(data), "a.jpg")
    assert (image.similarity, image.seconds, image.member) == (0.5, 2.0, "")


def test_ocr_vqa_names_jpg_what_was_saved_as_gif(pictures: Path) -> None:
    found = Images([pictures]).read("ocr/782118577.jpg")

    assert (found.image.format, found.image.origin, found.other_suffix) == ("gif", "ocr/782118577.gif", True)


def test_the_format_is_that_of_the_bytes_whatever_the_suffix_says(pictures: Path) -> None:
    found = Images([pictures]).read("ocr/1437717772.jpg")

    assert (found.image.format, found.other_suffix) == ("gif", False)


def test_of_several_roots_the_first_that_has_the_name_counts(tmp_path: Path, pictures: Path, photo: Callable[..., bytes]) -> None:
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("a.jpg", photo(4, 4, 9))
        archive.writestr("ocr/782118577.jpg", photo(5, 5, 8))
    images = Images([pictures, tmp_path / "more.zip"])

    assert images.read("a.jpg").image.width == 32
    exact = images.read("ocr/782118577.jpg")
    assert (exact.image.width, exact.other_suffix) == (5, False)
    assert sorted(name for name, _ in images.names()).count("a.jpg") == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.jpg", "image_missing"),
        ("../a.jpg", "image_path"),
        ("", "image_path"),
        ("ocr", "image_missing"),
        ("x" * 300, "image_unreadable"),
    ],
)
def test_a_picture_that_can_not_be_had_is_a_reject_by_name(pictures: Path, name: str, reason: str) -> None:
    with pytest.raises(Reject) as refused:
        Images([pictures]).read(name)
    assert refused.value.reason == reason


def test_without_roots_every_picture_is_missing() -> None:
    with pytest.raises(Reject, match=r"image_missing: expected a\.jpg under no --images, found nothing"):
        Images([]).read("a.jpg")


def test_header_takes_damage_inside_for_what_it_is_only_when_asked_to_decode(pictures: Path, photo: Callable[..., bytes]) -> None:
    data = bytearray(photo(64, 64, 5, "PNG"))
    data[2000:2010] = bytes(10)
    (pictures / "damaged.png").write_bytes(data)

    assert Images([pictures], "header").read("damaged.png").image.width == 64
    with pytest.raises(Reject, match="image_decode"):
        Images([pictures], "decode").read("damaged.png")


def test_any_of_several_names_is_the_first_that_is_there(pictures: Path) -> None:
    images = Images([pictures])

    assert images.any_of(["x.jpg", "a.jpg", "ocr/1437717772.jpg"]).image.origin == "a.jpg"
    with pytest.raises(Reject, match=r"image_missing: expected x\.jpg"):
        images.any_of(["x.jpg", "y.jpg"])


def test_a_root_that_is_none_is_a_wrong_request(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected a directory"):
        _ = Images([tmp_path / "nowhere"]).stores


def test_images_travel_to_a_worker_after_use(pictures: Path) -> None:
    images = Images([pictures])
    images.read("ocr/782118577.jpg")

    assert pickle.loads(pickle.dumps(images)).read("a.jpg").image.width == 32
