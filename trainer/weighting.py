"""What a token of each source counts in the loss of a step.

`every`: a source's tokens are divided by how many it has in the step, over all ranks and micro-batches, and multiplied; sources are added.
`one` and `mixed`: each token counts its source's multiplier, divided by how many tokens all sources have together. A mean over rows would
give short answers more weight, a mean over the tokens of one rank would change with the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainer.recipe import Recipe


def weights(recipe: Recipe, tokens: Mapping[str, int]) -> dict[str, float]:
    """Of a token of each source. `tokens`: supervised ones of the whole step; where there are none the weight is 0."""
    total = sum(tokens.values())
    found = {}
    for source in recipe.sources:
        divisor = tokens.get(source.name, 0) if recipe.mixture.draw == "every" else total
        found[source.name] = source.loss_multiplier / divisor if divisor else 0.0
    return found
