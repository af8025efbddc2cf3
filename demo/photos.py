"""Photographs: real ones that lie inside the installed scikit-image, cut into views, each with words that are true of it.

scikit-image downloads most of its pictures on demand; those named here are in the package itself, and nothing is downloaded. Boxes and
points were marked by hand, in pixels of the whole photograph.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

Box = tuple[float, float, float, float]  # x0, y0, x1, y1

LONG_SIDE = 224  # pixels of a view's picture
SEEN = 0.6  # share of a thing that must lie in a view to be named


class Thing(NamedTuple):
    """Something in a picture, and its box."""

    name: str
    box: Box


@dataclass(frozen=True)
class Photo:
    """A photograph, what it shows, and where in it things are. `points` are of the person in it, in COCO's names."""

    file: str
    subject: str
    sentence: str
    things: tuple[Thing, ...] = ()
    points: dict[str, tuple[float, float]] = field(default_factory=dict, hash=False)


def _things(**boxes: Box) -> tuple[Thing, ...]:
    return tuple(Thing(name.replace("_", " "), box) for name, box in boxes.items())


PHOTOS = (
    Photo(
        "astronaut.png",
        "an astronaut",
        "An astronaut in an orange suit smiles beside her helmet.",
        _things(
            person=(22, 14, 365, 512),
            head=(152, 14, 304, 190),
            flag=(0, 0, 100, 330),
            shuttle=(345, 0, 465, 285),
            helmet=(278, 345, 510, 512),
            badge=(132, 348, 210, 425),
            name_tag=(277, 338, 333, 383),
        ),
        {
            "nose": (222, 115),
            "left_eye": (240, 98),
            "right_eye": (207, 98),
            "left_shoulder": (330, 270),
            "right_shoulder": (95, 260),
            "right_wrist": (165, 485),
        },
    ),
    Photo(
        "chelsea.png",
        "a tabby cat",
        "A tabby cat looks past the camera with green eyes.",
        _things(cat=(30, 0, 375, 300), left_eye=(135, 85, 208, 148), right_eye=(297, 109, 346, 165), nose=(230, 218, 292, 268)),
    ),
    Photo(
        "coffee.png",
        "a cup of coffee",
        "A cup of coffee with a spoon stands on a wooden table.",
        _things(cup=(173, 17, 405, 300), saucer=(77, 75, 480, 385), spoon=(317, 65, 427, 325), coffee=(200, 95, 375, 190)),
    ),
    Photo(
        "rocket.jpg",
        "a rocket on its pad",
        "A rocket waits on its pad at dusk, between steel towers.",
        _things(
            rocket=(308, 127, 335, 405),
            left_tower=(5, 0, 90, 427),
            right_tower=(560, 0, 640, 427),
            left_mast=(168, 125, 206, 400),
            right_mast=(437, 123, 477, 400),
        ),
    ),
    Photo(
        "motorcycle_left.png",
        "a red motorcycle",
        "A red motorcycle is parked in a garage in front of shelves.",
        _things(
            motorcycle=(92, 68, 685, 452),
            front_wheel=(500, 265, 685, 452),
            rear_wheel=(122, 232, 278, 400),
            headlight=(505, 124, 566, 186),
            bench=(45, 103, 285, 308),
            seat=(140, 148, 350, 222),
            engine=(330, 240, 485, 380),
        ),
    ),
    Photo(
        "camera.png",
        "a man with a camera",
        "A man in a dark coat looks through a camera on a tripod.",
        _things(person=(0, 62, 335, 512), camera=(258, 136, 330, 184), tripod=(230, 200, 408, 512), tower=(408, 110, 438, 195)),
        {"nose": (250, 172), "right_eye": (232, 150), "right_ear": (190, 140), "right_shoulder": (115, 190)},
    ),
    Photo(
        "coins.png",
        "old coins",
        "Twenty-four old coins lie in four rows on dark cloth.",
        _things(
            largest_coin=(315, 156, 380, 218),
            coin_with_a_standing_figure=(305, 16, 365, 73),
            coin_with_a_face=(189, 170, 237, 218),
            coin_with_a_helmet=(276, 239, 327, 289),
        ),
    ),
    Photo(
        "retina.jpg",
        "the back of an eye",
        "The back of an eye, with its vessels, glows orange.",
        _things(bright_disc=(180, 580, 325, 750), dark_spot=(610, 630, 800, 780)),
    ),
    Photo("moon.png", "the moon", "Craters and dark hills on the grey surface of the moon.", _things(crater=(95, 60, 148, 113))),
    Photo("hubble_deep_field.jpg", "the deep sky", "Thousands of galaxies shine in a black sky."),
    Photo("ihc.png", "stained tissue", "Stained tissue under a microscope, brown and blue."),
    Photo("brick.png", "a brick pavement", "A pavement of long grey bricks."),
    Photo("grass.png", "grass", "Short grass with a few leaves of clover."),
    Photo("gravel.png", "gravel", "Sharp gravel, every stone about as large as the next."),
    Photo("text.png", "handwriting", "Handwritten mathematics on lined paper."),
    Photo("page.png", "a printed page", "A printed page about region-based segmentation.", _things(heading=(3, 8, 295, 38))),
)

