"""The ledger: NNNNN.parquet, a row a URL in the order of the list. It is what img2dataset leaves there, with two columns more.

    the list's own columns (url, caption, ...), expected_md5 or the like where the list has a hash
    key, status ("success" or why not: pipelines.download.status), error_message, width, height, original_width, original_height, exif,
    sha256 (of the bytes that came), bytes (that came), attempts (passes in which it was asked for)

Written last, by one rename: what it says is what counts. Its metadata has what a run wants to know without reading rows. No times: the same
answers give the same bytes, whatever was killed in between.
"""

from __future__ import annotations

import errno
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.download.status import SUCCESS, Retry
from schemas import SourceError
from shards import durable

META = b"shardweave"
EXPECTED = "expected_"  # and the name of a hash


class Outcome(NamedTuple):
    """What became of a URL."""

    status: str
    error_message: str | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    exif: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    attempts: int = 1


RESULTS = pa.schema(
    [
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("attempts", pa.int32()),
    ]
)


class Standing(msgspec.Struct):
    """What a ledger says of its shard as a whole."""

    counts: dict[str, int]  # by status
    once: dict[str, int]  # of those that were asked for once
    tar: int | None  # bytes of the tar

    @property
    def urls(self) -> int:
        """Its rows."""
        return sum(self.counts.values())

    @property
    def failed(self) -> bool:
        """Whether no URL at all gave a picture: that is a failure, and not done."""
        return bool(self.counts) and not self.counts.get(SUCCESS)


def path(folder: Path, number: int, suffix: str = ".parquet") -> Path:
    """A file of this shard."""
    return folder / f"{number:05d}{suffix}"


def standing(folder: Path, number: int) -> Standing | None:
    """What the shard's ledger says; None where there is none, or none of ours."""
    try:
        said = (pq.read_schema(path(folder, number)).metadata or {}).get(META)
        return None if said is None else msgspec.json.decode(said, type=Standing)
    except (pa.ArrowException, msgspec.DecodeError, ValueError, OverflowError):
        return None
    except OSError as error:
        if error.errno not in (None, errno.ENOENT):  # pyarrow has none for a damaged file
            raise
        return None


def read(folder: Path, number: int) -> pa.Table:
    """Its rows. Raises SourceError."""
    try:
        with pq.ParquetFile(path(folder, number)) as file:
            return file.read().combine_chunks()
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
        raise SourceError(f"{path(folder, number)}: expected the ledger of a download, found {error}"[:500]) from error


def joined(rows: pa.Table, outcomes: Sequence[Outcome]) -> pa.Table:
    """The list's rows, and what became of them."""
    for at, field in enumerate(RESULTS):
        rows = rows.append_column(field, pa.array([outcome[at] for outcome in outcomes], field.type))
    return rows


def merged(rows: pa.Table, chosen: Sequence[int], outcomes: Sequence[Outcome]) -> pa.Table:
    """The rows, with what became of those that were asked for again in its place."""
    mask = np.zeros(rows.num_rows, bool)
    mask[list(chosen)] = True
    for at, field in enumerate(RESULTS):
        values = pa.array([outcome[at] for outcome in outcomes], field.type)
        if field.name == "attempts":
            values = pc.call_function("add", [rows["attempts"].filter(pa.array(mask)).combine_chunks(), values])
        column = pc.call_function("replace_with_mask", [rows[field.name].combine_chunks(), pa.array(mask), values])
        rows = rows.set_column(rows.column_names.index(field.name), field, column)
    return rows


def write(folder: Path, number: int, rows: pa.Table, tar: int | None) -> Standing:
    """Commit a shard: its rows with what became of them."""
    once = rows["status"].filter(pc.call_function("equal", [rows["attempts"], 1]))
    found = Standing(counts=_counted(rows["status"]), once=_counted(once), tar=tar)
    stream = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata({META: msgspec.json.encode(found)}), stream, compression="zstd")
    durable.write(path(folder, number), stream.getvalue())
    return found


def stats(folder: Path, number: int, said: Standing) -> None:
    """NNNNN_stats.json, as img2dataset has it, without times; made again where there is none."""
    successes, resize = said.counts.get(SUCCESS, 0), said.counts.get("failed_to_resize", 0)
    counts = {"count": said.urls, "successes": successes, "failed_to_download": said.urls - successes - resize, "failed_to_resize": resize}
    target = path(folder, number, "_stats.json")
    durable.aside(target).write_text(json.dumps({**counts, "status_dict": said.counts}, indent=4))
    durable.aside(target).replace(target)  # not synced: what the ledger says is what counts


def again(rows: pa.Table, retry: Retry) -> list[int]:
    """The rows that are asked for again."""
    both = zip(rows["status"].to_pylist(), rows["attempts"].to_pylist(), strict=True)
    return [at for at, (status, attempts) in enumerate(both) if status != SUCCESS and retry.wants(status, attempts)]


def duplicates(folder: Path, numbers: Sequence[int], scratch: Path) -> int:
    """Pictures whose bytes came more than once, less one of each: by the first 64 bits of their sha256, in bounded memory."""
    parts = [scratch / f"hashes-{part:02x}" for part in range(256 if len(numbers) > 100 else 1)]
    files = [part.open("wb") for part in parts]
    try:
        for hashes in _hashes(folder, numbers):
            of_part = (hashes % len(files)).astype(np.int64)
            for part in np.unique(of_part):
                files[part].write(hashes[of_part == part].tobytes())
    finally:
        for file in files:
            file.close()
    return sum(_repeated(part) for part in parts)


def _hashes(folder: Path, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    for number in numbers:
        with pq.ParquetFile(path(folder, number)) as file:
            texts = file.read(["sha256"])["sha256"].drop_null().to_pylist()
        yield np.array([int(text[:16], 16) for text in texts], np.uint64)


def _repeated(part: Path) -> int:
    hashes = np.fromfile(part, np.uint64)
    part.unlink()
    return len(hashes) - len(np.unique(hashes))


def _counted(statuses: pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted(Counter(statuses.to_pylist()).items()))
