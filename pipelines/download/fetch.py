"""Fetch: one URL to a picture's bytes, or the name of what went wrong.

Honest about who asks (user agent, robots.txt, X-Robots-Tag), patient with a host that asks for it (429 and 503 with Retry-After, within the
shard's deadline), and bounded in everything a stranger's server decides: redirects, bytes, headers, seconds. The seconds hold for the whole
answer, because a server that sends a byte now and then never exceeds a timeout of single reads.
"""

from __future__ import annotations

import contextlib
import email.message
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from pipelines.download.address import Names
from pipelines.download.hosts import Hosts
from pipelines.download.robots import MAX_BYTES as MAX_ROBOTS
from pipelines.download.robots import NAME, Robots
from pipelines.download.status import TRANSIENT, Failure
from pipelines.download.target import Target, target
from schemas import Reject
from schemas.picture import Picture, measure

MAX_BYTES = 32 << 20  # of one picture: twice as many as there are threads may wait to be written
MAX_REDIRECTS = 5
MAX_WAITS = 5  # how often one URL waits because of a Retry-After
OPT_OUT = frozenset(
    ("noai", "noimageai", "noindex", "noimageindex", "none")
)  # img2dataset's disallowed_header_directives; none: noindex too
_MOVED = frozenset((301, 302, 303, 307, 308))
_DUE = 0.1  # seconds between two looks at what is overdue


@dataclass(frozen=True)
class Rules:
    """How URLs are asked for."""

    agent: str  # the User-Agent header
    timeout: float  # seconds of one try
    retries: int  # more tries, of what may pass
    private: bool  # private addresses, too
    insecure: bool  # certificates are not looked at


class Overdue:
    """Shuts connections down when their time is over, whatever their server is doing. One a process, with a thread of its own."""

    def __init__(self) -> None:
        self._ends: dict[socket.socket, float] = {}
        threading.Thread(target=self._watch, name="overdue", daemon=True).start()

    @contextlib.contextmanager
    def at(self, end: float, connection: socket.socket) -> Iterator[None]:
        """Inside of this the connection ends at `end`."""
        self._ends[connection] = end
        try:
            yield
        finally:
            del self._ends[connection]

    def _watch(self) -> None:
        while True:
            time.sleep(_DUE)
            now = time.monotonic()
            for connection, end in list(self._ends.items()):
                if end <= now:
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not SSLSocket's, which takes TLS from under its reader


class Fetcher:
    """Pictures by URL, from several threads."""

    def __init__(self, rules: Rules, hosts: Hosts) -> None:
        self.rules, self._hosts = rules, hosts
        self._names, self._robots, self._overdue = Names(rules.private), Robots(self._robots_txt), Overdue()
        self._tls = ssl.create_default_context()
        if rules.insecure:
            self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE

    def picture(self, url: object, deadline: float) -> tuple[bytes, Picture]:
        """The picture's bytes and what they say of themselves. deadline: of the monotonic clock. Raises Failure."""
        at = target(url)
        tries, waits = self.rules.retries, MAX_WAITS
        while True:
            try:
                return self._followed(at, deadline)
            except Failure as failure:
                pause = min(8.0, 0.5 * 2 ** (self.rules.retries - tries))
                if failure.after is not None and waits and time.monotonic() + failure.after < deadline:
                    waits, pause = waits - 1, 0.0
                elif tries and failure.status in TRANSIENT and failure.after is None and time.monotonic() + pause < deadline:
                    tries -= 1
                else:
                    raise
            time.sleep(pause)

    def _followed(self, at: Target, deadline: float) -> tuple[bytes, Picture]:
        for _ in range(MAX_REDIRECTS + 1):
            self._robots.check(at, deadline)
            answer = self._asked(at, deadline, MAX_BYTES, self._welcome)
            if isinstance(answer, _Body):
                return answer.data, _measured(answer)
            at = at.moved(answer)
        raise Failure("redirects", f"expected at most {MAX_REDIRECTS} redirects, found another one to {at.url[:200]}")

    def _robots_txt(self, at: Target, deadline: float) -> tuple[int, bytes]:
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._asked(at, deadline, MAX_ROBOTS, None)
            if isinstance(answer, _Body):
                return answer.status, answer.data
            at = at.moved(answer)
        return 404, b""  # as the RFC has it

    def _asked(
        self, at: Target, deadline: float, most: int, welcome: Callable[[Target, http.client.HTTPResponse], None] | None
    ) -> _Body | str:
        """One request: the body, or where it has moved to. Without `welcome` any status is one, and a longer body is cut at `most`."""
        with self._hosts.turn(at.host, deadline):
            until = min(time.monotonic() + self.rules.timeout, deadline)
            with _failures(until), contextlib.closing(self._connected(at, until)) as connection, self._overdue.at(until, connection):
                with _response(connection, at, self.rules.agent) as response:
                    location = response.getheader("Location")
                    if response.status in _MOVED and location:
                        return location
                    if welcome is None:
                        return _Body(response.status, "", response.read(most))
                    welcome(at, response)
                    body = _Body(response.status, response.getheader("Content-Type") or "", _whole(response, most))
                if time.monotonic() >= until:  # a body without a length that was shut down looks like one that has ended
                    raise TimeoutError
                return body

    def _connected(self, at: Target, until: float) -> socket.socket:
        connection = self._names.connected(at.host, at.port, until)
        connection.settimeout(self.rules.timeout)
        if at.scheme == "http":
            return connection
        return self._tls.wrap_socket(connection, server_hostname=at.host, do_handshake_on_connect=False)

    def _welcome(self, at: Target, response: http.client.HTTPResponse) -> None:
        """Raises Failure where the answer is none that may be used."""
        if response.status != 200:
            after = _retry_after(response.headers) if response.status in (429, 503) else None
            if after is not None:
                self._hosts.leave(at.host, after)
            raise Failure(f"http_{response.status}", response.reason or "no reason given", after)
        if tag := opted_out(response.headers):
            raise Failure("opt_out", f"X-Robots-Tag: {tag}")


