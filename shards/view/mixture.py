"""The mixture of a recipe as it will be served: what `trainer train RECIPE --plan` says of a step, the sources' sizes, and their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shards.view import ask
from shards.view.runs import PER_STEPS, epoch, recipe_table, source_table
from shards.view.tokens import Tokens

LARGEST = 16 << 20  # bytes of a plan


class Row(NamedTuple):
    """A source."""

    name: str
    share: float  # of the records
    records: float  # of a step, over all ranks
    epochs: float | None  # in PER_STEPS steps; None where its size is not known
    tokens: float | None  # of a record that are trained on, in the mean of those looked at

    @property
    def supervised(self) -> float | None:
        """Tokens of a step that are trained on."""
        return None if self.tokens is None else self.tokens * self.records


class Mixture(NamedTuple):
    """Its sources, or why nothing is known."""

    recipe: str
    rows: list[Row]
    problem: str | None = None

    def share(self, row: Row) -> float | None:
        """Of all tokens that are trained on."""
        total = sum(other.supervised or 0 for other in self.rows)
        return None if row.supervised is None or not total else row.supervised / total


class _Step(msgspec.Struct):
    records: dict[str, float]


class _Plan(msgspec.Struct):
    step: _Step


_plan = msgspec.json.Decoder(_Plan)


def run(recipe: str, places: Mapping[str, str], tokens: Tokens, settings: Sequence[str] = ()) -> Mixture:
    """The mixture of a recipe whose sources lie at these places, or where it says. A plan that is refused is said, and no error."""
    name = Path(recipe).name
    with ask.trainer(["train", recipe, *ask.given(places, settings), "--plan", "--json"]) as answer:
        try:
            records = _plan.decode(answer.out.read(LARGEST)).step.records  # printed also where weights are missing
        except (msgspec.DecodeError, RecursionError):
            return Mixture(name, [], f"what a step takes is not known: {answer.said}")
    table, total = recipe_table(Path(recipe)), sum(records.values()) or 1.0
    return Mixture(name, [_row(one, count, count / total, places, table, tokens) for one, count in records.items()])


def _row(name: str, records: float, share: float, places: Mapping[str, str], recipe: dict[str, Any], tokens: Tokens) -> Row:
    size = epoch(source_table(recipe, name) | ({"shards": places[name]} if name in places else {}))
    trained = tokens.by_source.get(name)
    mean = trained.mean if trained is not None and len(trained) else None
    return Row(name, share, records, PER_STEPS * records / size if size else None, mean)
