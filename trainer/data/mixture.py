"""What a step takes of every source: integers only, a pure function of the position. Knows no record and no tensor.

`every`: a batch of every source. `one`: each step a group by weight, the same on all ranks, each sample a source of the group by weight
(GLaMM). `mixed`: one batch over all sources together, weight = share of records, grouped by modality and length (LLaVA).

Groups and sources are chosen by rotation, frac(phase + n * alpha) against the cumulative weights, alpha irrational: the share served stays
within a few draws of the share asked, in the short run too (Niederreiter, "Random number generation and quasi-Monte Carlo methods",
1992, chapter 3). All in 64-bit integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

from schemas import RequestError
from shards import splitmix
from shards.order import Order, Share

Draw = Literal["every", "one", "mixed"]
Lengths = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of these draws of a source, int64 (n,): whether each has a picture, bool (n,), and how long its text is, int64 (n,)."""

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 times the fraction of the golden ratio; for groups
_SILVER = 0x6A09E667F3BCC909  # of the root of 2; for sources


@dataclass(frozen=True, kw_only=True)
class MixtureSource:
    """A source as the mixture sees it."""

    name: str
    order: Order
    batch_size: int  # records of an optimizer step, over all ranks
    weight: float | None = None  # under `one` and `mixed`; see Mixture
    group: str | None = None  # under `one`; none: a group of its own
    epoch_samples: int | None = None  # draws that count as its epoch; none: its records
    lengths: Lengths | None = None  # under `mixed`: group by modality and length; none anywhere: do not
    fingerprint: str = ""  # its data's


@dataclass(frozen=True)
class Position:
    """All the state there is: the step that comes next, and each source's next draw."""

    step: int
    draws: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"step": self.step, "draws": dict(self.draws)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Position:
        """What `to_dict` gave. Raises RequestError where it is something else."""
        try:
            step, draws = found["step"], dict(found["draws"])
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"position: expected a step and a draw number of each source, found {found!r}") from error
        if not all(type(number) is int and number >= 0 for number in (step, *draws.values())):
            raise RequestError(f"position: expected whole numbers from 0, found step {step!r}, draws {draws!r}")
        return cls(step, {str(name): number for name, number in draws.items()})

    def adapted(self, names: Sequence[str]) -> tuple[Position, list[str]]:
        """The position for these sources, and in words what that changes: a new source begins at draw 0, one that is gone is forgotten."""
        notes = [f"source {name}: new, begins at draw 0" for name in names if name not in self.draws]
        notes += [f"source {name}: no longer there, left at draw {at}" for name, at in self.draws.items() if name not in names]
        return Position(self.step, {name: self.draws.get(name, 0) for name in names}), notes


class Planned(NamedTuple):
    """A step, over all ranks. A source without draws in this step is not in `draws`."""

    step: int
    draws: dict[str, np.ndarray]  # int64 (n,) by source: its draw numbers
    next: Position  # after the step
    oldest: dict[str, int]  # by source: this step and all later ones draw nothing below it, so what only lies there can be let go


