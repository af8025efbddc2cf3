"""A proxy in front of an S3 service that injects faults: so many, on such requests, of such a kind.

    with proxy.before(s3) as faulty:
        faulty.fail("status", path=r"\\.tar", times=2)      # 503 SlowDown, twice
        faulty.fail("reset", method="GET", every=3)         # the connection is reset inside of every third body

The Host header passes unchanged, because it is signed. Plain HTTP, loopback only.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from tests.ceph import S3

Kind = Literal["status", "reset", "lost", "stall", "short", "cut", "trickle", "wrong"]
PIECE = 64 << 10
SLOW_DOWN = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


@dataclass
class Fault:
    """What happens to which requests.

    status: answered with an error, the service never asked. reset: the connection is reset inside of the body. lost: the service has done
    what was asked, and the answer never comes. stall: the body stops, or, where `after` is 0, nothing comes at all. short: the connection
    ends inside of the body that Content-Length promised. cut: fewer bytes, and a Content-Length that says so. trickle: a byte every 50
    ms. wrong: one byte of the body is another.
    """

    kind: Kind
    path: str = ""  # a pattern that the path, with its query, holds
    method: str = ""  # a pattern
    times: int | None = None  # None: for ever
    every: int = 1  # the n-th, the 2n-th, ... of those requests
    status: int = 503
    after: int = 0  # bytes of the body that come as they should
    hits: int = 0  # requests that it happened to
    _seen: int = 0

    def strikes(self, method: str, path: str) -> bool:
        """Whether it happens to this request. Call it once a request, under the proxy's lock."""
        if not re.search(self.path, path) or not re.search(self.method, method) or (self.times is not None and self.hits >= self.times):
            return False
        self._seen += 1
        if self._seen % self.every:
            return False
        self.hits += 1
        return True


@dataclass
class Proxy:
    """A running proxy. `latency`: seconds before each answer. `requests`: method and path of each so far."""

    s3: S3
    endpoint: str = ""
    latency: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0  # bytes of bodies that went to clients
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """Of a client that goes through the proxy."""
        return {**self.s3.environment, "AWS_ENDPOINT_URL": self.endpoint}

    def fail(self, kind: Kind, **rule: Any) -> Fault:
        """Inject a fault from now on: Fault's fields are the rule."""
        fault = Fault(kind, **rule)
        with self.lock:
            self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """No faults any more."""
        with self.lock:
            self.faults.clear()

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets."""
        with self.lock:
            self.requests.append((method, path))
            return next((fault for fault in self.faults if fault.strikes(method, path)), None)


@contextlib.contextmanager
def before(s3: S3) -> Iterator[Proxy]:
    """A proxy in front of a service, gone when this ends."""
    proxy = Proxy(s3)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = _Server(("127.0.0.1", 0), handler)
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="proxy", daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is none of a test's business."""


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def handle(self) -> None:
        self.upstream = http.client.HTTPConnection(self.proxy.s3.endpoint.removeprefix("http://"), timeout=60)
        try:
            super().handle()
        finally:
            self.upstream.close()

    def log_message(self, format: str, *_: Any) -> None:
        """Says nothing."""

    def answer(self) -> None:
        fault = self.proxy.fault(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.proxy.latency:
            self.proxy.stop.wait(self.proxy.latency)
        if fault is not None and fault.kind == "status":
            return self._head(fault.status, [("Content-Type", "application/xml"), ("Retry-After", "1")], SLOW_DOWN)
        answer = self._forwarded(body)
        if fault is not None and (fault.kind == "lost" or (fault.kind == "stall" and not fault.after)):
            answer.read()
            if fault.kind == "stall":
                self.proxy.stop.wait()
            return self._reset()
        self._passed_on(answer, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def _forwarded(self, body: bytes) -> http.client.HTTPResponse:
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                self.upstream.putheader(name, value)
        self.upstream.endheaders(body or None)
        return self.upstream.getresponse()

    def _passed_on(self, answer: http.client.HTTPResponse, fault: Fault | None) -> None:
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in ("connection", "transfer-encoding")]
        if answer.getheader("Content-Length") is None:  # in chunks: the whole is small
            body = answer.read()
            headers.append(("Content-Length", str(len(body))))
        else:
            body = answer
        if fault is not None and fault.kind == "cut":
            whole = body if isinstance(body, bytes) else body.read()
            return self._head(answer.status, [(n, v) for n, v in headers if n.lower() != "content-length"], whole[: fault.after])
        self._head(answer.status, headers)
        pieces = [body] if isinstance(body, bytes) else iter(lambda: answer.read(PIECE), b"")
        if self.command == "HEAD":
            answer.read()  # nothing comes, and the connection is free for the next request
        else:
            self._send(pieces, fault)

    def _send(self, pieces: Any, fault: Fault | None) -> None:
        done = 0
        for piece in pieces:
            if fault is not None and done + len(piece) > fault.after:
                good = max(0, fault.after - done)
                self.wfile.write(piece[:good])
                piece = self._spoilt(piece[good:], fault)
                if piece is None:
                    return
                fault = None if fault.kind == "wrong" else fault
            self.wfile.write(piece)
            done += len(piece)
            self.proxy.sent += len(piece)

    def _spoilt(self, piece: bytes, fault: Fault) -> bytes | None:
        """What goes out instead of these bytes; None where the connection is done with."""
        if fault.kind == "wrong":
            return bytes([piece[0] ^ 0xFF]) + piece[1:]
        if fault.kind == "trickle":
            for at in range(len(piece)):
                self.wfile.write(piece[at : at + 1])
                if self.proxy.stop.wait(0.05):
                    break
            return b""
        if fault.kind == "stall":
            self.proxy.stop.wait()
        if fault.kind == "reset":
            self._reset()
        else:
            self.close_connection = True
        return None

    def _head(self, status: int, headers: list[tuple[str, str]], body: bytes | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())


def wait_until(true: Any, seconds: float = 30) -> None:
    """Until this is true. Fails after so long."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)
