"""Robots: what the robots.txt of an origin allows us, by urllib.robotparser: https://www.rfc-editor.org/rfc/rfc9309

Asked for once an origin and process. 401 and 403 disallow everything, other 4xx allow it, as urllib.robotparser has it; an error of the
server's means that nothing may be asked for now.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from urllib.robotparser import RobotFileParser

from pipelines.download.status import Failure
from pipelines.download.target import Target

NAME = "shardweave"  # what a robots.txt may call us
MOST = 16 << 20  # bytes of robots.txt that are remembered, and a thousand for each origin
MAX_BYTES = 512_000  # of a robots.txt: as many as the RFC asks for
PATIENCE = 60.0  # seconds for another thread's answer

Ask = Callable[[Target, float], tuple[int, bytes]]  # robots.txt of an origin, by a deadline: status and body


class Robots:
    """From several threads."""

    def __init__(self, ask: Ask) -> None:
        self._ask, self._lock = ask, threading.Lock()
        self._known: dict[str, Future[RobotFileParser | None]] = {}
        self._sizes: dict[str, int] = {}

    def check(self, at: Target, deadline: float) -> None:
        """Raises Failure: robots_txt where this may not be asked for; what the asking gave where it failed."""
        parser = self._parser(at, deadline)
        if parser is not None and not parser.can_fetch(NAME, at.url):
            raise Failure("robots_txt", f"{at.origin}/robots.txt disallows {at.path[:200]}")

    def _parser(self, at: Target, deadline: float) -> RobotFileParser | None:
        with self._lock:
            first = at.origin not in self._known
            answer = self._known.setdefault(at.origin, Future())
        if not first:
            return _waited(answer, at)
        try:
            answer.set_result(self._asked(at, deadline))
        except Failure as failure:
            answer.set_exception(failure)  # for those who wait; the next one asks again
            with self._lock:
                self._known.pop(at.origin, None)
        return answer.result()

    def _asked(self, at: Target, deadline: float) -> RobotFileParser | None:
        status, body = self._ask(at._replace(path="/robots.txt"), deadline)
        self._remember(at.origin, len(body) + 1000)
        if status >= 500 or status == 429:
            raise Failure("robots_unreachable", f"{at.origin}/robots.txt: HTTP {status}")
        if status in (401, 403):
            body = b"User-agent: *\nDisallow: /"
        elif status != 200:
            return None
        parser = RobotFileParser()
        try:
            parser.parse(body[:MAX_BYTES].decode("utf-8", "replace").splitlines())
        except ValueError:  # a Crawl-delay of digits that are no number
            return None
        return parser

    def _remember(self, origin: str, size: int) -> None:
        """Forget the oldest others, where there are too many."""
        with self._lock:
            self._sizes[origin] = size
            while sum(self._sizes.values()) > MOST:
                oldest = next(iter(self._sizes))
                del self._sizes[oldest]
                self._known.pop(oldest, None)


def _waited(known: Future[RobotFileParser | None], at: Target) -> RobotFileParser | None:
    try:
        return known.result(PATIENCE)
    except TimeoutError as error:
        raise Failure("timeout", f"{at.origin}/robots.txt: no answer within {PATIENCE:.0f} s") from error
    except Failure as failure:
        raise Failure(failure.status, failure.detail) from failure
