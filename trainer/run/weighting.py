"""What a token of each row counts in the loss of a step: `loss_norm`.

global      `every`: a source's tokens are divided by how many it has in the step, over all ranks and micro-batches, and multiplied;
            sources are added. `one` and `mixed`: each token counts its source's multiplier, divided by how many tokens all sources
            have together.
rank_mean   the originals' mean of means: over ranks, of the mean over a rank's micro-batches, of the mean over a micro-batch's tokens;
            under `every` of each source by itself. Micro-batches and ranks without a token are not counted, where the originals
            would divide by zero. The loss then changes with the number of ranks and the size of micro-batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from trainer.data.batch import MicroBatch
from trainer.recipe import Recipe


def weights(
    recipe: Recipe, made: Sequence[MicroBatch], counts: Sequence[Sequence[int]], tokens: Mapping[str, Sequence[float]]
) -> list[list[float]]:
    """Of each row of each of this rank's micro-batches; 0 where there is nothing to divide by.

    `counts`: of each micro-batch, the supervised tokens of its rows. `tokens`: of each source, those of every rank in this step.
    Another term of a loss than its tokens is weighted in the same way, by its own counts.
    """
    apart = recipe.mixture.draw == "every"
    pools = {source.name: source.name if apart else "" for source in recipe.sources}  # whose tokens are divided together
    members = {pool: [tokens[name] for name in pools if pools[name] == pool] for pool in pools.values()}
    counts_R = {pool: [sum(counts) for counts in zip(*every, strict=True)] for pool, every in members.items()}
    if recipe.loss_norm == "global":
        divisors = [{pool: sum(counts) for pool, counts in counts_R.items()}] * len(made)
    else:
        divisors = _means(made, counts, pools, counts_R)
    times = {source.name: source.loss_multiplier for source in recipe.sources}
    rows = [[(times[source], under[pools[source]]) for source in micro.sources] for micro, under in zip(made, divisors, strict=True)]
    return [[multiplier / count if count else 0.0 for multiplier, count in row] for row in rows]


def _means(
    made: Sequence[MicroBatch], counts: Sequence[Sequence[int]], pools: Mapping[str, str], counts_R: Mapping[str, Sequence[float]]
) -> list[dict[str, float]]:
    """Of each micro-batch, whose rows are of one pool: its tokens, times this rank's micro-batches, times the ranks."""
    mine = [(pools[micro.sources[0]], sum(own)) for micro, own in zip(made, counts, strict=True)]
    calls = Counter(pool for pool, count in mine if count)
    ranks = {pool: sum(count > 0 for count in counts) for pool, counts in counts_R.items()}
    return [{pool: count * calls[pool] * ranks[pool]} for pool, count in mine]
