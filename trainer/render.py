"""A recipe's way from a record to tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schemas import Record, Turn
from trainer import compat, rendered, template
from trainer.recipe import Recipe
from trainer.rendered import Rendered
from trainer.tokenizer import Tokenizer

Renderer = Callable[[Record, Sequence[Turn]], Rendered]


def renderer(recipe: Recipe, tokenizer: Tokenizer) -> Renderer:
    """What turns a record, and the turns to use of it, into tokens; cut at the recipe's max_tokens.

    It raises RecordError("template") where the template has no place for the record.
    """

    def render(record: Record, turns: Sequence[Turn]) -> Rendered:
        if recipe.compat == "llava":
            return compat.render(record, turns, recipe.template, tokenizer, recipe.max_tokens).cut(recipe.max_tokens)
        return rendered.tokenise(template.pieces(record, turns, recipe.template), tokenizer).cut(recipe.max_tokens)

    return render
