"""From a drawn sample to what the model sees of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from schemas import Turn
from trainer import lots, render
from trainer.batch import Example
from trainer.pixels import Preprocess
from trainer.recipe import Recipe
from trainer.render import Renderer
from trainer.rendered import Rendered
from trainer.sources import Sample
from trainer.tokenizer import Tokenizer

Fit = Callable[[Rendered], Rendered]  # trainer.model.Model.fit


def example(
    sample: Sample,
    render: Renderer,
    preprocess: Preprocess,
    turns: Sequence[Turn] | None = None,
    *,
    coin: float = 1.0,
    fit: Fit | None = None,
) -> Example:
    """The sample as the model sees it; `turns` are the record's own where none are given.

    Raises RecordError where the template has no place for the record or a picture does not decode, LeftOut where the source's rules leave
    it out.
    """
    record = sample.record
    rendered = render(record, record.turns if turns is None else turns, coin)
    rendered = fit(rendered) if fit else rendered
    pixels = {index: preprocess.pixels(sample.image(index)) for index in dict.fromkeys(rendered.images)}
    return Example(rendered=rendered, pixels=[pixels[index] for index in rendered.images])


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Makes the example of a draw; from several threads."""

    seed: int
    renderers: Mapping[str, Renderer]  # by source
    preprocess: Preprocess
    fit: Fit | None = None

    def __call__(self, source: str, draw: int, sample: Sample) -> Example:
        """The choice among a record's turns, and whatever else is left to chance, are the draw's. Raises as `example`."""
        turns = lots.turns(self.seed, source, draw, sample.record)
        coin = lots.number(self.seed, source, draw, "keep")
        return example(sample, self.renderers[source], self.preprocess, turns, coin=coin, fit=self.fit)


def of_recipe(recipe: Recipe, tokenizer: Tokenizer, preprocess: Preprocess, fit: Fit | None = None) -> Examples:
    """As the recipe renders its sources."""
    renderers = {source.name: render.renderer(recipe, tokenizer, source) for source in recipe.sources}
    return Examples(seed=recipe.seed, renderers=renderers, preprocess=preprocess, fit=fit)
