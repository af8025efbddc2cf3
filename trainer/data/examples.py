"""From a drawn sample to what the model sees of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from schemas import Record, RecordError, Turn
from trainer.data import lots
from trainer.data.batch import Example
from trainer.data.pixels import Pixels, Preprocess
from trainer.data.sources import Sample
from trainer.recipe import Recipe
from trainer.text import render
from trainer.text.render import Renderer
from trainer.text.rendered import Rendered
from trainer.text.tokenizer import Tokenizer

Fit = Callable[[Rendered], Rendered]  # trainer.model.Model.fit


def example(
    sample: Sample,
    render: Renderer,
    preprocess: Preprocess,
    turns: Sequence[Turn] | None = None,
    *,
    coin: float = 1.0,
    fit: Fit | None = None,
    mirror: bool = False,
) -> Example:
    """The sample as the model sees it; `turns` are the record's own where none are given; mirror: all its pictures, left to right.

    Raises RecordError where the template has no place for the record or a picture does not decode, LeftOut where the source's rules leave
    it out.
    """
    record = sample.record
    rendered = render(record, record.turns if turns is None else turns, coin)
    rendered = fit(rendered) if fit else rendered
    pixels = {index: preprocess.pixels(sample.image(index)) for index in dict.fromkeys(rendered.images)}
    pixels = {index: _mirrored(pixels_CHW) for index, pixels_CHW in pixels.items()} if mirror else pixels
    return Example(rendered=rendered, pixels=[pixels[index] for index in rendered.images])


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Makes the example of a draw; from several threads."""

    seed: int
    renderers: Mapping[str, Renderer]  # by source
    preprocess: Preprocess
    fit: Fit | None = None
    flips: Mapping[str, float] = field(default_factory=dict)  # by source: how often all pictures of a record are mirrored

    def __call__(self, source: str, draw: int, sample: Sample) -> Example:
        """The choice among a record's turns, and whatever else is left to chance, are the draw's. Raises as `example`."""
        turns = lots.turns(self.seed, source, draw, sample.record)
        coin = lots.number(self.seed, source, draw, "keep")
        mirror = self._flip(source, draw, sample.record)
        return example(sample, self.renderers[source], self.preprocess, turns, coin=coin, fit=self.fit, mirror=mirror)

    def _flip(self, source: str, draw: int, record: Record) -> bool:
        """One coin for all pictures of the record, as OpenFlamingo throws it. Raises RecordError where that would move regions or maps."""
        share = self.flips.get(source, 0.0)
        if share and (record.regions or record.maps):
            found = f"{len(record.regions)} regions and {len(record.maps)} maps"
            raise RecordError("flip", f"expected nothing that a mirrored picture would move, found {found}")
        return lots.number(self.seed, source, draw, "flip") < share


def of_recipe(recipe: Recipe, tokenizer: Tokenizer, preprocess: Preprocess, fit: Fit | None = None) -> Examples:
    """As the recipe renders its sources."""
    renderers = {source.name: render.renderer(recipe, tokenizer, source) for source in recipe.sources}
    flips = {source.name: source.flip for source in recipe.sources}
    return Examples(seed=recipe.seed, renderers=renderers, preprocess=preprocess, fit=fit, flips=flips)


def _mirrored(pixels_CHW: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels_CHW[:, :, ::-1])
