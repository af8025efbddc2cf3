"""Generations: the lease of a place on object storage, made of objects that are only ever created.

`_lease/000001.json`, `000002.json`, ...: one a run that held the place; the last one counts. Who wants the place creates the next: of
several who want it at once, one succeeds. Nobody but its creator writes a generation again, to say that it is still there or that it has
let go, and none is ever removed, so a taker that has been asleep can not take a number that was taken. Stores differ in what else they
offer: conditional replacement is refused by some.
"""

from __future__ import annotations

import msgspec

from schemas import RequestError
from shards import lease
from shards.lease import Lease
from shards.place import Place

LEASES = "_lease/"


class Generation:
    """The place, held by this process from when it is made. Raises RequestError where another writer holds it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        while True:
            number, found = _last(place)
            if found is not None and lease.alive(found, place.url):
                raise RequestError(f"{place.url}: expected a free place, found another writer at work ({lease.owner(found)})")
            self.name = _name(number + 1)
            if place.create(self.name, msgspec.json.encode(lease.mine())):
                return

    def beat(self) -> bool:
        """Say that it is still held; False where another has taken it over."""
        if _name(_number(self.place)) != self.name:
            return False
        self.place.write(self.name, msgspec.json.encode(lease.mine()))
        return True

    def release(self) -> None:
        """Let go of it."""
        self.place.write(self.name, b"null")


def _name(number: int) -> str:
    return f"{LEASES}{number:06d}.json"


def _number(place: Place) -> int:
    """Of the last generation; 0 where there is none."""
    numbers = (name.removeprefix(LEASES).removesuffix(".json") for name, _ in place.names(LEASES))
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _last(place: Place) -> tuple[int, Lease | None]:
    """The last generation and who holds it: nobody after a release."""
    number = _number(place)
    if not number:
        return 0, None
    try:
        return number, msgspec.json.decode(place.read(_name(number)), type=Lease | None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"{place.url}/{_name(number)}: expected a lease, found {error}") from error
