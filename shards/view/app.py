"""The server: the pages and the pictures on them, on the loopback address alone.

Nothing is changed by any request. A request names records by number or key and files not at all, so no path can lead elsewhere; one that
was addressed to another host's name is refused, because a page on the web can make its own name point here.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from schemas import RecordError, Reject, RequestError, ShardError, ShardweaveError
from schemas.mask import MaskRefused
from shards.view import filter as filters
from shards.view import paint
from shards.view.filter import number
from shards.view.pages import HERE, SECONDS, Pages
from shards.view.paint import Painted

HOST = "127.0.0.1"
ADDRESSED = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?")
AT_A_TIME = 64  # connections
THUMB = 480  # pixels of the longest side
HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
STATIC = {"view.css": "text/css", "view.js": "text/javascript"}


class Server:
    """The pages' routes."""

    def __init__(self, pages: Pages) -> None:
        self.pages, self.view = pages, pages.view
        self._static = {name: (HERE / "static" / name).read_bytes() for name in STATIC}

    def app(self) -> Any:
        """The ASGI application."""
        found: dict[str, Callable[[Request], Response]] = {
            "/": self.browse,
            "/record/{number:int}": self.record,
            "/key/{key}": self.key,
            "/go": self.go,
            "/random": self.random,
            "/step/{number:int}": self.step,
            "/numbers": self.numbers,
            "/rejects": self.rejects,
            "/reject/{number:int}": self.reject,
            "/run": self.run,
            "/picture/{number:int}/{at:int}": self.picture,
            "/thumb/{number:int}": self.thumb,
            "/mask/{number:int}/{at:int}": self.mask,
            "/map/{number:int}/{at:int}": self.map,
            "/static/{name}": self.static,
        }
        routes = [Route(path, endpoint, methods=["GET"]) for path, endpoint in found.items()]
        handlers: Any = {HTTPException: self._refused, LookupError: self._missing, ShardweaveError: self._failed, MaskRefused: self._failed}
        return _guarded(Starlette(routes=routes, exception_handlers=handlers))

    def browse(self, request: Request) -> Response:
        """Records."""
        query = request.query_params
        backwards = query.get("by") == "-1"
        return HTMLResponse(self.pages.browse(filters.read(query), number(query.get("at", "")) or 0, backwards))

    def record(self, request: Request) -> Response:
        """One record."""
        return HTMLResponse(self.pages.record(request.path_params["number"], filters.read(request.query_params)))

    def key(self, request: Request) -> Response:
        """The record of a key, wherever it stands."""
        return RedirectResponse(f"/record/{self.view.desk.number(request.path_params['key'])}")

    def go(self, request: Request) -> Response:
        """The record of a number or a key, as somebody typed it."""
        wanted = request.query_params.get("to", "").strip()
        at = number(wanted)
        try:
            at = self.view.desk.number(wanted) if at is None else at
            self.view.desk.where(at)
        except LookupError as error:
            raise HTTPException(404, f"There is no record of the key or number {wanted[:100]!r}.") from error
        return RedirectResponse(f"/record/{at}")

    def random(self, request: Request) -> Response:
        """Some record that passes the filter, the next one behind a drawn number."""
        return RedirectResponse(f"/step/{self.pages.somewhere()}?{filters.read(request.query_params).query()}")

    def step(self, request: Request) -> Response:
        """The first record from this number on, or back, that passes the filter."""
        wanted, start = filters.read(request.query_params), request.path_params["number"]
        by = -1 if request.query_params.get("by") == "-1" else 1
        found = self.view.desk.find(wanted, start, most=1, seconds=SECONDS, step=by)
        if found.numbers:
            return RedirectResponse(f"/record/{found.numbers[0]}?{wanted.query()}")
        if found.resume is None:
            return HTMLResponse(
                self.pages.message("No more records", f"None {'before' if by < 0 else 'from'} {start:,} passes the filter.")
            )
        text = f"None of the records looked at so far passes the filter. Next: {found.resume:,}."
        return HTMLResponse(self.pages.message("Nothing yet", text, go_on=f"/step/{found.resume}?{wanted.query(by=by)}"))

    def numbers(self, _: Request) -> Response:
        """Distributions, as far as they are counted."""
        return HTMLResponse(self.pages.numbers())

    def rejects(self, request: Request) -> Response:
        """The ledger."""
        query = request.query_params
        return HTMLResponse(self.pages.rejects(query.get("reason"), number(query.get("skip", "")) or 0))

    def reject(self, request: Request) -> Response:
        """The picture of a reject."""
        if self.view.upstream is None:
            raise HTTPException(404, "no --upstream was given")
        data = self.view.upstream.picture(self.view.ledger.row(request.path_params["number"]))
        if data is None:
            raise HTTPException(404, "its picture was not found")
        return _picture(Painted(data, paint.sniffed(data)))

    def run(self, _: Request) -> Response:
        """The run."""
        return HTMLResponse(self.pages.run())

    def picture(self, request: Request) -> Response:
        """A record's image as it is stored."""
        return _picture(paint.stored(self.view.desk.sample(request.path_params["number"]).image(request.path_params["at"])))

    def thumb(self, request: Request) -> Response:
        """A record's first image, small."""
        return _picture(paint.resized(self.view.desk.sample(request.path_params["number"]).image(0), THUMB))

    def mask(self, request: Request) -> Response:
        """A region's mask."""
        at = request.path_params["at"]
        found = self.view.record(request.path_params["number"]).regions[at].mask
        if found is None:
            raise HTTPException(404, "this region has no mask")
        return _picture(paint.drawn_mask(found, at))

    def map(self, request: Request) -> Response:
        """A label map."""
        sample, at = self.view.desk.sample(request.path_params["number"]), request.path_params["at"]
        return _picture(paint.drawn_map(sample.map(at), self.view.record(request.path_params["number"]).maps[at]))

    def static(self, request: Request) -> Response:
        """The style and the script, and no other file."""
        name = request.path_params["name"]
        if name not in STATIC:
            raise HTTPException(404, "there is no such file")
        return Response(self._static[name], media_type=STATIC[name])

    async def _refused(self, request: Request, error: HTTPException) -> Response:
        return self._told(request, error.status_code, error.detail)

    async def _missing(self, request: Request, error: LookupError) -> Response:
        return self._told(request, 404, f"There is no such record: {error.args[0] if error.args else ''}")

    async def _failed(self, request: Request, error: Exception) -> Response:
        wrong = isinstance(error, (ShardError, RecordError, Reject, MaskRefused))
        return self._told(request, 422 if wrong else 502, str(error))

    def _told(self, _: Request, status: int, text: str) -> Response:
        title = {404: "Not found", 405: "Not allowed", 422: "Damaged", 502: "The store did not answer"}.get(status, "That did not work")
        return HTMLResponse(self.pages.message(title, text[:1000], status), status)


