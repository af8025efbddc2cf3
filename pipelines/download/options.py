"""Options of a download: its own flags, and those of img2dataset under their names."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipelines.download import status
from pipelines.source import option
from schemas import RequestError
from shards.place import at

CHOICES = {
    "resize_mode": ("no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"),
    "encode_format": ("jpg", "png", "webp"),
    "upscale_interpolation": ("nearest", "linear", "bilinear", "cubic", "bicubic", "area", "lanczos", "lanczos4"),
    "downscale_interpolation": ("nearest", "linear", "bilinear", "cubic", "bicubic", "area", "lanczos", "lanczos4"),
}
RUNNING = ("processes_count", "thread_count", "timeout", "retries", "ignore_ssl_certificate")  # what decides no byte


@dataclass(frozen=True, kw_only=True)
class Settings:
    """img2dataset's options, under its names and with its defaults: https://github.com/rom1504/img2dataset#api

    Unless one of those that resize or encode is given, pictures are kept as they came. `retries` are of what may pass only, `timeout` is
    for all of a picture, not for each read; EXIF is not extracted.
    """

    processes_count: int = os.cpu_count() or 1
    thread_count: int = 256
    timeout: int = 10
    retries: int = 0
    ignore_ssl_certificate: bool = False
    number_sample_per_shard: int = 10_000
    extract_exif: bool = False
    image_size: int = 256
    resize_mode: str = "border"
    resize_only_if_bigger: bool = False
    upscale_interpolation: str = "lanczos"
    downscale_interpolation: str = "area"
    encode_quality: int = 95
    encode_format: str = "jpg"
    skip_reencode: bool = False
    disable_all_reencoding: bool = False
    min_image_size: int = 0
    max_image_area: float = math.inf
    max_aspect_ratio: float = math.inf

    def __post_init__(self) -> None:
        for name in ("processes_count", "thread_count", "timeout", "number_sample_per_shard", "image_size"):
            if getattr(self, name) < 1:
                raise RequestError(f"--img2dataset {name}: expected a number above 0, found {getattr(self, name)}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise RequestError(f"--img2dataset {name}: expected one of {', '.join(known)}, found {getattr(self, name)!r}")

    @property
    def resizer(self) -> dict[str, Any]:
        """What img2dataset's Resizer is given."""
        names = [field.name for field in fields(self)]
        return {name: getattr(self, name) for name in names[names.index("image_size") :]}

    @property
    def deciding(self) -> dict[str, Any]:
        """What decides the pictures' bytes and where they stand."""
        return {name: str(value) if value == math.inf else value for name, value in asdict(self).items() if name not in RUNNING}


def settings(given: Sequence[str]) -> Settings:
    """The options in texts NAME=VALUE. Raises RequestError."""
    kinds = {field.name: str(field.type) for field in fields(Settings)}
    values = dict(_parsed(text, kinds) for text in given)
    untouched = not set(values) & set(Settings().resizer)
    return Settings(**{**values, **({"disable_all_reencoding": True} if untouched else {})})


def _parsed(text: str, kinds: dict[str, str]) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise RequestError(f"--img2dataset: expected NAME=VALUE with one of {', '.join(kinds)}, found {text!r}{hint}")
    try:
        return name, _VALUES[kinds[name]](value)
    except (ValueError, KeyError) as error:
        raise RequestError(f"--img2dataset {name}: expected a value of type {kinds[name]}, found {value!r}") from error


_VALUES = {
    "int": int,
    "float": float,
    "str": str,
    "bool": lambda text: {"true": True, "1": True, "false": False, "0": False}[text.lower()],
}


@dataclass(frozen=True, kw_only=True)
class Download:
    """What every download can be told. The fields are flags of the sources that download."""

    downloads: Path | None = option("folder that keeps the downloads, for other conversions, too (default: PLACE-downloads)", default=None)
    img2dataset: tuple[str, ...] = option("an option of img2dataset, NAME=VALUE: image_size, resize_mode, processes_count, ...", default=())
    retry: str = option(
        "ask again for URLs that failed: all, none, transient, or statuses such as timeout,http_503 (default: once, for what may pass)",
        default="",
    )
    contact: str = option("a mail address or page that goes into the user agent: whom to ask about these requests", default="")
    host_requests: int = option("requests at once to one host (default: 16)", default=16)
    host_rate: int = option("requests a second to one host (default: 50)", default=50)
    shard_deadline: int = option("seconds for the URLs of a shard (default: 1800)", default=1800)
    allow_private: bool = option("also ask servers of this machine and of private networks", default=False)

    def __post_init__(self) -> None:
        for name in ("host_requests", "host_rate", "shard_deadline"):
            if getattr(self, name) < 1:
                raise RequestError(f"--{name.replace('_', '-')}: expected a number above 0, found {getattr(self, name)}")
        if not self.contact.isprintable() or not self.contact.isascii() or len(self.contact) > 200:
            raise RequestError(f"--contact: expected a mail address or page, found {self.contact[:100]!r}")
        _ = self.retried, self.settings

    @property
    def settings(self) -> Settings:
        """img2dataset's options."""
        return settings(self.img2dataset)

    @property
    def retried(self) -> status.Retry:
        """What --retry means."""
        return status.retry(self.retry)

    def folder(self, out: str) -> Path:
        """Where the downloads go. Raises RequestError where that is not on a local disk."""
        if self.downloads is not None:
            if ":/" in str(self.downloads):
                raise RequestError(f"--downloads: expected a local folder, found {self.downloads}")
            return self.downloads
        place = at(out).folder
        if place is None:
            raise RequestError(f"--downloads: expected a local folder for the downloads beside --out {out}, found none")
        place = place.absolute()
        return place.with_name(f"{place.name or 'out'}-downloads")
