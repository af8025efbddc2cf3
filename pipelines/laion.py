"""LAION: captioned pictures, as img2dataset leaves them. https://github.com/rom1504/img2dataset#output-format

Goes in: an output folder in the webdataset format: for each shard `00000.tar` (KEY.jpg|png|webp, KEY.json, KEY.txt), `00000.parquet`
(one row a URL, those that failed too) and `00000_stats.json`. A row of the parquet, shortened:

    {"caption": "a bus", "url": "https://...", "key": "000000012", "status": "success", "error_message": null, "width": 384, "height": 256,
     "original_width": 640, "original_height": 427, "exif": "{}", "sha256": "7ad4...", "similarity": 0.31, "LANGUAGE": "en", "NSFW": ...}

Comes out: one record a row: a `text` turn with the picture and then its caption, untouched (a null caption: the tar's .txt; none there
either: the picture alone). A row that failed is a reject whose reason is img2dataset's own status and whose detail is its error message.
`origin` is the URL, `similarity` and `language` those columns. Kept in meta: id (the key), url, original_width, original_height, and
SAMPLE_ID, LICENSE, NSFW, pwatermark, punsafe where there are such columns. Dropped: exif, sha256 (it is of the bytes that were
downloaded, not of those that were stored: it proves nothing), other columns, the tar's .json (the same row again).

Decisions:

* A shard is a unit, in order of name. Its rows stand in the parquet's order; the tar's members in order of completion, found by key.
* A shard without its tar or parquet, or with rows but no success at all, stops the run: img2dataset takes both for done.
* img2dataset writes tars in place, so a kill leaves a cut one that looks real. What it lost is rejected by name (`image_missing`), and the
  shard counts as a note (`tar_cut`). Notes too: pictures that no row names (`unnamed_picture`), stats of another number of rows
  (`stats_differ`), no stats (`no_stats`: the shard was never finished).
* A second row with the same key is a reject: which of the two the picture belongs to can not be known.
* A picture of another size than its row says is a reject: the tar and the parquet are of different runs.
* Other files in the folder (sizes.json, _tmp) are nobody's business.
* --urls has pipelines.download make such a folder first: its statuses are finer (http_404, timeout, opt_out), its rows in the list's order.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import nearby
from pipelines.download.options import Download
from pipelines.download.run import download
from pipelines.download.urls import UrlList
from pipelines.inputs import Each, share, spread
from pipelines.source import Row, Sample, Tally, option, verify
from pipelines.stores import MAX_BYTES, SUFFIXES, tar_bytes
from schemas import Reject, RequestError, SourceError, record
from schemas.picture import measure
from shards.foreign_tar import Member, TarDamage, members

KEPT = ("url", "original_width", "original_height", "SAMPLE_ID", "LICENSE", "NSFW", "pwatermark", "punsafe")
READ = ("key", "status", *KEPT, "caption", "error_message", "width", "height", "similarity", "LANGUAGE")
MAX_META = 2000  # characters of a string that is kept: a data: URL holds a whole picture
PICTURES = SUFFIXES - {""}
MAX_ROWS = 2_000_000  # of a shard, whose keys are held together; img2dataset's have 10,000
BATCH = 1000  # rows that are decoded at a time
ALL = sys.maxsize  # rows
MAX_STATS = 1 << 20  # bytes
_SHARD = re.compile(r"(\d+)\.(tar|parquet)")
_STATUS = re.compile(r"[a-z][a-z0-9_]{0,39}")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")  # nolang is none


class Shard(NamedTuple):
    """A unit: one tar and its parquet, of which the first `rows` rows are taken."""

    stem: Path  # without suffix
    rows: int

    @property
    def tar(self) -> Path:
        """Its pictures."""
        return self.stem.with_name(f"{self.stem.name}.tar")

    @property
    def parquet(self) -> Path:
        """Its rows."""
        return self.stem.with_name(f"{self.stem.name}.parquet")

    @property
    def stats(self) -> Path:
        """Its counts, written last."""
        return self.stem.with_name(f"{self.stem.name}_stats.json")


class Item(NamedTuple):
    """A row of the parquet, and what the tar holds under its key."""

    fields: dict[str, Any]
    again: bool  # an earlier row has the key
    contents: Contents


class _Stats(msgspec.Struct):
    count: int
    successes: int


@dataclass(frozen=True, kw_only=True)
class Urls(Download):
    """URL lists that are downloaded before they are converted: pipelines.download."""

    urls: tuple[Path, ...] = option("download these URL lists (.parquet, or folders of them) first, by img2dataset", default=())
    url_column: str = option("their column of URLs, in any case (default: url)", default="url")
    caption_column: str = option("their column of captions (default: caption or text, if there is one)", default="")

    def fetched(self, source: Laion, out: str, limit: int | None) -> Laion:
        """The source as it reads what has been downloaded; itself where no list is given. Raises RequestError, SourceError."""
        if not self.urls:
            return source
        if source.annotations:
            raise RequestError("--urls: expected either URL lists or --annotations, found both")
        folder = self.folder(out)
        download(UrlList(self.urls, self.url_column, self.caption_column, self.settings.number_sample_per_shard, limit), folder, self)
        return replace(source, annotations=(folder,))


@dataclass(frozen=True, kw_only=True)
class Laion:
    """LAION and other URL lists that img2dataset has downloaded: one record a row, every URL that failed a reject.

    example: laion --annotations laion400m-data
    download first: laion --urls laion400m-meta --img2dataset image_size=256 --contact data@lab.example --out out/laion
    """

    name: ClassVar[str] = "laion"
    fetch: ClassVar[type[Urls]] = Urls

    annotations: tuple[Path, ...] = option("folder that img2dataset wrote: NNNNN.tar and NNNNN.parquet", reads="annotations", default=())
    verify: str = verify()

    def units(self, limit: int | None) -> Sequence[Shard]:
        """One shard a unit. Only what a limit needs is opened, and the first shard, to see that it is one. Raises SourceError."""
        if limit is None:
            _rows(self._stems[0])
            return [Shard(stem, ALL) for stem in self._stems]
        units = []
        for stem in self._stems:
            if limit > 0:
                units.append(Shard(stem, min(limit, rows := _rows(stem))))
                limit -= rows
        return units

    def look(self, units: Sequence[Shard], each: Each) -> None:
        """See Source. Where img2dataset's counts speak of successes, they are believed until the shard is converted."""
        size = share(len(units))
        parts = (units[start : start + size] for start in range(0, len(units), size))
        for _ in spread(_look, parts, len(units), each):
            pass

    def rows(self, unit: Shard) -> Iterator[Row]:
        """The parquet's rows. Raises SourceError where the shard is not whole, or all failed."""
        with nearby.briefly():
            contents = Contents(unit)
            seen: set[str] = set()
            for number, fields in enumerate(_fields(unit)):
                key, success = fields["key"], fields["status"] == "success"
                again = success and key in seen
                if success:
                    seen.add(key)
                yield Row(self._label(unit.parquet), number, Item(fields, again, contents))

    def sample(self, row: Row) -> Sample:
        """The row's record. Raises Reject."""
        fields, again, contents = row.data
        if fields["status"] != "success":
            raise _failed(fields)
        url, key = fields["url"], fields["key"]
        if key is None or not isinstance(url, str | None):
            raise Reject("schema", f"expected a key and a url, found {key!r} and {str(url)[:100]!r}")
        if again:
            raise Reject("duplicate_key", f"expected keys that differ, found {key[:100]!r} again")
        data = contents.picture(key)
        picture = measure(data, self.verify)
        _same_size(fields, picture.width, picture.height)
        image = record.image(
            width=picture.width,
            height=picture.height,
            format=picture.format,
            bytes=len(data),
            origin=url if url and len(url) <= MAX_META else None,
            similarity=_similarity(fields.get("similarity")),
        )
        counts = Tally()
        caption = _caption(fields, contents)
        parts = [record.image_part(0), *([record.text_part(caption)] if caption else [])]
        made = record.record(
            self.name,
            images=[image],
            turns=[record.turn("text", parts)],
            language=_language(fields.get("LANGUAGE")),
            meta=_meta(fields, counts),
        )
        counts.update(contents.notes())
        return Sample(made, [data], counts=counts)

    def references(self) -> Iterator[Sequence[str]]:
        """For every row that succeeded, its member; [] for those that failed."""
        for shard in self._shards():
            names = {_parted(member.name)[0]: member.name for member in _pictures(shard.tar)}
            rows = list(_fields(shard, ("key", "status")))
            _not_all_failed(shard, Counter(fields["status"] for fields in rows))
            for fields in rows:
                key = fields["key"]
                success = fields["status"] == "success"
                yield [f"{self._label(shard.tar)}/{names.get(key, f'{key}.jpg')}"] if success else []

    def names(self) -> Iterator[tuple[str, int]]:
        """Every picture of every tar, as SHARD.tar/MEMBER."""
        for shard in self._shards():
            for member in _pictures(shard.tar):
                yield f"{self._label(shard.tar)}/{member.name}", member.size

    def _shards(self) -> Iterator[Shard]:
        """All of them, each near while it is looked at."""
        for stem in self._stems:
            with nearby.briefly():
                yield Shard(stem, ALL)

    @cached_property
    def _stems(self) -> list[Path]:
        if not self.annotations:
            raise RequestError("laion: expected --annotations FOLDER, or, with convert, --urls FILE; found neither")
        return [stem for folder in self.annotations for stem in _stems(folder)]

    def _label(self, file: Path) -> str:
        """The file's name; with its folder's, where there are several."""
        return file.name if len(self.annotations) == 1 else f"{file.parent.name}/{file.name}"


