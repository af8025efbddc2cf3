"""Addresses: connections to those that the whole world can reach, and to no others.

A list of URLs is somebody else's text: it can name the cloud's metadata service, a router, a database on this machine. What counts is the
address that a name leads to, and it is the one that is connected to: a second look-up could give another.
"""

from __future__ import annotations

import ipaddress
import socket
import time

from pipelines.download.status import Failure

REMEMBERED = 60.0  # seconds that a name's addresses are
MOST = 10_000  # names
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # IPv4 behind IPv6: https://www.rfc-editor.org/rfc/rfc6052


def public(text: str) -> bool:
    """Whether this address is one of the public Internet's."""
    address = ipaddress.ip_address(text.partition("%")[0])
    inner = None
    if isinstance(address, ipaddress.IPv6Address):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _TRANSLATED else address.sixtofour
    return all(one.is_global and not one.is_multicast for one in (address, inner) if one is not None)


class Names:
    """Host names and their addresses, remembered for a minute. From several threads."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self._known: dict[str, tuple[float, list[str]]] = {}

    def connected(self, host: str, port: int, until: float) -> socket.socket:
        """A connection, made before `until` on the monotonic clock. Raises Failure(name_resolution, private_address), OSError."""
        refused: OSError | None = None
        for address in self._allowed(host)[:3]:
            try:
                return socket.create_connection((address, port), max(0.01, until - time.monotonic()))
            except OSError as error:
                refused = error
        raise refused or OSError("no address")

    def _allowed(self, host: str) -> list[str]:
        addresses = self._addresses(host)
        found = [address for address in addresses if self.private or public(address)]
        if not found:
            raise Failure("private_address", f"{host} is {', '.join(addresses[:3])}: not asked without --allow-private")
        return found

    def _addresses(self, host: str) -> list[str]:
        known = self._known.get(host)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            raise Failure("name_resolution", f"{host}: {error}") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[host] = time.monotonic() + REMEMBERED, addresses
        return addresses
