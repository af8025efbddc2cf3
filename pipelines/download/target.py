"""Target: a URL taken apart, as it is asked for."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from pipelines.download.status import Failure

PORTS = {"http": 80, "https": 443}
MAX_URL = 8192  # characters: a data: URL holds a whole picture
_KEPT = "%/:=&?~#+!$,;'@()*[]|"  # characters of a path or query that stay as they are


class Target(NamedTuple):
    """Whom to ask, and for what."""

    scheme: str
    host: str  # ASCII, in lower case
    port: int
    path: str  # with its query, percent-encoded

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port: what a robots.txt speaks for."""
        return f"{self.scheme}://{self.authority}"

    @property
    def url(self) -> str:
        """The whole, without user and password, which are never sent."""
        return self.origin + self.path

    def moved(self, location: str) -> Target:
        """Where a redirect leads. Raises Failure(url)."""
        try:
            return target(urljoin(self.url, location))
        except ValueError as error:
            raise Failure("url", f"{location[:100]!r}: {error}") from error


def target(url: object) -> Target:
    """The URL taken apart. Raises Failure(url)."""
    if not isinstance(url, str) or not 0 < len(url) <= MAX_URL:
        raise Failure("url", f"expected a URL of at most {MAX_URL} characters, found {str(url)[:100]!r}")
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").rstrip("."), parts.port
        if parts.scheme not in PORTS or not host:
            raise Failure("url", f"expected http://HOST or https://HOST, found {url[:100]!r}")
        if not host.isascii():
            host = host.encode("idna").decode()
    except ValueError as error:
        raise Failure("url", f"{url[:100]!r}: {error}") from error
    if any(letter <= " " or letter == "\x7f" for letter in host):
        raise Failure("url", f"expected the name of a host, found {host[:100]!r}")
    path = quote(parts.path or "/", safe=_KEPT) + (f"?{quote(parts.query, safe=_KEPT)}" if parts.query else "")
    return Target(parts.scheme, host, port or PORTS[parts.scheme], path)