class Contents:
    """What the tar of a shard holds, by key: its headers only, bytes when they are asked for."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._pictures: dict[str, Member] = {}
        self._texts: dict[str, Member] = {}
        self._notes = Tally()
        self._cut = ""
        rows = list(_fields(shard._replace(rows=ALL), ("key", "status")))
        _not_all_failed(shard, Counter(fields["status"] for fields in rows))
        named = {fields["key"] for fields in rows if fields["status"] == "success" and fields["key"]}
        self._read(named)
        stats = _stats(shard)
        self._notes.note("notes", "no_stats", int(stats is None))
        self._notes.note("notes", "stats_differ", int(stats is not None and stats.count != len(rows)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_bytes"}

    def _read(self, named: Set[str]) -> None:
        try:
            for member in _members(self.shard.tar):
                key, suffix = _parted(member.name)
                if suffix == ".txt":
                    self._texts[key] = member
                elif suffix in PICTURES:
                    unknown = key not in named or self._pictures.setdefault(key, member) is not member
                    self._notes.note("notes", "unnamed_picture", int(unknown))
        except TarDamage as damage:
            self._cut = str(damage)
            self._notes.note("notes", "tar_cut")
        if named and not self._pictures:
            raise SourceError(
                f"{nearby.called(self.shard.tar)}: expected {len(named)} pictures that its parquet names, found none of them{self._why}"
            )

    @property
    def _why(self) -> str:
        return f" (cut off: {self._cut})" if self._cut else ""

    @cached_property
    def _bytes(self) -> mmap.mmap | bytes:
        return tar_bytes(nearby.near(self.shard.tar))

    def picture(self, key: str) -> bytes:
        """Its bytes. Raises Reject: image_missing, image_bytes."""
        member = self._pictures.get(key)
        if member is None:
            raise Reject("image_missing", f"expected {key[:100]} in {self.shard.tar.name}, found nothing{self._why}")
        if member.size > MAX_BYTES:
            raise Reject("image_bytes", f"{member.name}: expected at most {MAX_BYTES} bytes, found {member.size}")
        return self._bytes[member.offset : member.offset + member.size]

    def text(self, key: str) -> str:
        """Its .txt, empty where there is none. Raises Reject(caption)."""
        member = self._texts.get(key, Member("", 0, 0, 0))
        try:
            return self._bytes[member.offset : member.offset + member.size].decode()
        except UnicodeDecodeError as error:
            raise Reject("caption", f"{member.name}: expected UTF-8, found {error}"[:200]) from error

    def notes(self) -> Tally:
        """What there is to say of the shard as a whole; said once."""
        notes, self._notes = self._notes, Tally()
        return notes


def _stems(folder: Path) -> list[Path]:
    """The shards of a folder, without suffix, in order of name. Raises SourceError where one lacks its tar or parquet."""
    try:
        names = nearby.top(folder)
    except OSError as error:
        raise SourceError(f"{nearby.called(folder)}: expected a folder that img2dataset wrote, found {error.strerror}") from error
    found = {name for name in names if _SHARD.fullmatch(name)}
    if not found:
        listed = ", ".join(names[:5]) or "nothing"
        raise SourceError(f"{nearby.called(folder)}: expected img2dataset's shards (00000.tar with 00000.parquet), found {listed}"[:500])
    stems = sorted({name.partition(".")[0] for name in found}, key=lambda stem: (int(stem), stem))
    for stem in stems:
        for name, other in ((f"{stem}.tar", f"{stem}.parquet"), (f"{stem}.parquet", f"{stem}.tar")):
            if name not in found:
                raise SourceError(f"{nearby.called(folder / name)}: expected it beside {other}, found nothing")
    return [folder / stem for stem in stems]


def _rows(stem: Path) -> int:
    """How many rows a shard has. Raises SourceError where its parquet is none of img2dataset's."""
    with nearby.briefly(), closing(_opened(Shard(stem, 0))) as opened:
        return opened.metadata.num_rows