def _picture(painted: Painted) -> Response:
    return Response(painted.data, media_type=painted.type, headers={"cache-control": "private, max-age=60"})


Asgi = Callable[[Any, Any, Any], Awaitable[None]]


def _guarded(app: Asgi) -> Asgi:
    """The application for requests to this machine by its own name, its answers with HEADERS."""

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((name.encode(), value.encode()) for name, value in HEADERS.items())]
            await send(message)

        known = len(hosts) == 1 and ADDRESSED.fullmatch(hosts[0])
        answer: Asgi = app if known else Response("This server answers to 127.0.0.1 and localhost.", 421)
        return await answer(scope, receive, with_headers)

    return guarded


def listen(port: int) -> socket.socket:
    """A socket on the loopback address; port 0: any that is free. Raises RequestError where the port is taken."""
    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise RequestError(f"--port {port}: expected a free port, found {error.strerror}") from error
    # Its connections have it too. Without, a body waits 40 ms for the acknowledgement of its head.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def server(pages: Pages) -> uvicorn.Server:
    """What answers: `run(sockets=[listening])` until interrupted, or until its `should_exit`."""
    return uvicorn.Server(
        uvicorn.Config(
            Server(pages).app(),
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=AT_A_TIME,
            timeout_keep_alive=30,
            lifespan="off",
        )
    )