PARTS: dict[str, Box] = {  # shares of width and height
    "upper left": (0, 0, 0.55, 0.55),
    "upper right": (0.45, 0, 1, 0.55),
    "lower left": (0, 0.45, 0.55, 1),
    "lower right": (0.45, 0.45, 1, 1),
    "middle": (0.25, 0.25, 0.75, 0.75),
    "left half": (0, 0, 0.5, 1),
    "right half": (0.5, 0, 1, 1),
    "upper half": (0, 0, 1, 0.5),
    "lower half": (0, 0.5, 1, 1),
}


@dataclass(frozen=True)
class View:
    """A part of a photograph: a picture of its own, the words for it, and what lies in it."""

    photo: Photo
    crop: Box
    words: str  # a noun phrase
    sentence: str

    @cached_property
    def picture(self) -> Image.Image:
        """The cut-out, LONG_SIDE pixels at its longer side."""
        x0, y0, x1, y1 = map(round, self.crop)
        cut = _opened(self.photo.file).crop((x0, y0, x1, y1))
        return cut.resize((round(cut.width * self.scale), round(cut.height * self.scale)), Image.Resampling.LANCZOS)

    @property
    def width(self) -> int:
        """Of the picture."""
        return self.picture.width

    @property
    def height(self) -> int:
        """Of the picture."""
        return self.picture.height

    @property
    def scale(self) -> float:
        """Picture pixels for one of the photograph."""
        x0, y0, x1, y1 = self.crop
        return LONG_SIDE / max(round(x1) - round(x0), round(y1) - round(y0))

    @property
    def things(self) -> list[Thing]:
        """What is to be seen, with boxes of this picture."""
        return [Thing(name, self._moved(box)) for name, box in self.photo.things if _share(box, self.crop) >= SEEN]

    def points(self) -> dict[str, tuple[float, float]]:
        """The person's points that lie in this picture, in its pixels."""
        moved = {name: self._moved((*at, *at))[:2] for name, at in self.photo.points.items()}
        return {name: at for name, at in moved.items() if 0 < at[0] < self.width and 0 < at[1] < self.height}

    def captions(self) -> list[str]:
        """Three ways to say it, all different from those of any other view."""
        seen = [f"the {thing.name}" for thing in self.things if thing.name not in self.words]
        return [self.sentence, f"A picture of {self.words}.", f"Here is {self.words}{', with ' + listed(seen[:3]) if seen else ''}."]

    def bytes(self, format: str = "JPEG", **options: Any) -> bytes:
        """The picture as a file."""
        stream = io.BytesIO()
        self.picture.save(stream, format, **({"quality": 88} if format == "JPEG" else {}), **options)
        return stream.getvalue()

    def _moved(self, box: Box) -> Box:
        x0, x1 = (self._placed(value, self.crop[0], self.width) for value in box[::2])
        y0, y1 = (self._placed(value, self.crop[1], self.height) for value in box[1::2])
        return x0, y0, x1, y1

    def _placed(self, value: float, origin: float, most: int) -> float:
        return round(min(max((value - round(origin)) * self.scale, 0.0), float(most)), 2)


