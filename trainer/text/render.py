"""A recipe's way from a record to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from schemas import Record, Turn
from trainer.recipe import Recipe, Source
from trainer.text import basicvlm_text, compat, flamingo_text, rendered, template
from trainer.text.rendered import Rendered
from trainer.text.tokenizer import Tokenizer


class Renderer(Protocol):
    """Turns a record, and the turns to use of it, into tokens. `coin` in [0, 1) is the draw's, where a rule keeps some records."""

    def __call__(self, record: Record, turns: Sequence[Turn], coin: float = 1.0) -> Rendered: ...


def renderer(recipe: Recipe, tokenizer: Tokenizer, source: Source | None = None) -> Renderer:
    """The renderer of a source of the recipe, or with the recipe's own settings; what it gives is cut at max_tokens.

    It raises RecordError("template") where the template has no place for the record, LeftOut where the source's rules leave it out.
    """
    source = source or Source(name="recipe")
    name, longest = source.template or recipe.template, source.max_tokens or recipe.max_tokens

    def render(record: Record, turns: Sequence[Turn], coin: float = 1.0) -> Rendered:
        if name == "flamingo":
            show = flamingo_text.in_compat if recipe.compat == "openflamingo" else flamingo_text.render
            return show(record, turns, source, tokenizer, longest, coin)
        if recipe.compat == "llava":
            return compat.render(record, turns, name, tokenizer, longest).cut(longest)
        if recipe.compat == "basicvlm":
            return basicvlm_text.render(record, turns, recipe.system, tokenizer).cut(longest)
        out = rendered.tokenise(template.pieces(record, turns, name, recipe.system, tokenizer), tokenizer).cut(longest)
        return flamingo_text.with_tokens(out, tokenizer) if recipe.model.family == "flamingo" else out

    return render
