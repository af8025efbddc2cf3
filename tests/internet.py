"""The tests' internet: HTTP servers on loopback whose every answer a test has written down.

with internet.server() as site:
    url = site.give("/a.jpg", Answer(503), Answer(photo()))      # an error, and from the second request on a picture
    site.asked("/a.jpg")                                         # how often
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Answer:
    """One answer. `Answer(503)` is an error, `Answer(data)` a picture."""

    what: bytes | int = b""
    headers: dict[str, str] = field(default_factory=dict)
    type: str | None = "image/jpeg"
    after: float = 0.0  # seconds before it begins
    drip: float = 0.0  # seconds between two of its bytes
    cut: int | None = None  # the connection ends behind so many bytes of the body
    reset: bool = False  # the connection is reset instead
    raw: bytes | None = None  # what is sent instead of an answer

    @property
    def status(self) -> int:
        """Of HTTP."""
        return self.what if isinstance(self.what, int) else 200

    @property
    def body(self) -> bytes:
        """What is sent."""
        return b"none" if isinstance(self.what, int) else self.what


def moved(to: str) -> Answer:
    """A redirect."""
    return Answer(302, {"Location": to})


class Request(NamedTuple):
    """A request as it came."""

    path: str
    headers: dict[str, str]
    at: float  # seconds, of the monotonic clock


@dataclass
class Site:
    """A running server."""

    origin: str = ""
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    running: int = 0
    most: int = 0  # requests at once so far
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    def give(self, path: str, *answers: Answer) -> str:
        """The path's answers, one a request, of which the last is given again and again; its URL."""
        self.answers[path] = list(answers)
        return self.origin + path

    def asked(self, path: str) -> int:
        """How often it was asked for."""
        return sum(request.path == path for request in self.requests)

    def answer(self, path: str, headers: dict[str, str]) -> Answer:
        """The next answer of a path; 404 where there is none."""
        with self.lock:
            self.requests.append(Request(path, headers, time.monotonic()))
            given = self.answers.get(path, [Answer(404)])
            return given.pop(0) if len(given) > 1 else given[0]

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Inside of this a request is running."""
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            yield
        finally:
            with self.lock:
                self.running -= 1


@contextlib.contextmanager
def server(address: str = "127.0.0.1", certificate: Path | None = None) -> Iterator[Site]:
    """A site on this loopback address, gone when this ends. certificate: with its key, for https."""
    site = Site()
    running = _Server((address, 0), type("Handler", (_Handler,), {"site": site}))
    site.origin = f"http{'s' if certificate else ''}://{address}:{running.server_address[1]}"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        running.socket = context.wrap_socket(running.socket, server_side=True)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, name="internet", daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.stop.set()
        running.shutdown()
        running.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is none of a test's business."""


class _Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def log_message(self, format: str, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        answer = self.site.answer(self.path, dict(self.headers.items()))
        with self.site.counted():
            self.site.stop.wait(answer.after)
            self.close_connection = True
            if answer.raw is not None:
                self.wfile.write(answer.raw)
            elif answer.reset:
                self._reset()
            else:
                self._send(answer)

    def _send(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in {"Content-Type": answer.type, "Content-Length": str(len(answer.body)), **answer.headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        body = answer.body[: answer.cut]
        for at in range(0, len(body), 1 if answer.drip else max(1, len(body))):
            self.wfile.write(body[at : at + 1] if answer.drip else body)
            if self.site.stop.wait(answer.drip):
                break

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
