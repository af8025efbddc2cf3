"""Batch: URLs through img2dataset's Downloader and Resizer in this process, and what became of each.

Of img2dataset a process of ours uses two seams: the class that writes samples, which a Downloader is given, and the module's function that
fetches a URL, which is replaced. Its sha256 of what came is kept; a hash that the list has is compared where the bytes come in, because
img2dataset takes a row without a hash for one that differs.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa

from pipelines.download.ledger import EXPECTED, Outcome
from pipelines.download.options import Settings
from pipelines.download.outlet import Outlet
from pipelines.download.status import SUCCESS, Failure
from schemas import RequestError
from schemas.picture import Picture

VERSIONS = "img2dataset>=1.45,<2"  # whose Downloader is known
Fetch = Callable[[object], tuple[bytes, Picture]]  # a URL's picture; raises Failure


class Img2dataset:
    """img2dataset's parts, made ready once a process. Raises RequestError where it is not the img2dataset that is known."""

    def __init__(self, settings: Settings, work: Path) -> None:
        self.settings, self._work = settings, work
        _spare(settings.disable_all_reencoding)
        try:
            self.module: Any = importlib.import_module("img2dataset.downloader")
            self.resizer = importlib.import_module("img2dataset.resizer").Resizer(**settings.resizer)
            self.module.download_image_with_retry  # noqa: B018
        except (ImportError, AttributeError, TypeError) as error:
            raise RequestError(_unknown(error)) from error
        except ValueError as error:
            raise RequestError(f"--img2dataset: {error}") from error

    def run(self, rows: pa.Table, outlet: Outlet, fetch: Fetch) -> list[Outcome]:
        """What became of each row (columns url, key, ...), its picture in the outlet. Raises OSError where that can not take it."""
        batch = _Batch(rows, outlet, fetch, self.settings)
        feather = self._work / f"{os.getpid()}.feather"
        columns = [name for name in rows.column_names if name != "key" and not name.startswith(EXPECTED)]
        asked = rows.select(columns)
        with pa.OSFile(str(feather), "wb") as sink, pa.ipc.new_file(sink, asked.schema) as writer:
            writer.write_table(asked)
        self.module.download_image_with_retry = batch.fetch
        self._downloader(batch, columns).download_shard((0, str(feather)))
        (self._work / "00000_stats.json").unlink(missing_ok=True)
        return batch.outcomes()

    def _downloader(self, batch: _Batch, columns: list[str]) -> Any:
        try:
            return self.module.Downloader(
                sample_writer_class=batch.writer,
                resizer=self.resizer,
                thread_count=self.settings.thread_count,
                save_caption="caption" in columns,
                extract_exif=self.settings.extract_exif,
                output_folder=str(self._work),
                column_list=columns,
                timeout=self.settings.timeout,
                number_sample_per_shard=10**9,  # of a key, which here is only the row's number
                oom_shard_count=5,
                compute_hash="sha256",
                verify_hash_type=None,
                encode_format=self.settings.encode_format,
                retries=self.settings.retries,
                user_agent_token=None,
                disallowed_header_directives=None,
            )
        except TypeError as error:
            raise RequestError(_unknown(error)) from error


def _spare(untouched: bool) -> None:
    """Have img2dataset do without what it imports and never calls here: eight seconds of every process become one, or two if it resizes."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the network for news of itself
    modules: dict[str, Any] = sys.modules
    for name in ("wandb", *(["albumentations"] if untouched else [])):
        modules.setdefault(name, ModuleType(name))
    for name in ("torch", "ray", "huggingface_hub"):
        modules.setdefault(name, None)  # as if it were not installed


def _unknown(error: Exception) -> str:
    try:
        found = f"img2dataset {version('img2dataset')}: {error}"
    except ImportError:
        found = str(error)
    return f"downloads: expected {VERSIONS} (pip install 'shardweave[download]'), found {found}"


class _Batch:
    """One call of img2dataset: from its threads' questions to its writer's rows."""

    def __init__(self, rows: pa.Table, outlet: Outlet, fetch: Fetch, settings: Settings) -> None:
        self._keys, self._outlet, self._fetch, self._settings = rows["key"].to_pylist(), outlet, fetch, settings
        self._hash, self._expected = _expected(rows)
        self._came: dict[int, tuple[int, Picture]] = {}  # bytes and picture of what was fetched and is not written yet
        self._found: list[Outcome | None] = [None] * len(self._keys)
        self._broken: OSError | None = None

    def fetch(self, row: tuple[int, object], **_: Any) -> tuple[int, io.BytesIO | None, str | None]:
        """What img2dataset calls `download_image_with_retry`: row number and URL to row number, bytes, error."""
        number, url = row
        try:
            if self._keys[number] is None:
                raise Failure("image_name", "expected the plain name of a file")
            data, picture = self._fetch(url)
            self._compare(number, data)
        except Failure as failure:
            return number, None, str(failure)
        self._came[number] = len(data), picture
        return number, io.BytesIO(data), None

    def _compare(self, number: int, data: bytes) -> None:
        expected = self._expected[number] if self._expected else None
        if expected:
            found = hashlib.new(self._hash, data, usedforsecurity=False).hexdigest()
            if found != expected.strip().lower():
                raise Failure("hash_differs", f"expected {self._hash} {expected[:128]}, found {found}")

    def writer(self, *_: Any, **__: Any) -> _Batch:
        """What img2dataset calls `sample_writer_class`."""
        return self

    def write(self, data: bytes | None, key: str, caption: str | None, row: dict[str, Any]) -> None:
        """What img2dataset calls for each row. What it raises is printed there and passed over: `close` says it again."""
        number = int(key)
        size, picture = self._came.pop(number, (None, None))
        if data is None:
            self._found[number] = _failed(row, size)
            return
        if self._settings.disable_all_reencoding and picture is not None:
            row["width"] = row["original_width"] = picture.width
            row["height"] = row["original_height"] = picture.height
        suffix = picture.format if self._settings.disable_all_reencoding and picture is not None else self._settings.encode_format
        row["key"] = self._keys[number]
        try:
            self._outlet.add(self._keys[number], suffix, data, caption, row)
        except OSError as error:
            self._broken = self._broken or error
        sizes = (row["width"], row["height"], row["original_width"], row["original_height"])
        self._found[number] = Outcome(SUCCESS, None, *sizes, row.get("exif"), row.get("sha256"), size)

    def close(self) -> None:
        """What img2dataset calls behind the last row. Raises OSError where a picture could not be kept."""
        if self._broken is not None:
            raise self._broken

    def outcomes(self) -> list[Outcome]:
        """One a row."""
        return [found or Outcome("not_recorded", "img2dataset gave no result") for found in self._found]


def _expected(rows: pa.Table) -> tuple[str, Sequence[str | None]]:
    """The hash that the list has, and its values."""
    for name in rows.column_names:
        if name.startswith(EXPECTED):
            return name.removeprefix(EXPECTED), rows[name].to_pylist()
    return "", ()


def _failed(row: dict[str, Any], size: int | None) -> Outcome:
    error = row["error_message"] or ""
    if row["status"] == "failed_to_download":
        status, _, error = error.partition(": ")
        return Outcome(status, error, bytes=size)
    return Outcome(row["status"], error[:300], bytes=size)
