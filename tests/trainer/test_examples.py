"""What a draw leaves to chance in what the model sees of a record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import shards
from schemas import RecordError, RequestError
from schemas.record import image, image_part, record, region, text_part, turn
from trainer import assembly
from trainer.data import examples
from trainer.data.batch import Example
from trainer.recipe import Recipe
from trainer.text import tokenizer

Tiny = Callable[..., Recipe]


def pair(photo: Callable[..., bytes], **more: object) -> tuple:
    """A record of two different pictures."""
    pictures = [photo(20, 16, seed) for seed in (1, 2)]
    shown = [image(width=20, height=16, format="jpg", bytes=len(data)) for data in pictures]
    turns = [turn("user", [image_part(0), image_part(1)]), turn("assistant", [text_part("two")])]
    return record("pair", images=shown, turns=turns, **more), pictures, []  # type: ignore[arg-type]


def drawn(recipe: Recipe, place: str) -> list[Example]:
    """The first record, as 200 draws show it."""
    made = examples.of_recipe(recipe, tokenizer.load(recipe.tokenizer), assembly.preprocess(recipe))
    sample = shards.open(place)[0]
    return [made("pair", draw, sample) for draw in range(200)]


def test_a_draw_mirrors_all_pictures_of_a_record_or_none(tiny: Tiny, photo: Callable[..., bytes], tmp_path: Path) -> None:
    place = str(tmp_path / "pair")
    shards.write(place, [pair(photo)])
    (plain, *_), mirrored = (drawn(tiny(f"sources.pair.flip={share}", sources=[f"pair={place}"]), place) for share in (0, 0.5))

    flips = [not np.array_equal(example.pixels[0], plain.pixels[0]) for example in mirrored]

    assert 70 < sum(flips) < 130
    for example, flip in zip(mirrored, flips, strict=True):
        for found, expected in zip(example.pixels, plain.pixels, strict=True):
            assert np.array_equal(found, expected[:, :, ::-1] if flip else expected)
            assert found.flags["C_CONTIGUOUS"]
    again = drawn(tiny("sources.pair.flip=0.5", sources=[f"pair={place}"]), place)
    assert all(np.array_equal(one.pixels[0], other.pixels[0]) for one, other in zip(mirrored, again, strict=True))


def test_a_record_with_regions_is_not_mirrored_but_refused(tiny: Tiny, photo: Callable[..., bytes], tmp_path: Path) -> None:
    place = str(tmp_path / "pair")
    shards.write(place, [pair(photo, regions=[region("a", image=0, box=[1.0, 1.0, 5.0, 5.0])])])

    with pytest.raises(RecordError, match="expected nothing that a mirrored picture would move, found 1 regions and 0 maps"):
        drawn(tiny("sources.pair.flip=0.01", sources=[f"pair={place}"]), place)
    assert len(drawn(tiny(sources=[f"pair={place}"]), place)) == 200


def test_flip_is_a_share(tiny: Tiny) -> None:
    with pytest.raises(RequestError, match=r"sources\.colours: flip: expected at most 1, found 1\.5"):
        tiny("sources.colours.flip=1.5")
