"""Status: what became of a URL. `success`, or a short name that is counted; the sentence behind it stands in error_message."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from schemas import RequestError

SUCCESS = "success"
TRANSIENT = frozenset(
    (
        "name_resolution",  # there is no such name, or no network
        "connection",  # refused, reset, unreachable
        "timeout",  # not all there within `timeout` seconds
        "deadline",  # the shard's deadline came before its turn
        "cut_body",  # fewer bytes than Content-Length said
        "http_protocol",  # an answer that is not HTTP
        "http_408",
        "http_425",
        "http_429",
        "http_500",
        "http_502",
        "http_503",
        "http_504",
        "robots_unreachable",  # robots.txt answered with an error of the server's: nothing may be asked for until it does
        "not_recorded",  # img2dataset gave no result
    )
)
LASTING = frozenset(
    (
        "url",  # no http or https URL
        "private_address",  # of this machine or its network
        "tls",
        "redirects",  # too many, or in a circle
        "robots_txt",
        "opt_out",  # X-Robots-Tag: noai, noimageai, noindex, noimageindex
        "content_type",  # text, a page
        "too_large",
        "image_empty",
        "image_format",
        "image_header",
        "image_truncated",
        "image_bomb",
        "image_name",  # MMC4's name of it is no file name
        "hash_differs",
        "failed_to_resize",
        "error",
    )
)
_HTTP = re.compile(r"http_[1-5]\d\d")


class Failure(Exception):
    """Why a URL gave no picture. after: seconds that the host asked to be left alone."""

    def __init__(self, status: str, detail: str, after: float | None = None) -> None:
        shown = "".join(letter if letter.isprintable() else "?" for letter in " ".join(detail.split()))
        self.status, self.detail, self.after = status, shown[:300], after
        super().__init__(f"{status}: {self.detail}")


class Retry(NamedTuple):
    """Which failed URLs are asked for again."""

    statuses: frozenset[str] | None  # None: all
    once: bool  # only those that were asked for once

    def wants(self, status: str, attempts: int) -> bool:
        """Whether a URL of this status, asked for so often, is asked for again."""
        known = self.statuses is None or status in self.statuses
        return status != SUCCESS and known and not (self.once and attempts > 1)

    def of(self, counts: Mapping[str, int], once: Mapping[str, int]) -> int:
        """How many there are, of counts by status, and of those that were asked for once."""
        return sum(number for status, number in (once if self.once else counts).items() if self.wants(status, 1))


def retry(text: str) -> Retry:
    """What --retry means. Raises RequestError."""
    named = {"": Retry(TRANSIENT, True), "transient": Retry(TRANSIENT, False), "all": Retry(None, False), "none": Retry(frozenset(), True)}
    if text in named:
        return named[text]
    statuses = frozenset(name.strip() for name in text.split(","))
    for status in sorted(statuses):
        if status not in TRANSIENT | LASTING and not _HTTP.fullmatch(status):
            known = ", ".join(sorted(TRANSIENT | LASTING))
            raise RequestError(f"--retry: expected transient, all, none or statuses (http_NNN, {known}), found {status!r}")
    return Retry(statuses, False)