def _look(shards: Sequence[Shard]) -> None:
    """Raise SourceError where all rows of one have failed."""
    for shard in shards:
        stats = _stats(shard)
        if not (stats and stats.successes):
            with nearby.briefly():
                rows = _fields(shard._replace(rows=ALL), ("status",))
                _not_all_failed(shard, Counter(fields["status"] for fields in rows))


def _not_all_failed(shard: Shard, statuses: Counter[Any]) -> None:
    """Raise SourceError where they did."""
    if statuses and not statuses["success"]:
        failures = ", ".join(f"{status} {number}" for status, number in statuses.most_common(5))
        found = f"all {statuses.total()} rows failed ({failures}): download it again"
        raise SourceError(f"{nearby.called(shard.stem)}: expected at least one picture, found that {found}")


def _stats(shard: Shard) -> _Stats | None:
    """None where there are none that can be read."""
    try:
        return msgspec.json.decode(nearby.read("", str(shard.stats), MAX_STATS), type=_Stats)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _opened(shard: Shard) -> pq.ParquetFile:
    with _parquet(shard):
        opened = pq.ParquetFile(nearby.near(shard.parquet))
    if (rows := opened.metadata.num_rows) > MAX_ROWS:
        raise SourceError(f"{nearby.called(shard.parquet)}: expected at most {MAX_ROWS} rows, found {rows}")
    columns = {field.name: field.type for field in opened.schema_arrow}
    if "url" not in columns or not all(_is_text(columns.get(name)) for name in ("key", "status")):
        found = ", ".join(f"{name} ({type})" for name, type in columns.items())
        raise SourceError(f"{nearby.called(shard.parquet)}: expected img2dataset's columns url, key and status, found {found}"[:500])
    return opened