class Deck:
    """Every view once, in a seeded order; whoever needs some is dealt the next ones, so that no two sources share a picture."""

    def __init__(self, seed: int = 0) -> None:
        self._views = [view for photo in PHOTOS for view in _views(photo)]
        random.Random(seed).shuffle(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def deal(self, count: int) -> list[View]:
        """The next views. Raises IndexError where the deck is used up."""
        if count > len(self._views):
            raise IndexError(f"expected {count} views in the deck, found {len(self._views)}")
        dealt, self._views = self._views[:count], self._views[count:]
        return dealt

    def deal_with(self, things: int, count: int) -> list[View]:
        """The next views in which at least so many things are to be seen."""
        dealt = [view for view in self._views if len(view.things) >= things][:count]
        if len(dealt) < count:
            raise IndexError(f"expected {count} views with {things} things in the deck, found {len(dealt)}")
        self._views = [view for view in self._views if view not in dealt]
        return dealt

    def deal_person(self) -> View:
        """The next view of a person whose nose can be seen."""
        view = next(view for view in self._views if "nose" in view.points() and "person" in {thing.name for thing in view.things})
        self._views.remove(view)
        return view


def _views(photo: Photo) -> Iterator[View]:
    width, height = _opened(photo.file).size
    yield View(photo, (0, 0, width, height), photo.subject, photo.sentence)
    for name, (x0, y0, x1, y1) in PARTS.items():
        words = f"the {name} of {photo.subject}"
        yield View(photo, (x0 * width, y0 * height, x1 * width, y1 * height), words, f"The {name} of a photograph of {photo.subject}.")
    for name, box in photo.things:
        words = f"the {name} of {photo.subject}"
        yield View(photo, _around(box, width, height), words, f"The {name}, cut from a photograph of {photo.subject}.")


def _around(box: Box, width: int, height: int) -> Box:
    """The box with a margin, inside the photograph."""
    x0, y0, x1, y1 = box
    margin = 0.15 * max(x1 - x0, y1 - y0)
    return max(0, x0 - margin), max(0, y0 - margin), min(width, x1 + margin), min(height, y1 + margin)


def _share(box: Box, crop: Box) -> float:
    """How much of the box lies inside the crop."""
    wide = min(box[2], crop[2]) - max(box[0], crop[0])
    high = min(box[3], crop[3]) - max(box[1], crop[1])
    return max(0.0, wide) * max(0.0, high) / ((box[2] - box[0]) * (box[3] - box[1]))


@cache
def _opened(file: str) -> Image.Image:
    with Image.open(folder() / file) as opened:
        opened.load()
        return opened if opened.mode in ("L", "RGB") else opened.convert("RGB")


@cache
def folder() -> Path:
    """Where scikit-image keeps what it ships. It is found, not imported: that takes a second. Raises FileNotFoundError."""
    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise FileNotFoundError("expected scikit-image, which carries the photographs, found none: make setup")
    data = Path(found.origin).parent / "data"
    missing = [photo.file for photo in PHOTOS if not (data / photo.file).is_file()]
    if missing:
        raise FileNotFoundError(f"{data}: expected the photographs that scikit-image ships, found no {', '.join(missing)}")
    return data


def cut_off(picture: bytes) -> bytes:
    """A download that stopped two thirds through."""
    return picture[: len(picture) * 2 // 3]


HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>\n"
EMPTY = b""


def side(one: Thing, other: Thing) -> str:
    """How the first lies to the second, by their centres."""
    across = (one.box[0] + one.box[2] - other.box[0] - other.box[2]) / 2
    down = (one.box[1] + one.box[3] - other.box[1] - other.box[3]) / 2
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def write(files: dict[Path, bytes]) -> None:
    """Write files and the folders they need."""
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def listed(names: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
