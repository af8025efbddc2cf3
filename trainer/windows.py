"""Which shards of a source are open: those of the window that is read, and those of the next one, on their way from the store."""

from __future__ import annotations

from shards import Shards
from shards.order import Order


class Windows:
    """Opens ahead of the draws of one rank, and closes behind them."""

    def __init__(self, data: Shards, order: Order, rank: int, ranks: int) -> None:
        self._data, self._order, self._rank, self._ranks = data, order, rank, ranks
        self._open: set[int] = set()
        self._last: tuple[int, ...] = ()

    def ahead(self, draw: int) -> None:
        """This draw is read next. A local disk reads ahead by itself."""
        now = tuple(self._order.open_shards(draw, self._rank, self._ranks).tolist())
        if now == self._last:
            return
        self._last = now
        coming = [*now, *self._order.next_shards(draw, self._rank, self._ranks).tolist()]
        self._open.update(coming)
        if self._data.place.folder is None:
            self._data.prefetch(coming)

    def behind(self, draw: int) -> None:
        """What is before this draw is read: shards that are in neither its window nor the next are closed."""
        wanted = {*self._order.open_shards(draw).tolist(), *self._order.next_shards(draw).tolist()}
        for number in self._open - wanted:
            self._data.shards[number].close()
        self._open &= wanted