def _is_text(type: pa.DataType | None) -> bool:
    return type is not None and (pa.types.is_string(type) or pa.types.is_large_string(type))


@contextmanager
def _parquet(shard: Shard) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise SourceError(f"{nearby.called(shard.parquet)}: expected a parquet file, found {error}"[:500]) from error


def _fields(shard: Shard, wanted: Sequence[str] = READ) -> Iterator[dict[str, Any]]:
    """The first rows of its parquet, with those of the columns that there are, read batch by batch."""
    with _parquet(shard), closing(_opened(shard)) as opened:
        columns = [name for name in wanted if name in opened.schema_arrow.names]
        batches = opened.iter_batches(BATCH, columns=columns, use_threads=False)
        number = 0
        for fields in islice((fields for batch in batches for fields in _plain(batch)), shard.rows):
            number += 1
            yield fields
        stated = min(shard.rows, opened.metadata.num_rows)
        if number < stated:  # a damaged footer may state rows that no row group has
            raise SourceError(f"{nearby.called(shard.parquet)}: expected {stated} rows, as its footer says, found {number}")


def _plain(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows. Whether a text is UTF-8 pyarrow only finds when it is asked for it: a row with one that is none costs no other."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        columns = [_lenient(column) for column in batch.columns]
        return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _lenient(column: pa.Array) -> list[Any]:
    if not _is_text(column.type):
        return column.to_pylist()
    values = column.view(pa.binary() if pa.types.is_string(column.type) else pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in values]  # which no record takes: text_unicode


def _members(tar: Path) -> Iterator[Member]:
    try:
        yield from members(tar_bytes(nearby.near(tar)), Counter())
    except OSError as error:
        raise SourceError(f"{nearby.called(tar)}: expected a readable tar, found {error.strerror}") from error


def _pictures(tar: Path) -> Iterator[Member]:
    """The pictures of a tar, as far as it goes."""
    with suppress(TarDamage):  # `check` counts what is not there as missing
        for member in _members(tar):
            if _parted(member.name)[1] in PICTURES:
                yield member


def _parted(member: str) -> tuple[str, str]:
    """Key and suffix of a member's name."""
    key, suffix = os.path.splitext(member.removeprefix("./"))
    return key, suffix.lower()


def _failed(fields: dict[str, Any]) -> Reject:
    status, detail = fields["status"], " ".join(f"{fields.get('error_message')}: {fields['url']}".split())
    if isinstance(status, str) and _STATUS.fullmatch(status):
        return Reject(status, detail)
    return Reject("status_unknown", f"expected a status, found {str(status)[:100]!r}; {detail}")


def _same_size(fields: dict[str, Any], width: int, height: int) -> None:
    said = fields.get("width"), fields.get("height")
    if None not in said and said != (width, height):
        raise Reject("size_differs", f"expected {said[0]} x {said[1]}, found {width} x {height}")


def _caption(fields: dict[str, Any], contents: Contents) -> str:
    caption = fields.get("caption")
    if caption is None:
        return contents.text(fields["key"])
    if not isinstance(caption, str):
        raise Reject("schema", f"expected a caption, found {str(caption)[:100]!r}")
    return caption


def _similarity(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _language(value: Any) -> str | None:
    return value if isinstance(value, str) and _LANGUAGE.fullmatch(value) else None


def _meta(fields: dict[str, Any], counts: Tally) -> dict[str, Any]:
    found = {"id": fields["key"], **{name: fields.get(name) for name in KEPT}}
    long = [name for name, value in found.items() if isinstance(value, str) and len(value) > MAX_META]
    counts.note("mended", "meta_dropped", len(long))
    return {name: value for name, value in found.items() if isinstance(value, str | int | float) and name not in long}