@dataclass(frozen=True)
class _Body:
    status: int
    type: str
    data: bytes


def _response(connection: socket.socket, at: Target, agent: str) -> http.client.HTTPResponse:
    if isinstance(connection, ssl.SSLSocket):
        connection.do_handshake()
    asking = http.client.HTTPConnection(at.host, at.port)
    asking.sock = connection  # already there: the address that was looked at, and no other
    accept = {"Accept": "image/*, */*;q=0.1", "Accept-Encoding": "identity", "Connection": "close"}
    asking.request("GET", at.path, headers={"Host": at.authority, "User-Agent": agent, **accept})
    return asking.getresponse()


def _whole(response: http.client.HTTPResponse, most: int) -> bytes:
    """The body. Raises Failure(too_large), IncompleteRead."""
    if response.length is not None and response.length > most:
        raise Failure("too_large", f"expected at most {most} bytes, found {response.length}")
    data = response.read() if response.length is not None else response.read(most + 1)
    if len(data) > most:
        raise Failure("too_large", f"expected at most {most} bytes, found more")
    return data


def _measured(body: _Body) -> Picture:
    """Raises Failure under the reasons of schemas.picture, content_type where the server did not say that it was a picture."""
    try:
        return measure(body.data)
    except Reject as reject:
        kind = body.type.partition(";")[0].strip().lower()
        if reject.reason == "image_format" and not kind.startswith("image/"):
            raise Failure("content_type", f"expected a picture, found {kind or 'no type'}") from reject
        raise Failure(reject.reason, reject.detail) from reject


def opted_out(headers: email.message.Message) -> str | None:
    """The X-Robots-Tag that asks us, or everybody, not to use this; None where there is none."""
    for tag in headers.get_all("X-Robots-Tag", []):
        name, colon, directives = str(tag).rpartition(":")
        spoken_to = not colon or name.strip().lower() == NAME
        if spoken_to and OPT_OUT & {directive.strip().lower() for directive in directives.split(",")}:
            return str(tag)
    return None


def _retry_after(headers: email.message.Message) -> float | None:
    """Seconds: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    text = str(headers.get("Retry-After") or "").strip()
    if text.isascii() and text.isdecimal():
        return float(min(int(text[:9]), 10**6))
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        when = parsedate_to_datetime(text)
        return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None


@contextlib.contextmanager
def _failures(until: float) -> Iterator[None]:
    """Whatever a stranger's server can provoke, as a Failure; what happens behind `until` is a timeout."""
    try:
        yield
    except Failure:
        raise
    except Exception as error:  # a server must not end the shard of ten thousand others
        if time.monotonic() >= until - _DUE or isinstance(error, TimeoutError):
            raise Failure("timeout", "expected a whole answer in time, found none") from error
        raise Failure(_status(error), f"{type(error).__name__}: {error}") from error


def _status(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "cut_body"
    if isinstance(error, http.client.HTTPException):
        return "http_protocol"
    if isinstance(error, ssl.SSLError):
        return "tls"
    return "connection" if isinstance(error, OSError) else "error"
