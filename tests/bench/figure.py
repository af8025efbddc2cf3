"""A figure: what was measured of ours and of a peer, and the ratio it was to reach."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Figure:
    """Rounds of ours and of the peer, in `unit`. The ratio is ours / peer, of medians; at most `target` if `below`, else at least."""

    what: str
    unit: str
    ours: tuple[float, ...]
    peer: tuple[float, ...]
    peer_name: str
    target: float
    below: bool = False

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        return median(self.ours) / median(self.peer)

    @property
    def met(self) -> bool:
        """Whether the ratio reaches its target."""
        return self.ratio <= self.target if self.below else self.ratio >= self.target

    def row(self) -> str:
        """A row of RESULTS.md."""
        cells = (self.what, _rounds(self.ours, self.unit), f"{self.peer_name}: {_rounds(self.peer, self.unit)}")
        return f"| {' | '.join(cells)} | {self.ratio:.2f} | {self._target()} | {'yes' if self.met else '**no**'} |"

    def line(self) -> str:
        """The same for a terminal."""
        ours, peer = f"{median(self.ours):,.3g}", f"{median(self.peer):,.3g}"
        mark = "ok" if self.met else "SHORT"
        return f"{mark:<6}{self.what}: {ours} {self.unit}, {self.peer_name} {peer}: ratio {self.ratio:.2f} (target {self._target()})"

    def _target(self) -> str:
        return f"{'<=' if self.below else '>='} {self.target:g}"


def _rounds(values: tuple[float, ...], unit: str) -> str:
    spread = f" [{min(values):,.4g} - {max(values):,.4g}]" if len(values) > 1 else ""
    return f"{median(values):,.4g} {unit}{spread}"
