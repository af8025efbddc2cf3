"""A figure: what was measured of ours and of a peer, and the ratio it was to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Figure:
    """Rounds of ours and of the peer, in `unit`. The ratio is ours / peer, of medians; at most `target` if `below`, else at least.

    target: None: told for itself. others: what further peers did. in_turns: each round of ours was made beside the peer's of the same
    number, on a machine that is not as fast in every second: the ratio is the median of the rounds' ratios.
    """

    what: str
    unit: str
    ours: tuple[float, ...]
    peer: tuple[float, ...]
    peer_name: str
    target: float | None
    below: bool = False
    others: Mapping[str, Sequence[float]] = field(default_factory=dict)
    in_turns: bool = False

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        if self.in_turns:
            return median(ours / peer for ours, peer in zip(self.ours, self.peer, strict=True))
        return median(self.ours) / max(median(self.peer), 1e-12)

    @property
    def met(self) -> bool:
        """Whether the ratio reaches its target."""
        if self.target is None:
            return True
        return self.ratio <= self.target if self.below else self.ratio >= self.target

    def row(self) -> str:
        """A row of RESULTS.md."""
        cells = (self.what, _rounds(self.ours, self.unit), f"{self.peer_name}: {_rounds(self.peer, self.unit)}")
        return f"| {' | '.join(cells)} | {self.ratio:.2f} | {self._target()} | {self._met()} |"

    def other_rows(self) -> list[str]:
        """Rows of the second table: what every peer did, best first."""
        found = {self.peer_name: self.peer, **self.others}
        ranked = sorted(found, key=lambda name: median(found[name]), reverse=not self.below)
        return [f"| {self.what} | {name} | {_rounds(tuple(found[name]), self.unit)} |" for name in ranked]

    def line(self) -> str:
        """The same for a terminal."""
        ours, peer = f"{median(self.ours):,.3g}", f"{median(self.peer):,.3g}"
        mark = "ok" if self.met else "SHORT"
        return f"{mark:<6}{self.what}: {ours} {self.unit}, {self.peer_name} {peer}: ratio {self.ratio:.2f} (target {self._target()})"

    def _met(self) -> str:
        return "-" if self.target is None else "yes" if self.met else "**no**"

    def _target(self) -> str:
        return "-" if self.target is None else f"{'<=' if self.below else '>='} {self.target:g}"


def _rounds(values: tuple[float, ...], unit: str) -> str:
    spread = f" [{min(values):,.4g} - {max(values):,.4g}]" if len(values) > 1 else ""
    return f"{median(values):,.4g} {unit}{spread}"


def fastest(what: str, unit: str, rounds: Mapping[str, Sequence[float]], target: float | None, below: bool = False) -> Figure:
    """Ours against the best of the peers. rounds: by name, `shardweave` among them; those without a round are left out."""
    peers = {name: tuple(values) for name, values in rounds.items() if values and name != OURS}
    if not peers:
        raise ValueError(f"{what}: expected a peer's rounds, found none")
    best = (min if below else max)(peers, key=lambda name: median(peers[name]))
    others = {name: values for name, values in peers.items() if name != best}
    return Figure(what, unit, tuple(rounds[OURS]), peers[best], f"{best} (fastest)", target, below, others)


OURS = "shardweave"