class Mixture:
    """Sources and how a step draws from them. Raises RequestError, naming the source, for what can not be drawn.

    every: weights and groups are refused. one: weights are relative within a group, 1 where none is given; `groups` gives the groups'
    weights, without it a group weighs what its sources do; batch sizes agree within a group. mixed: weights are shares of records; where
    none is given they are the sources' epochs, so that all are through at the same time, as if they were one; batch sizes agree.
    group_steps: under `mixed`, steps whose draws are sorted by modality and length together.
    """

    def __init__(
        self, sources: Sequence[MixtureSource], draw: Draw, seed: int, *, groups: Mapping[str, float] | None = None, group_steps: int = 32
    ) -> None:
        self.sources, self.draw, self.seed, self.group_steps = tuple(sources), draw, seed, group_steps
        _check(self.sources, draw, dict(groups or {}), group_steps)
        self.names = [source.name for source in sources]
        self._by_name = {source.name: source for source in sources}
        self._groups = _grouped(self.sources, draw, dict(groups or {}), seed)
        self._group_of_step = Rotation([group.weight for group in self._groups], _GOLDEN, splitmix.key(seed, "groups"))
        self._asked = self._shares()
        self._block: tuple[Any, list[dict[str, np.ndarray]]] = (None, [])  # under `mixed`: the last block planned

    def start(self) -> Position:
        """Where a run begins."""
        return Position(0, dict.fromkeys(self.names, 0))

    def step(self, position: Position) -> Planned:
        """The step that comes next at this position. Raises RequestError where the position is another mixture's."""
        if set(position.draws) != set(self.names):
            raise RequestError(f"position: expected draw numbers of {_list(self.names)}, found {_list(position.draws)}")
        counts = self._counts(position)
        moved = {name: position.draws[name] + counts.get(name, 0) for name in self.names}
        if self.draw == "mixed" and self.sources[0].lengths:
            oldest, draws = self._by_length(position)
        else:
            oldest = dict(position.draws)
            draws = {name: np.arange(oldest[name], moved[name]) for name, count in counts.items() if count}
        return Planned(position.step, draws, Position(position.step + 1, moved), oldest)

    def share(self, planned: Planned, rank: int, ranks: int) -> dict[str, Share]:
        """What this rank reads of the step: every source's draws in the order of their place in the window, cut contiguously.

        Shares differ by at most one record, of each source and of all together; who has the larger one changes with the step. Sources of
        which the rank has none are in it, empty.
        """
        shares, turn = {}, planned.step
        for name, draws in planned.draws.items():
            shares[name] = self._by_name[name].order.share(draws, rank, ranks, turn)
            turn += len(draws) % ranks  # so that the records over do not always fall to the same rank
        return shares

    def epochs(self, position: Position) -> dict[str, float]:
        """How many epochs of each source have been drawn."""
        return {source.name: position.draws[source.name] / _epoch(source) for source in self.sources}

    def steps(self, epochs: float) -> int:
        """The steps in which every source has had so many epochs."""
        rates = {member.name: rate for group in self._groups for member, rate in self._rates(group)}
        return max(math.ceil(Fraction(epochs) * _epoch(source) / rates[source.name]) for source in self.sources)

    def asked(self) -> dict[str, float]:
        """The share of all draws that each source is meant to have."""
        return dict(self._asked)

    def _shares(self) -> dict[str, float]:
        rates = {member.name: rate for group in self._groups for member, rate in self._rates(group)}
        return {name: float(rates[name] / sum(rates.values())) for name in self.names}

    def state(self, position: Position) -> dict[str, Any]:
        """For a checkpoint: the position, and what it is a position in."""
        sources = {source.name: {"fingerprint": source.fingerprint, "order": _order(source.order)} for source in self.sources}
        return {**position.to_dict(), "seed": self.seed, "draw": self.draw, "block": self._blocked(), "sources": sources}

    def resumed(self, state: Mapping[str, Any]) -> tuple[Position, list[str]]:
        """The position in this mixture, and what changed, in words. Weights and batch sizes may have changed, sources come and gone.

        Where that happens inside a block of group_steps steps, some of the block's draws are served twice and as many are not: it is said.
        Raises RequestError where a source that goes on has other data, or another order: its draw number would mean other records.
        """
        check(state, {source.name: source.fingerprint for source in self.sources})
        _same("seed", state.get("seed"), self.seed)
        for source in self.sources:
            if source.name in state["sources"]:
                _same(f"source {source.name}: order", state["sources"][source.name].get("order"), _order(source.order))
        position, notes = Position.from_dict(state).adapted(self.names)
        if (was := state.get("draw")) != self.draw:
            notes.append(f"draw: was {was}, is {self.draw}")
        before, now = state.get("block"), self._blocked()
        inside = [block["steps"] for block in (before, now) if block and position.step % block["steps"]]
        if before != now and inside:
            notes.append(f"block: changed inside of its {inside[0]} steps, so some of its draws are served twice, and as many are not")
        return position, notes

    def _blocked(self) -> dict[str, Any] | None:
        """What decides how the draws of a block of steps are dealt out to them; None where each step has its own."""
        if self.draw != "mixed" or not self.sources[0].lengths:
            return None
        (group,) = self._groups
        weights = {member.name: str(weight) for member, weight in zip(group.members, group.weights, strict=True)}
        return {"steps": self.group_steps, "batch_size": group.batch_size, "weights": weights}

    def _counts(self, position: Position) -> dict[str, int]:
        """How many draws of each source the step takes."""
        if self.draw == "every":
            return {source.name: source.batch_size for source in self.sources}
        group = self._groups[0 if self.draw == "mixed" else int(self._group_of_step.at(position.step, 1)[0])]
        first = _sample(group, position)
        drawn = np.bincount(group.rotation.at(first, group.batch_size), minlength=len(group.members))
        return {member.name: int(number) for member, number in zip(group.members, drawn, strict=True)}

    def _rates(self, group: Group) -> list[tuple[MixtureSource, Fraction]]:
        """Records of each member in a step, on average."""
        if self.draw == "every":
            return [(member, Fraction(member.batch_size)) for member in group.members]
        part = group.weight / sum(other.weight for other in self._groups) * group.batch_size
        return [(member, part * weight / sum(group.weights)) for member, weight in zip(group.members, group.weights, strict=True)]

    def _by_length(self, position: Position) -> tuple[dict[str, int], dict[str, np.ndarray]]:
        """Where the step's block begins, and the step's part of it. A block's draws are those of its steps without grouping."""
        group, number = self._groups[0], position.step % self.group_steps
        behind = number * group.batch_size  # samples of the block that are served
        first = _sample(group, position) - behind
        drawn = group.rotation.at(first, self.group_steps * group.batch_size)
        before = np.bincount(drawn[:behind], minlength=len(group.members))
        starts = [max(0, position.draws[member.name] - int(served)) for member, served in zip(group.members, before, strict=True)]
        wanted = (position.step - number, first, tuple(starts))
        if self._block[0] != wanted:
            key = splitmix.key(self.seed, "blocks", position.step // self.group_steps)
            self._block = wanted, _batches(group, drawn, starts, key)
        return dict(zip(self.names, starts, strict=True)), self._block[1][number]


class Rotation:
    """Choices by weight: numbers 0 to len(weights) - 1, each in its share of any stretch but for a few."""

    def __init__(self, weights: Sequence[Fraction], alpha: int, phase: int) -> None:
        self._alpha, self._phase = np.uint64(alpha), np.uint64(phase)
        bounds = [sum(weights[: n + 1], Fraction(0)) / sum(weights) for n in range(len(weights) - 1)]
        self._bounds = np.array([min(math.ceil(bound * 2**64), 2**64 - 1) for bound in bounds], np.uint64)

    def at(self, first: int, count: int) -> np.ndarray:
        """int64 (count,): the choices first to first + count - 1."""
        turned = self._phase + np.arange(first, first + count).astype(np.uint64) * self._alpha
        return np.searchsorted(self._bounds, turned, side="right")


@dataclass(frozen=True)
class Group:
    """Sources of which a step's samples are drawn together."""

    name: str
    weight: Fraction
    members: tuple[MixtureSource, ...]
    weights: tuple[Fraction, ...]  # of the members
    batch_size: int
    rotation: Rotation


def check(state: Mapping[str, Any], fingerprints: Mapping[str, str]) -> None:
    """Raises RequestError where a source that goes on does not hold the data it held. The same data at another place is the same."""
    try:
        held = {name: source["fingerprint"] for name, source in state["sources"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise RequestError("checkpoint: expected the sources' fingerprints in its position, found none") from error
    for name, found in fingerprints.items():
        if name in held and held[name] != found:
            raise RequestError(f"source {name}: expected the data that the run began with, fingerprint {held[name]}, found {found}")


def _same(what: str, expected: object, found: object) -> None:
    if expected != found:
        raise RequestError(f"{what}: expected {expected} as in the checkpoint, found {found}")


def _order(order: Order) -> dict[str, Any]:
    return {"seed": order.seed, "window": order.window, "quota": order.quota, "resampled": order.resampled}


def _epoch(source: MixtureSource) -> int:
    return source.epoch_samples or source.order.records


def _sample(group: Group, position: Position) -> int:
    """The number of the group's next sample."""
    return sum(position.draws[member.name] for member in group.members)


def _batches(group: Group, drawn: np.ndarray, starts: Sequence[int], key: int) -> list[dict[str, np.ndarray]]:
    """The block's draws, cut into batches of one modality and about one length; what is over makes one that has both."""
    draws, pictured, length = np.empty(len(drawn), np.int64), np.empty(len(drawn), bool), np.empty(len(drawn), np.int64)
    for number, (member, start) in enumerate(zip(group.members, starts, strict=True)):
        mine = np.flatnonzero(drawn == number)
        draws[mine] = np.arange(start, start + len(mine))
        assert member.lengths is not None
        pictured[mine], length[mine] = member.lengths(draws[mine])
    size = group.batch_size
    sides = [side[np.argsort(length[side], kind="stable")[::-1]] for side in (np.flatnonzero(pictured), np.flatnonzero(~pictured))]
    over = np.concatenate([side[len(side) // size * size :] for side in sides])
    full = np.concatenate([*(side[: len(side) // size * size] for side in sides), over]).reshape(-1, size)
    return [_sources_of(group, drawn[batch], draws[batch]) for batch in full[splitmix.shuffled(key, len(full))]]


def _sources_of(group: Group, drawn: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
    by_source = {member.name: np.sort(draws[drawn == number]) for number, member in enumerate(group.members)}
    return {name: mine for name, mine in by_source.items() if len(mine)}


def _grouped(sources: Sequence[MixtureSource], draw: Draw, groups: dict[str, float], seed: int) -> list[Group]:
    by_name: dict[str, list[MixtureSource]] = {}
    for source in sources:
        by_name.setdefault(_group_name(source) if draw == "one" else "", []).append(source)
    return [_group(name, members, draw, groups.get(name), seed) for name, members in by_name.items()]


def _group(name: str, members: list[MixtureSource], draw: Draw, weight: float | None, seed: int) -> Group:
    default = {member.name: _epoch(member) if draw == "mixed" else 1 for member in members}
    weights = tuple(Fraction(default[member.name] if member.weight is None else member.weight) for member in members)
    rotation = Rotation(weights, _SILVER, splitmix.key(seed, "sources", name))
    total = sum(weights, Fraction(0)) if weight is None else Fraction(weight)
    return Group(name, total, tuple(members), weights, members[0].batch_size, rotation)


def _group_name(source: MixtureSource) -> str:
    return source.name if source.group is None else source.group


def _check(sources: Sequence[MixtureSource], draw: Draw, groups: dict[str, float], group_steps: int) -> None:
    if not sources:
        raise RequestError("sources: expected at least one, found none")
    if draw not in ("every", "one", "mixed"):
        raise RequestError(f"draw: expected every, one or mixed, found {draw!r}")
    if group_steps < 1:
        raise RequestError(f"group_steps: expected at least 1, found {group_steps}")
    names = [source.name for source in sources]
    for source in sources:
        if names.count(source.name) > 1:
            raise RequestError(f"sources: expected different names, found {source.name} twice")
        _check_source(source, draw)
    if draw != "every":
        _check_batches(sources, draw)
    _check_alike(sources, draw)
    _check_groups(sources, draw, groups)


def _check_source(source: MixtureSource, draw: Draw) -> None:
    where = f"source {source.name}"
    if source.batch_size < 1:
        raise RequestError(f"{where}: batch_size: expected at least 1, found {source.batch_size}")
    if source.epoch_samples is not None and source.epoch_samples < 1:
        raise RequestError(f"{where}: epoch_samples: expected at least 1, found {source.epoch_samples}")
    if source.weight is not None:
        if draw == "every":
            raise RequestError(f"{where}: weight: expected none, since every step takes a batch of every source; found {source.weight}")
        _positive(where, source.weight)
    if source.group is not None and draw != "one":
        raise RequestError(f"{where}: group: expected none, since only draw = one has groups; found {source.group}")


def _positive(where: str, weight: float) -> None:
    if not 0 < weight < math.inf:  # refuses nan too
        raise RequestError(f"{where}: weight: expected a number above 0, found {weight}; leave out what is not to be drawn")


def _check_batches(sources: Sequence[MixtureSource], draw: Draw) -> None:
    first: dict[str, MixtureSource] = {}
    for source in sources:
        other = first.setdefault(_group_name(source) if draw == "one" else "", source)
        if other.batch_size != source.batch_size:
            among = f"group {source.group}" if draw == "one" else "draw = mixed"
            expected = f"{other.batch_size} as of {other.name}, since {among} has one"
            raise RequestError(f"source {source.name}: batch_size: expected {expected}, found {source.batch_size}")


def _check_alike(sources: Sequence[MixtureSource], draw: Draw) -> None:
    for field in ("weight", "lengths") if draw == "mixed" else ():
        missing = [source.name for source in sources if getattr(source, field) is None]
        if 0 < len(missing) < len(sources):
            raise RequestError(f"source {missing[0]}: {field}: expected one, as other sources have, or none at all; found none")


def _check_groups(sources: Sequence[MixtureSource], draw: Draw, groups: dict[str, float]) -> None:
    if groups and draw != "one":
        raise RequestError(f"groups: expected none under draw = {draw}, found {_list(groups)}")
    named = {_group_name(source) for source in sources}
    for name, weight in groups.items():
        _positive(f"group {name}", weight)
        if name not in named:
            raise RequestError(f"group {name}: expected a source in it, found none")
    for source in sources:
        if groups and _group_name(source) not in groups:
            raise RequestError(f"source {source.name}: group: expected one of {_list(groups)}, found {source.group}")


def _list(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names)
