"""LAION by img2dataset: shards of a tar, a parquet file and statistics. https://github.com/rom1504/img2dataset#output-format"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from demo import photos
from demo.photos import Deck, View
from demo.trees.tree import Planted, Tree, as_json

PLANTED = Planted(
    written=24,
    images=24,
    rejected={
        "failed_to_download": 2,  # img2dataset's own words
        "failed_to_resize": 1,
        "image_missing": 1,  # the row says success, the tar has no such picture
        "image_truncated": 1,
    },
    dropped={"notes": {"unnamed_picture": 1}},  # in the tar, and in no row
    references=26,
    missing=1,
    unreferenced=1,
)

COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in ("caption", "url", "key", "status", "error_message")),
        *((name, pa.int32()) for name in ("width", "height", "original_width", "original_height")),
        *((name, pa.string()) for name in ("exif", "sha256")),
    ]
)
FAILED = (
    ("failed_to_download", "HTTP Error 404: Not Found"),
    ("failed_to_download", "<urlopen error [Errno -2] Name or service not known>"),
    ("failed_to_resize", "Image decoding error"),
)
Row = dict[str, Any]


def write(folder: Path, deck: Deck) -> Tree:
    """The tree, under `folder`."""
    files: dict[Path, bytes] = {}
    for shard in range(2):
        rows, members = _downloaded(shard, deck.deal(12 + 2 * shard))
        if shard:
            rows += [_failed(shard, len(rows) + at, *failure) for at, failure in enumerate(FAILED)]
            _spoil(shard, members)
        stem = folder / f"{shard:05d}"
        files[stem.with_suffix(".tar")] = _packed(members)
        files[stem.with_suffix(".parquet")] = _parquet(rows)
        files[stem.with_name(f"{stem.name}_stats.json")] = as_json(_stats(rows))
    photos.write(files)
    return Tree("laion", folder, (("--annotations", folder),))


def _downloaded(shard: int, views: list[View]) -> tuple[list[Row], dict[str, bytes]]:
    """Rows of the parquet, and the members of the tar. Both are in the order in which downloads ended, not in that of the list."""
    rows, members = [], {}
    order = sorted(range(len(views)), key=lambda at: (at * 5) % len(views))
    for at in order:
        view, key = views[at], f"{shard:05d}{at:04d}"
        picture = view.bytes()
        row = _row(shard, at, view.captions()[0], "success", None)
        row |= {"width": view.width, "height": view.height, "original_width": 4 * view.width, "original_height": 4 * view.height}
        row |= {"exif": "{}", "sha256": hashlib.sha256(b"before it was resized" + picture).hexdigest()}  # of other bytes than these
        rows.append(row)
        members |= {f"{key}.jpg": picture, f"{key}.txt": row["caption"].encode(), f"{key}.json": as_json(row)}
    return rows, members


def _spoil(shard: int, members: dict[str, bytes]) -> None:
    """A picture that the tar lacks, one that was cut off, and one that no row names."""
    members["999999999.jpg"] = members.pop(f"{shard:05d}0003.jpg")
    members[f"{shard:05d}0004.jpg"] = photos.cut_off(members[f"{shard:05d}0004.jpg"])


def _failed(shard: int, at: int, status: str, error: str) -> Row:
    return _row(shard, at, "A picture that nobody could get.", status, error)


def _row(shard: int, at: int, caption: str, status: str, error: str | None) -> Row:
    row: Row = dict.fromkeys(COLUMNS.names)
    url = f"http://example.org/{shard}/{at}.jpg"
    return row | {"caption": caption, "url": url, "key": f"{shard:05d}{at:04d}", "status": status, "error_message": error}


def _parquet(rows: list[Row]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, COLUMNS), stream)
    return stream.getvalue()


def _stats(rows: list[Row]) -> dict[str, Any]:
    status = Counter(row["status"] for row in rows)
    return {
        "count": len(rows),
        "successes": status["success"],
        "failed_to_download": status["failed_to_download"],
        "failed_to_resize": status["failed_to_resize"],
        "duration": 0.5,
        "start_time": 1_700_000_000.0,
        "end_time": 1_700_000_000.5,
        "status_dict": dict(Counter(row["error_message"] or "success" for row in rows)),
    }


def _packed(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()
