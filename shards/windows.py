"""Which shards of a source are open: those of the windows that are read, and those of the next one, on their way."""

from __future__ import annotations

from shards.order import Order
from shards.reader import Shards


class OpenWindow:
    """Keeps open the shards that a rank's draws come from, opens ahead those of the next window, closes those that are behind."""

    def __init__(self, data: Shards, order: Order, rank: int = 0, ranks: int = 1) -> None:
        self.data, self.order, self.rank, self.ranks = data, order, rank, ranks
        self._opened: dict[int, set[int]] = {}  # the first draw of each window in use: the shards that were opened for it
        self._left = -1  # the first draw of the window that was left last

    def enter(self, first: int, last: int) -> None:
        """Draws first:last are about to be read."""
        while first < last:
            window = self.order.window_at(first)
            if window.first not in self._opened:
                self._opened[window.first] = set(window.shards.tolist())
                self.data.prefetch(self.order.open_shards(first, self.rank, self.ranks).tolist())
            first = window.first + window.draws

    def leave(self, draw: int) -> None:
        """No draw before this one is still to be read. Something was, so there is time to open the next window's shards."""
        begin = self.order.window_at(draw).first
        if begin == self._left:
            return
        self._left = begin
        behind = [self._opened.pop(first) for first in [first for first in self._opened if first < begin]]
        keep = set(self.order.next_shards(draw).tolist()).union(*self._opened.values())
        for number in set().union(*behind) - keep:
            self.data.shards[number].close()
        self.data.prefetch(self.order.next_shards(draw, self.rank, self.ranks).tolist())
