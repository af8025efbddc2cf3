"""A bucket: a place that is a prefix of an object store, through obstore. https://developmentseed.org/obstore/

Every request has a deadline (shards.retry). obstore's own retries are off, but for the parts of a multipart upload, which only obstore
sees: they are bounded by the same deadline, so that a part that fails costs that part. A whole object is read in pieces, so that no
request is longer than what its timeout stands for.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from schemas import ShardweaveError, StoreError
from shards import credentials
from shards.retry import STALL, Passing, deadline, request_timeout, tried
from shards.sink import Buffer

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, ObjectStore

PIECE = 8 << 20  # bytes of a request
PARTS = 4  # of an upload, at a time
LONGEST = 1024  # bytes of a key: S3's and Azure's and Google's limit
_MAX_PARTS = 9000  # of an upload: S3 allows 10,000
T = TypeVar("T")


class Bucket:
    """A prefix of an object store as a Place. Raises StoreError, FileNotFoundError."""

    folder = None

    def __init__(self, url: str) -> None:
        """url: s3://BUCKET/PREFIX, gs:// or az://; of what `place.at` lets pass."""
        self.url = url

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def read(self, name: str, limit: int | None = None) -> bytes:
        """See Place."""
        import obstore

        def ask() -> bytes | int:
            try:
                found = obstore.get(self._client, name, options={"range": (0, PIECE)})  # a range's answer states the size, too
            except Exception as error:
                if _status(error) == 416:  # it is empty
                    return b""
                raise
            size = found.meta["size"]
            if size > PIECE:
                return size
            data = bytes(found.bytes())
            if len(data) != size:
                raise Passing(f"{len(data)} of {size} bytes")
            return data

        found = self._tried("read", name, ask)
        return found if isinstance(found, bytes) else b"".join(map(bytes, self._pieces(name, 0, min(found, limit or found))))

    def read_range(self, name: str, offset: int, length: int) -> Buffer:
        """See Place."""
        import obstore

        if length <= 0:
            return b""

        def ask() -> Buffer:
            try:
                found = memoryview(obstore.get_range(self._client, name, start=offset, length=length))
            except Exception as error:
                if _status(error) == 416:  # it ends before
                    return b""
                raise
            if len(found) < length and self.size(name) >= offset + length:
                raise Passing(f"{len(found)} of {length} bytes")
            return found

        return self._tried(f"read {length} bytes of", name, ask)

    def size(self, name: str) -> int:
        """See Place."""
        import obstore

        return self._tried("size of", name, lambda: obstore.head(self._client, name)["size"])

    def version(self, name: str) -> tuple[int, str]:
        """See Place."""
        import obstore

        found = self._tried("size of", name, lambda: obstore.head(self._client, name))
        return found["size"], f"{found['e_tag']} {found['last_modified'].isoformat()}"

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See Place."""
        return ((entry["path"], entry["size"]) for entry in self._listed(prefix))

    def modified(self, prefix: str = "") -> Iterator[tuple[str, float]]:
        """See Place."""
        return ((entry["path"], entry["last_modified"].timestamp()) for entry in self._listed(prefix))

    def _listed(self, prefix: str) -> Iterator[ObjectMeta]:
        """What the store lists, in order of name. A page that fails is asked for again, behind the last name that came."""
        import obstore

        parent = prefix.rpartition("/")[0] or None
        pages: Iterator[Any] | None = None
        last: str | None = None

        def page() -> Any:
            nonlocal pages
            try:
                pages = pages or iter(obstore.list(self._client, parent, offset=last, chunk_size=1000))
                return next(pages, None)
            except Exception:
                pages = None
                raise

        while found := self._tried("list", parent or "", page):
            for entry in found:
                if entry["path"].startswith(prefix):
                    yield entry
                last = entry["path"]

    def write(self, name: str, data: bytes) -> None:
        """See Place."""
        import obstore

        self._tried("write", name, lambda: obstore.put(self._client, name, data, use_multipart=False))

    def create(self, name: str, data: bytes) -> bool:
        """See Place."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        tries = 0

        def ask() -> bool:
            nonlocal tries
            tries += 1
            try:
                obstore.put(self._client, name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return tries > 1 and self._holds(name, data)  # a first try whose answer was lost meets its own object at the next
            return True

        return self._tried("create", name, ask)

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return self.read(name) == data
        except FileNotFoundError:
            return False

    def upload(self, name: str, path: Path) -> None:
        """See Place."""
        import obstore

        size = path.stat().st_size
        part = max(PIECE, -(-size // _MAX_PARTS))
        put = self._uploader
        self._tried("upload", name, lambda: obstore.put(put, name, path, chunk_size=part, max_concurrency=PARTS))

    def stream(self, name: str, offset: int = 0) -> Iterator[Buffer]:
        """See Place."""
        return self._pieces(name, offset, self.size(name))

    def _pieces(self, name: str, start: int, end: int) -> Iterator[Buffer]:
        for at in range(start, end, PIECE):
            length = min(PIECE, end - at)
            piece = self.read_range(name, at, length)
            if len(piece) != length:
                raise StoreError(f"{self.url}/{name}: read: expected {end} bytes, found it replaced by a shorter object meanwhile")
            yield piece

    def remove(self, name: str) -> None:
        """See Place."""
        import obstore

        try:
            self._tried("remove", name, lambda: obstore.delete(self._client, name))
        except FileNotFoundError:  # some stores say so
            return

    @cached_property
    def _client(self) -> ObjectStore:
        return _connected(self.url, 0)

    @cached_property
    def _uploader(self) -> ObjectStore:
        """The same, whose parts are tried again one by one."""
        return _connected(self.url, 1000)

    def _tried(self, verb: str, name: str, ask: Callable[[], T]) -> T:
        """What `ask` gives; what the store said against it as Passing, FileNotFoundError or StoreError."""
        where = f"{self.url}/{name}" if name else self.url
        what = f"{where}: {verb.removesuffix(' of')}"
        _not_forked(what)
        if len(where.split("/", 3)[-1].encode("utf-8", "replace")) > LONGEST:
            raise FileNotFoundError(errno.ENAMETOOLONG, "no such object, the name is too long", where)

        def asked() -> T:
            try:
                return ask()
            except (Passing, ShardweaveError):
                raise
            except Exception as error:
                raise _judged(error, where, what) from error

        return tried(asked, what)


def _connected(url: str, retries: int) -> ObjectStore:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    timeout = request_timeout()
    client: ClientConfig = {
        "allow_http": True,  # where an endpoint is given that has no TLS
        "timeout": timedelta(seconds=timeout),
        "read_timeout": timedelta(seconds=min(STALL, timeout / 2)),
        "connect_timeout": timedelta(seconds=min(5.0, timeout / 2)),
    }
    config = credentials.config(url)
    backoff: Any = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 2}
    retry: Any = {"max_retries": retries, "backoff": backoff, "retry_timeout": timedelta(seconds=deadline() - timeout)}
    try:
        return from_url(url, config=config or None, client_options=client, retry_config=retry)  # type: ignore[call-overload]
    except BaseError as error:
        raise StoreError(f"{url}: expected what its client needs (environment or profile), found: {_said(error)}") from error


_process: list[int] = []  # the process whose obstore runs: its threads do not live on in a forked child, which would wait for ever


def _not_forked(what: str) -> None:
    if not _process:
        _process.append(os.getpid())
    if _process[0] != os.getpid():
        raise StoreError(
            f"{what}: expected a spawned process, found one forked from a process that has used object storage:"
            " its client does not live on in it (start it by spawn or forkserver; DataLoader: multiprocessing_context='forkserver')"
        )


def _judged(error: Exception, where: str, what: str) -> Exception:
    """The error to raise for what obstore raised: Passing where another try may help."""
    from obstore.exceptions import BaseError

    said = _said(error)
    if "NoSuchUpload" in said:  # the answer that said that it is complete was lost
        return Passing(said)
    if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in said:
        return FileNotFoundError(errno.ENOENT, "no such object", where)
    if isinstance(error, ValueError):  # no object can have such a name
        return FileNotFoundError(errno.ENOENT, "no such object", where)
    if not isinstance(error, BaseError | FileNotFoundError):
        return error
    if any(sign in str(error) for sign in _NO_CREDENTIALS):
        return StoreError(f"{what}: expected credentials (environment or profile), found none")
    status = _status(error)
    passing = status is None or status >= 500 or status in (408, 409, 425, 429) or any(code in said for code in _PASSING)
    if passing and not _refused(error):
        return Passing(said)
    return StoreError(f"{what}: the store said: {said}")


_PASSING = ("RequestTimeout", "XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody")  # of status 400: bytes were lost on the way

# What obstore does without: it asks the machine's metadata service, which answers nobody, or with no keys.
_NO_CREDENTIALS = ("Missing AccessKeyId", "Missing SecretAccessKey", "169.254.169.254", "metadata.google.internal")


def _refused(error: Exception) -> bool:
    from obstore import exceptions

    kinds = ("PermissionDeniedError", "UnauthenticatedError", "NotSupportedError", "InvalidPathError", "UnknownConfigurationKeyError")
    return isinstance(error, tuple(getattr(exceptions, kind) for kind in kinds))


def _status(error: Exception) -> int | None:
    found = re.search(r"status code: (\d{3})|status: (\d{3})\b", str(error))
    return int(found[1] or found[2]) if found else None


def _said(error: Exception) -> str:
    """What the store said, in one line: status, code and message. Nothing else of its answer, which may repeat the request's headers."""
    text, _, debug = str(error).partition("\n\nDebug source")
    code, message = (re.search(f"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message"))
    line = " ".join(re.sub(r"<.*", "", text, flags=re.DOTALL).split())
    line = re.sub(r"^.*?Server returned non-2xx status code: ", "", line).rstrip(": ")
    line = re.sub(r"(https?://[^\s?]*)\?\S*", r"\1", line)
    if "status code" not in text and (causes := re.findall(r'(?:message|error): "([^"]*)"|kind: (TimedOut|Timeout)', debug)):
        line += f" ({' '.join(filter(None, causes[-1]))})"
    parts = [line, *(found[1].strip() for found in (code, message) if found and found[1].strip())]
    return ": ".join(parts)[:500]
