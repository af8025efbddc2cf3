"""The accounts of a data set, read by code that is none of the project's: is every input a record or a reject, once?"""

from __future__ import annotations

import contextlib
import gzip
import json
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow.parquet as pq


class Account(NamedTuple):
    """A finished conversion: its totals, its records' JSON by key, its rejects' reasons by key."""

    totals: dict[str, int]
    records: dict[str, bytes]
    rejects: dict[str, str]
    doubled: int

    def wrong(self) -> Iterator[str]:
        """What does not add up."""
        read, written, rejected = (self.totals[name] for name in ("read", "written", "rejected"))
        if read != written + rejected or written != len(self.records) or rejected != len(self.rejects):
            found = f"{len(self.records)} in the tars, {len(self.rejects)} in the ledger"
            yield f"lost: read {read}, written {written}, rejected {rejected}; {found}"
        both = self.records.keys() & self.rejects.keys()
        if self.doubled or both:
            yield f"doubled: {self.doubled} keys in the tars, {len(both)} as record and reject"
        rows: dict[str, list[int]] = {}
        for key in sorted({**self.records, **self.rejects}):
            unit, _, row = key.partition("-")
            rows.setdefault(unit, []).append(int(row))
        gaps = [unit for unit, found in rows.items() if found != list(range(len(found)))]
        if gaps:
            yield f"lost: rows of unit {gaps[0]} are {rows[gaps[0]]}"


def account(place: Path) -> Account:
    """Of a finished conversion."""
    records: dict[str, bytes] = {}
    doubled = 0
    for path in sorted(place.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    key = member.name.removesuffix(".json")
                    doubled += key in records
                    records[key] = cast(IO[bytes], tar.extractfile(member)).read()
    rejects = pq.read_table(place / "rejects.parquet", use_threads=False).to_pylist()
    found = {row["key"]: row["reason"] for row in rejects}
    return Account(json.loads((place / "manifest.json").read_bytes())["totals"], records, found, doubled + len(rejects) - len(found))


# How many items an input has, by Python's own readers; None where these can not read it, and so can not tell.


def items(source: str, arguments: Sequence[str]) -> int | None:
    """Of the input that these flags name."""
    given: dict[str, list[Path]] = {}
    for flag, value in zip(arguments[::2], arguments[1::2], strict=False):
        given.setdefault(flag, []).append(Path(value))
    with contextlib.suppress(
        ValueError,
        OverflowError,
        OSError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        tarfile.TarError,
        zipfile.BadZipFile,
    ):
        return COUNT[source](given)
    return None


def _llava(given: dict[str, list[Path]]) -> int:
    return sum(_rows(path) for path in given["--annotations"])


def _rows(path: Path) -> int:
    data = path.read_bytes()
    if data.lstrip()[:1] == b"[":
        return len(json.loads(data))
    return sum(1 for line in data.split(b"\n") if line.strip())


def _mmc4(given: dict[str, list[Path]]) -> int:
    (path,) = given["--annotations"]
    data = path.read_bytes()
    if data[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            (name,) = archive.namelist()
            data = archive.read(name)
    elif data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return sum(1 for line in data.split(b"\n") if line.strip())


def _grand(given: dict[str, list[Path]]) -> int:
    (path,) = given["--annotations"]
    if path.is_dir():
        return len(list(path.glob("*.json")))
    with tarfile.open(path, "r:*") as tar:
        return sum(member.isreg() and member.name.endswith(".json") and not Path(member.name).name.startswith(".") for member in tar)


def _laion(given: dict[str, list[Path]]) -> int:
    (folder,) = given["--annotations"]
    return sum(pq.ParquetFile(path).metadata.num_rows for path in folder.glob("*.parquet"))


def _coco(given: dict[str, list[Path]]) -> int:
    seen: set[Any] = set()
    number = 0
    for kind in ("--captions", "--instances", "--keypoints", "--panoptic"):
        here: set[Any] = set()
        for path in given.get(kind, ()):
            for row in json.loads(path.read_bytes())["images"]:
                json.dumps(row, ensure_ascii=False, allow_nan=False).encode()  # what no other parser reads has no id either
                id = row["id"]
                if not isinstance(id, str | int) or isinstance(id, bool) or (isinstance(id, int) and abs(id) >= 1 << 63):
                    raise ValueError(id)
                number += id not in seen or id in here
                here.add(id)
                seen.add(id)
    return number


def _visual_genome(given: dict[str, list[Path]]) -> int:
    (folder,) = given["--annotations"]
    tables = {path.stem: json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}
    number, seen = 0, set()
    for kind in ("image_data", *sorted(set(tables) - {"image_data"})):
        for row in tables.get(kind, ()):
            id = row["image_id"] if row.get("image_id") is not None else row["id"]
            if not isinstance(id, int) or isinstance(id, bool) or abs(id) >= 1 << 63:
                raise ValueError(id)
            number += id not in seen or kind == "image_data"
            seen.add(id)
    return number


COUNT = {"llava": _llava, "mmc4": _mmc4, "grand": _grand, "laion": _laion, "coco": _coco, "visual_genome": _visual_genome}


def samples(place: Path) -> int | None:
    """How many samples the tars of a folder hold, as webdataset groups them; None where Python's tarfile can not read one of them."""
    number = 0
    with contextlib.suppress(tarfile.TarError, ValueError, OverflowError, OSError, EOFError, MemoryError):
        for path in place.glob("*.tar"):
            before = None
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    folder, slash, name = member.name.rpartition("/")
                    key, dot, _ = name.partition(".")
                    if member.isreg() and key and dot and not (member.name.startswith("__") and member.name.endswith("__")):
                        number += before != folder + slash + key
                        before = folder + slash + key
        return number
    return None
