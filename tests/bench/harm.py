"""Harm: what happens to the files of a data set, in every format alike.

Tars are cut and flipped at their headers. MDS shards begin with a table of offsets, litdata's chunks hold an Arrow stream with one: an
entry of that table counts as header. The second file is harmed, in the middle of its records.
"""

from __future__ import annotations

import json
import os
import re
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".tar", ".bin", ".mds")
PAYLOAD = 500  # bytes into a picture
_PICTURE = re.compile(rb"\xff\xd8\xff\xfe\x00\x0a\d{8}")  # how the workload's begin


class Middle(NamedTuple):
    """Where a record in the middle of a file lies, in bytes."""

    begin: int
    inside: int  # between its picture and its JSON, or simply inside of it
    header: int  # a byte that says where it is, or what
    payload: int  # of its picture


def files(folder: Path) -> list[Path]:
    """The files that hold records."""
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)


def middle(path: Path) -> Middle:
    """Of a file of any of the formats."""
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        first = next(at for at in range(len(members) // 2, len(members)) if members[at].name.endswith(".jpg"))
        picture, after = members[first], members[first + 1]
        return Middle(picture.offset, after.offset, picture.offset_data - 512, picture.offset_data + picture.size // 2)
    data = path.read_bytes()
    (number,) = struct.unpack_from("<I", data)
    offsets = struct.unpack_from(f"<{number + 1}I", data, 4)
    pictures = [found.start() for found in _PICTURE.finditer(data)]
    at = number // 2
    if offsets[0] < offsets[1]:  # MDS
        picture = data.index(b"\xff\xd8\xff", offsets[at])
        return Middle(offsets[at], (offsets[at] + offsets[at + 1]) // 2, 4 + 4 * at + 1, picture + PAYLOAD)
    return Middle(pictures[at], (pictures[at] + pictures[at + 1]) // 2, _arrow_offset(data, pictures, at) + 1, pictures[at] + PAYLOAD)


def _arrow_offset(data: bytes, pictures: list[int], at: int) -> int:
    """Where the column of the pictures says where this one begins, counted from the first of its batch."""
    for first in pictures[:at]:
        for kind in ("<ii", "<qq"):
            place = data.find(struct.pack(kind, pictures[at] - first, pictures[at + 1] - first))
            if place >= 0:
                return place
    raise ValueError("expected Arrow's offsets of the pictures, found none")


def cut_at_a_record(folder: Path) -> None:
    path = files(folder)[1]
    os.truncate(path, middle(path).begin)


def cut_inside_a_record(folder: Path) -> None:
    path = files(folder)[1]
    os.truncate(path, middle(path).inside)


def flip_header(folder: Path) -> None:
    path = files(folder)[1]
    _flip(path, middle(path).header)


def flip_payload(folder: Path) -> None:
    path = files(folder)[1]
    _flip(path, middle(path).payload)


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


def lose_a_shard(folder: Path) -> None:
    files(folder)[1].unlink()


def swap_shards(folder: Path) -> None:
    found = files(folder)
    _swap(found[1], found[-1])


def _swap(one: Path, other: Path) -> None:
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def swap_indexes(folder: Path) -> bool:
    """The index of one shard in the place of another's. False where the format has none."""
    tars = files(folder)
    one, other = tars[1], tars[-1]
    for suffix in (".parquet", ".tar.idx"):
        if one.with_suffix(suffix).exists():
            _swap(one.with_suffix(suffix), other.with_suffix(suffix))
            return True
    for name, rows, fields in (
        ("wids.json", "shardlist", ("nsamples",)),
        ("index.json", "chunks", ("filename",)),
        ("index.json", "shards", ("raw_data",)),
    ):
        path = folder / name
        if path.exists() and rows in (found := json.loads(path.read_text())):
            for field in fields:
                found[rows][1][field], found[rows][-1][field] = found[rows][-1][field], found[rows][1][field]
            path.unlink()  # it may be a link to another's
            path.write_text(json.dumps(found))
            return True
    return False


HARMS: dict[str, Callable[[Path], object]] = {
    "cut at a header boundary": cut_at_a_record,
    "cut between the members of a record": cut_inside_a_record,
    "one bit of a header": flip_header,
    "one bit of a payload": flip_payload,
    "a shard missing": lose_a_shard,
    "two shards swapped": swap_shards,
    "the index of another shard": swap_indexes,
}
