"""MMC4: web documents whose pictures are matched to sentences. https://github.com/allenai/mmc4

Goes in: shards of JSON documents, one a line, zipped or plain (`docs_no_face_shard_17_v2.jsonl.zip`, `shard_17.zip`, `.jsonl`,
`.jsonl.gz`), and the pictures that MMC4's script downloaded. A row, shortened:

    {"text_list": ["Lock the door.", "Press the switch."], "url": "http://...",
     "image_info": [{"image_name": "b9040a0dbb22.jpg", "raw_url": "http://...", "face_detections": null,
                     "matched_text_index": 1, "matched_sim": 0.277}],
     "similarity_matrix": [[0.243, 0.277]], "could_have_url_duplicate": 0}

Two descendants, made for OpenFlamingo, are read from JSONL too: documents with pixels (`image_info[i].image_base64`), and ChatGPT
sequences: {"is_gpt": ..., "example": "See _!_IMAGE1_!_ here.", "image_map": {"_!_IMAGE1_!_": {"base64_image": ...}}}.

Comes out: one record a document. One `text` turn: a part per sentence (a space appended to all but the last), each picture directly
before its sentence, several of one sentence in upstream order. `images` keeps upstream order; `similarity` is that of picture and
sentence. Kept in meta: url, could_have_url_duplicate, raw_urls (one an image), unplaced, and the similarity matrix (a row an image) if
asked for. Dropped: face_detections.

Decisions:

* `matched` takes upstream's matched_text_index. `lsa` is what OpenFlamingo trains on since August 2023 (one picture a sentence at most),
  `argmax` what its released weights were trained on. All see only the pictures that are there, after --min-image-bytes, as OpenFlamingo.
* A picture without a sentence (left over by lsa, or an index outside the text) stands first, is counted and listed in meta.unplaced.
* A document all of whose pictures are bad is a reject: what is left is no longer interleaved. One that never had any is kept.
* MMC4's script names a folder by the shard's position in the list it was given, missing shards included; others by the shard's number.
  A wrong guess would lose every picture in silence: each shard's first documents are looked up, and a layout that finds none of their
  pictures where another finds them stops the run.
* 14 shards never existed (README of allenai/mmc4): where one is named, it is passed over and keeps its position, and so does its gap in
  a folder. A list of files is the shell's business: --annotations=docs_shard_{0..99}_v2.jsonl.zip gives a hundred flags.
* --download fetches raw_url of every picture first, into the same folders and names; what fails stands in a ledger beside them.
* Python writes NaN into JSON: read as null, so that a bad similarity only hurts who needs it.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import io
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, cast

import msgspec
import numpy as np
import pyarrow as pa

from pipelines import nearby
from pipelines.download.options import Download
from pipelines.download.outlet import IMAGES
from pipelines.download.run import download
from pipelines.images import Found, Images
from pipelines.rows import BOM, decode, decode_nan, once
from pipelines.source import Row, Sample, Tally, few, option, verify
from pipelines.stores import safe
from pipelines.stores import url as url_of
from schemas import Part, Reject, RequestError, SourceError, record
from schemas.picture import measure
from shards.layouts.openflamingo_mmc4 import Picture

LAYOUTS = ("shard", "position", "flat")
ASSIGNMENTS = ("matched", "lsa", "argmax")
NEVER_EXISTED = frozenset((3218, 3267, 5064, 5146, 7119, 8991, 9750, 11899, 15127, 15252, 16996, 17369, 17499, 17818))
SUFFIXES = (".zip", ".jsonl", ".jsonl.gz")
MAX_LINE = 64 << 20  # bytes of one document; with pixels inside they are large
MAX_SKIPPED = 1 << 30  # bytes of a longer line that are passed over to find the next
MAX_META = 60_000  # bytes: format 1 allows 64,000
SNIFFED, LOOKED_UP = 10, 100  # documents
_NUMBER = re.compile(r"shard_(\d+)")
_PLACEHOLDER = re.compile(r"(_!_IMAGE\d+_!_)")
# NotImplementedError is a RuntimeError; a name in a zip that is no UTF-8 is a ValueError.
_BROKEN_FILE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError, ValueError, OverflowError)


class Document(msgspec.Struct):
    """A line of a shard: a document, or (is_gpt, whatever its value) a ChatGPT sequence."""

    text_list: list[str] | None = None
    image_info: list[Picture] | None = None
    similarity_matrix: msgspec.Raw = msgspec.Raw(b"null")
    url: str | None = None
    could_have_url_duplicate: int | bool | None = None
    is_gpt: Any = msgspec.UNSET
    example: str | None = None
    image_map: dict[str, Picture] | None = None


class Named(msgspec.Struct, gc=False):
    """Of a picture, only what it is called and whether its pixels stand in the line."""

    image_name: str | None = None
    image_base64: msgspec.Raw = msgspec.Raw(b"null")
    base64_image: msgspec.Raw = msgspec.Raw(b"null")


class Address(Named, gc=False):
    """Of a picture, where it was found, too."""

    raw_url: str | None = None


class Addresses(msgspec.Struct):
    """Of a document, only its pictures and where they were found."""

    image_info: list[Address] | None = None
    image_map: dict[str, Address] | None = None


class Names(msgspec.Struct):
    """Of a document, only its pictures."""

    image_info: list[Named] | None = None
    image_map: dict[str, Named] | None = None


_document = msgspec.json.Decoder(Document)
_matrix = msgspec.json.Decoder(list[list[float | None]])
_names = msgspec.json.Decoder(Names)
_addressed = msgspec.json.Decoder(Addresses)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Shard(NamedTuple):
    """A unit: one file, its position in the list of all, and how many of its documents are wanted (None: all)."""

    path: str
    position: int
    documents: int | None = None

    def folder(self, layout: str) -> str:
        """Where its pictures lie under a root of --images."""
        number = _number(self.path)
        by_name = Path(self.path).name.split(".")[0] if number is None else str(number)
        return {"position": str(self.position), "shard": by_name, "flat": ""}[layout]


@dataclass(frozen=True, kw_only=True)
class Pictures(Download):
    """The documents' pictures, downloaded before they are converted: pipelines.download."""

    download: bool = option("download the pictures of all documents first (raw_url), by img2dataset", default=False)

    def fetched(self, source: Mmc4, out: str, limit: int | None) -> Mmc4:
        """The source as it reads what has been downloaded; itself where nothing is to be. Raises RequestError, SourceError."""
        if not self.download:
            return source
        folder = self.folder(out)
        download(_Addresses(source, limit), folder, self)
        return replace(source, images=(*source.images, folder / IMAGES))


class _Addresses:
    """The pictures of MMC4 shards as URLs: a shard of downloads each, of which every picture is there once, under its folder and name."""

    files = True

    def __init__(self, source: Mmc4, limit: int | None) -> None:
        self._layout, listed = source.layout, _list(source.annotations)
        self._all = listed.shards
        self._shards = [_Numbered(shard, shard.position) for shard in (listed.shards if limit is None else _limited(listed.shards, limit))]

    def content(self) -> dict[str, Any]:
        """What makes it this list: the shards' names and sizes, and where their pictures go."""
        rows = "".join(f"{Path(shard.path).name}\t{nearby.size('', shard.path)}\n" for shard in self._all)
        return {
            "shards": len(self._all),
            "sha256": hashlib.sha256(rows.encode("utf-8", "surrogateescape")).hexdigest(),
            "layout": self._layout,
        }

    def shards(self) -> Sequence[_Numbered]:
        """One a file."""
        return self._shards

    def tables(self, shards: Sequence[_Numbered]) -> Iterator[tuple[_Numbered, pa.Table]]:
        """Each with its URLs; key: the picture's path, null where its name is no plain one."""
        for numbered in shards:
            folder = numbered.shard.folder(self._layout)
            found: dict[str | None, str | None] = {}
            for name, address in _addresses(numbered.shard.path):
                found.setdefault(_under(folder, name) if _plain(name) else None, address)
            yield numbered, pa.table({"url": pa.array(list(found.values()), pa.string()), "key": pa.array(list(found), pa.string())})


class _Numbered(NamedTuple):
    """A shard of downloads."""

    shard: Shard
    number: int


@dataclass(frozen=True, kw_only=True)
class Mmc4:
    """MMC4 documents as interleaved records. The module's docstring says what is kept.

    example: mmc4 --annotations docs_shard_0_v2.jsonl.zip --images images --layout shard
    download first: mmc4 --annotations docs_shard_0_v2.jsonl.zip --download --contact data@lab.example --out out/mmc4
    """

    name: ClassVar[str] = "mmc4"
    fetch: ClassVar[type[Pictures]] = Pictures

    annotations: tuple[Path, ...] = option("a shard (.zip, .jsonl, .jsonl.gz) or a folder of them; repeatable", reads="annotations")
    images: tuple[Path, ...] = option("folder, .zip or .tar of the downloaded pictures; repeatable", reads="pictures", default=())
    layout: str = option(
        "picture folders are named by the shard's number, by its position in the list, or there is one flat folder",
        default="shard",
        choices=LAYOUTS,
    )
    assignment: str = option("which sentence a picture stands before", default="matched", choices=ASSIGNMENTS)
    keep_similarity: bool = option("keep the whole similarity matrix in meta", default=False)
    min_image_bytes: int = option("drop smaller pictures before they are assigned (OpenFlamingo: 11000)", default=0)
    verify: str = verify()

    def __post_init__(self) -> None:
        for flag, value, known in (("layout", self.layout, LAYOUTS), ("assignment", self.assignment, ASSIGNMENTS)):
            if value not in known:
                raise RequestError(f"--{flag}: expected one of {', '.join(known)}, found {value!r}")
        if self.min_image_bytes < 0:
            raise RequestError(f"--min-image-bytes: expected at least 0, found {self.min_image_bytes}")

    def units(self, limit: int | None) -> Sequence[Shard]:
        """One shard a unit. Only what a limit needs is opened, and the first shard, to see that it is one."""
        shards = self._listed.shards
        with nearby.briefly():
            found = self._look(shards[0])
        if not found:
            raise SourceError(f"{shards[0].path}: expected at least one document, found none")
        return shards if limit is None else list(_limited(shards, limit))

    def rows(self, unit: Shard) -> Iterator[Row]:
        """Its documents, as the bytes of their lines; None for a line that is too long."""
        with nearby.briefly():
            self._look(unit)
            folder = unit.folder(self.layout)
            for number, line in enumerate(islice(_lines(unit.path), unit.documents)):
                yield Row(Path(unit.path).name, number, (folder, line))

    def sample(self, row: Row) -> Sample:
        """The document's record."""
        folder, line = row.data
        if line is None:
            raise Reject("line_bytes", f"expected a line of at most {MAX_LINE} bytes, found a longer one")
        counts = Tally()
        once(line, ("text_list", "image_info", "similarity_matrix", "example", "image_map"))
        document, nans = decode_nan(line, _document)
        counts.note("mended", "json_nan", nans)
        build = self._interleaved if document.is_gpt is msgspec.UNSET else self._sequence
        return build(document, f"{row.file}/{row.number}", folder, counts)

    def references(self) -> Iterator[Sequence[str]]:
        """Names of the pictures that are not in the lines themselves."""
        for shard in self.units(None):
            folder = shard.folder(self.layout)
            for line in _briefly(shard.path):
                yield [_under(folder, name) for name in _named(line)]

    def notes(self) -> Tally:
        """What is worth saying of the input as a whole."""
        counts = Tally()
        counts.note("notes", "shard_never_existed", len(self._listed.absent) + self._listed.gaps)
        return counts

    def absent(self) -> tuple[Path, ...]:
        """Annotations that were named and need not be there."""
        return self._listed.absent

    @cached_property
    def _images(self) -> Images:
        return Images(self.images, self.verify)

    @cached_property
    def _listed(self) -> Listed:
        return _list(self.annotations)

    def _look(self, shard: Shard) -> bool:
        """Whether the shard holds anything. Raises SourceError if it is no MMC4, RequestError if its pictures follow another layout."""
        keys: list[list[str]] = []
        names: list[str] = []
        for line in islice(_lines(shard.path), LOOKED_UP):
            keys += [_keys(line)] if len(keys) < SNIFFED else []
            names += _named(line)
        _sniff(shard.path, keys)
        if not any(self._present(_under(shard.folder(self.layout), name)) for name in names):
            self._other_layout(shard, names)
        return bool(keys)

    def _other_layout(self, shard: Shard, names: Sequence[str]) -> None:
        for other in LAYOUTS:
            found = sum(self._present(_under(shard.folder(other), name)) for name in names)
            # Names are hashes of URLs: a few that many pages share are found in any shard's folder.
            if found * 20 > len(names):
                raise RequestError(
                    f"{shard.path}: --layout {self.layout}: expected pictures in folder {shard.folder(self.layout) or '.'!r}, found 0 of "
                    f"{len(names)}; --layout {other} finds {found} in {shard.folder(other) or '.'!r}"
                )

    def _present(self, name: str) -> bool:
        try:
            return any(store.read(safe(name)) is not None for store in self._images.stores)
        except Reject:
            return False

    def _interleaved(self, document: Document, where: str, folder: str, counts: Tally) -> Sample:
        if document.text_list is None:
            raise Reject("schema", "expected text_list, found none")
        info = document.image_info or []
        found = self._found(info, folder, counts)
        matrix = _similarities(document, len(info))
        sentences = self._sentences(document, [info[at] for at in found], None if matrix is None else matrix[list(found)])
        for (at, picture), sentence in zip(found.items(), sentences, strict=True):
            picture.image.similarity = _similarity(info[at], at, sentence, matrix)
        unplaced = [index for index, sentence in enumerate(sentences) if sentence is None]
        counts.note("mended", "image_unplaced", len(unplaced))
        kept = None if matrix is None or not self.keep_similarity else matrix[list(found)].tolist()
        meta = {"unplaced": unplaced or None, "raw_urls": [info[at].raw_url for at in found] or None, "similarity_matrix": kept}
        return _sample(_reading_order(document.text_list, sentences), found.values(), _meta(document, where, meta, counts), counts)

    def _sentences(self, document: Document, pictures: Sequence[Picture], matrix: np.ndarray | None) -> list[int | None]:
        """Which sentence each picture stands before; the matrix is that of these pictures."""
        count = len(document.text_list or ())
        if self.assignment == "matched":
            return [at if at is not None and 0 <= at < count else None for at in (picture.matched_text_index for picture in pictures)]
        if not pictures or not count:
            return [None] * len(pictures)
        if matrix is None or not np.isfinite(matrix).all():
            raise Reject("similarity_matrix", f"expected {len(pictures)} finite rows of {count} similarities, found something else")
        if self.assignment == "argmax":
            return [int(at) for at in matrix.argmax(axis=1)]
        from scipy.optimize import linear_sum_assignment  # a second to import, and only lsa needs it

        rows, columns = linear_sum_assignment(-matrix)
        one_to_one = dict(zip(rows.tolist(), columns.tolist(), strict=True))
        return [one_to_one.get(index) for index in range(len(pictures))]

    def _sequence(self, document: Document, where: str, folder: str, counts: Tally) -> Sample:
        if document.example is None:
            raise Reject("schema", "expected a ChatGPT sequence with its example, found none")
        pictures = document.image_map or {}
        found = self._found(list(pictures.values()), folder, counts)
        names = list(pictures)
        index_of = {names[at]: index for index, at in enumerate(found)}
        parts = _placed(document.example, index_of, pictures, counts)
        shown = {part.image for part in parts}
        unplaced = [index for index in range(len(found)) if index not in shown]
        counts.note("mended", "image_unplaced", len(unplaced))
        meta = {"is_gpt": True, "unplaced": unplaced or None, "raw_urls": [pictures[name].raw_url for name in index_of] or None}
        parts = [*map(record.image_part, unplaced), *parts]
        return _sample(parts, found.values(), _meta(document, where, meta, counts), counts)

    def _found(self, pictures: Sequence[Picture], folder: str, counts: Tally) -> dict[int, Found]:
        """The good pictures by position. The others are counted; raises Reject where none is left."""
        found: dict[int, Found] = {}
        refused: list[Reject] = []
        for at, picture in enumerate(few(pictures)):
            try:
                found[at] = self._read(picture, folder, counts)
            except Reject as reject:
                refused.append(reject)
        if refused and not found:
            raise refused[0]
        for reject in refused:
            counts.note("images_dropped", reject.reason)
        return found

    def _read(self, picture: Picture, folder: str, counts: Tally) -> Found:
        inline = picture.image_base64 if picture.image_base64 is not None else picture.base64_image
        if inline is not None:
            found = self._decoded(inline, picture.image_name or picture.raw_url, counts)
        elif picture.image_name:
            found = self._images.read(_under(folder, picture.image_name))
            counts.note("mended", "other_suffix", int(found.other_suffix))
        else:
            raise Reject("image_missing", "expected image_name or pixels, found neither")
        if len(found.data) < self.min_image_bytes:
            raise Reject("image_min_bytes", f"expected at least {self.min_image_bytes} bytes, found {len(found.data)}")
        return found

    def _decoded(self, text: str, origin: str | None, counts: Tally) -> Found:
        # Shards made before July 2023 hold Python's b'...' itself: https://github.com/mlfoundations/open_flamingo/issues/198
        if text.startswith(("b'", 'b"')) and text.endswith(text[1]):
            text = text[2:-1]
            counts.note("mended", "base64_prefix")
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise Reject("image_base64", f"expected base64, found {text[:20]!r}: {error}") from error
        picture = measure(data, self.verify)
        entry = record.image(width=picture.width, height=picture.height, format=picture.format, bytes=len(data), origin=origin)
        return Found(entry, data, other_suffix=False)


def _similarities(document: Document, pictures: int) -> np.ndarray | None:
    """similarity_matrix, NaN where upstream has none; None where it is not pictures x sentences."""
    try:
        rows = decode(document.similarity_matrix, _matrix)
    except Reject:
        return None
    count = len(document.text_list or ())
    if len(rows) != pictures or any(len(row) != count for row in rows):
        return None
    return np.array(rows, np.float64).reshape(pictures, count)


def _similarity(picture: Picture, at: int, sentence: int | None, matrix: np.ndarray | None) -> float | None:
    if sentence is None:
        return None
    if matrix is not None and np.isfinite(matrix[at, sentence]):
        return float(matrix[at, sentence])
    return picture.matched_sim if sentence == picture.matched_text_index else None


def _reading_order(text: Sequence[str], sentences: Sequence[int | None]) -> list[Part]:
    """Pictures without a sentence, then each sentence behind its pictures."""
    before: dict[int | None, list[Part]] = {}
    for index, sentence in enumerate(sentences):
        before.setdefault(sentence, []).append(record.image_part(index))
    parts = before.get(None, [])
    for at, words in enumerate(text):
        parts += before.get(at, ())
        parts.append(record.text_part(words if at == len(text) - 1 else f"{words} "))
    return parts


def _placed(example: str, index_of: dict[str, int], pictures: Iterable[str], counts: Tally) -> list[Part]:
    """The text cut at its placeholders, a picture at each that has one."""
    pieces = _PLACEHOLDER.split(example)
    unknown = [piece for piece in pieces[1::2] if piece not in pictures]
    if unknown and not index_of:
        raise Reject("placeholder_unknown", f"expected a picture for {unknown[0]}, found none in image_map")
    counts.note("images_dropped", "placeholder_unknown", len(unknown))
    parts: list[Part] = []
    for at, piece in enumerate(pieces):
        if at % 2 == 0 and piece:
            parts.append(record.text_part(piece))
        elif at % 2 and piece in index_of:
            parts.append(record.image_part(index_of[piece]))
    return parts


def _sample(parts: Sequence[Part], found: Iterable[Found], meta: dict[str, Any], counts: Tally) -> Sample:
    found = list(found)
    if not found and not any(part.text for part in parts):
        raise Reject("empty", "expected text or a picture, found neither")
    turn = record.turn("text", parts)
    built = record.record("mmc4", images=[picture.image for picture in found], turns=[turn], meta=meta)
    return Sample(built, [picture.data for picture in found], counts=counts)


def _meta(document: Document, where: str, more: dict[str, Any], counts: Tally) -> dict[str, Any]:
    """What fits, in order of use; what does not is counted."""
    fields = {"id": document.url or where, "url": document.url, "could_have_url_duplicate": document.could_have_url_duplicate, **more}
    kept: dict[str, Any] = {}
    room = MAX_META
    for name, value in fields.items():
        size = 0 if value is None else len(name) + 4 + len(msgspec.json.encode(value))
        if size > room:
            counts.note("meta_dropped", name)
        elif value is not None:
            kept[name] = value
            room -= size
    return {"id": where, **kept}


class Listed(NamedTuple):
    """The shards that are there, those that were named though they never were, and how many gaps such shards leave in folders."""

    shards: list[Shard]
    absent: tuple[Path, ...]
    gaps: int


def _list(annotations: Sequence[Path]) -> Listed:
    """Files as they are named, folders in order of shard number; positions as MMC4's script counts them."""
    shards: list[Shard] = []
    absent: list[Path] = []
    position = gaps = 0
    for path in annotations:
        folder = nearby.is_folder(path)
        files = _shards_in(path) if folder else [path]
        for before, file in zip([None, *files], files, strict=False):
            gap = _gap(before, file)
            position, gaps = position + gap, gaps + gap
            if (folder and url_of(file)) or nearby.is_file(file):  # what a store has listed is there
                shards.append(Shard(nearby.called(file), position))
            elif _number(file) in NEVER_EXISTED:
                absent.append(file)
            else:
                raise RequestError(f"{nearby.called(file)}: expected an MMC4 shard, found nothing")
            position += 1
    if not shards:
        raise SourceError(
            f"{', '.join(map(nearby.called, annotations[:3])) or '--annotations'}: expected at least one MMC4 shard, found none"
        )
    return Listed(shards, tuple(absent), gaps)


def _gap(before: Path | None, after: Path) -> int:
    """How many shards that never existed lie between two neighbours of a folder: the list that was downloaded named them."""
    first, last = before and _number(before), _number(after)
    return 0 if first is None or last is None else sum(first < number < last for number in NEVER_EXISTED)


def _shards_in(folder: Path) -> list[Path]:
    files = [folder / name for name in nearby.top(folder) if name.endswith(SUFFIXES) and not name.startswith(".")]
    if not files:
        raise SourceError(f"{nearby.called(folder)}: expected shards ({', '.join(SUFFIXES)}), found none")
    numbers = {path: _number(path) for path in files}
    return sorted(files, key=lambda path: (numbers[path] is None, numbers[path] or 0, path.name))


def _number(path: str | Path) -> int | None:
    found = _NUMBER.search(Path(path).name)
    return int(found[1]) if found else None


def _limited(shards: Sequence[Shard], limit: int) -> Iterator[Shard]:
    for shard in shards:
        if limit <= 0:
            return
        documents = sum(1 for _ in islice(_briefly(shard.path), limit))
        limit -= documents
        yield shard._replace(documents=documents)


def _sniff(path: str, keys: Sequence[Sequence[str]]) -> None:
    if keys and not any({"text_list", "is_gpt"} & set(found) for found in keys):
        raise SourceError(f"{path} line 1: expected a JSON document with text_list, or is_gpt, found {', '.join(keys[0][:6]) or 'none'}")


def _keys(line: bytes | None) -> list[str]:
    """The document's keys, or what is wrong with it."""
    if line is None:
        return [f"a line of more than {MAX_LINE} bytes"]
    try:
        return list(decode_nan(line, _object)[0])
    except Reject as reject:
        line = line.strip()
        return [f"{line[:24]!r} to {line[-12:]!r} at byte {len(line)}: {reject.detail}"]


def _named(line: bytes | None) -> list[str]:
    """Names of the document's pictures that have no pixels in the line; [] where it can not be read."""
    if line is None:
        return []
    try:
        found, _ = decode_nan(line, _names)
    except Reject:
        return []
    pictures = [*(found.image_info or ()), *(found.image_map or {}).values()]
    return [picture.image_name for picture in pictures if picture.image_name and _no_pixels(picture)]


def _addresses(path: str) -> Iterator[tuple[str, str | None]]:
    """Name and URL of the pictures of a shard that have no pixels in their line; documents that can not be read have none."""
    for line in _briefly(path):
        try:
            found = decode_nan(line or b"{}", _addressed)[0]
        except Reject:
            continue
        for picture in [*(found.image_info or ()), *(found.image_map or {}).values()]:
            if picture.image_name and _no_pixels(picture):
                yield picture.image_name, picture.raw_url


def _plain(name: str) -> bool:
    """Whether it is a file's name and nothing else: it becomes one."""
    return name.isprintable() and "/" not in name and not name.startswith(".") and len(name.encode()) <= 200


def _no_pixels(picture: Named) -> bool:
    return bytes(picture.image_base64) == bytes(picture.base64_image) == b"null"


def _under(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _briefly(path: str) -> Iterator[bytes | None]:
    """The same lines, of a shard that is not needed again."""
    with nearby.briefly():
        yield from _lines(path)


def _lines(path: str) -> Iterator[bytes | None]:
    """The lines that are not blank, one at a time; None for one that is too long. Raises SourceError where the file is damaged."""
    with _opened(path) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE and not line.endswith(b"\n"):
                _skip(path, number, file)
                yield None
            elif line.removeprefix(BOM).strip():
                yield line.removeprefix(BOM) if number == 1 else line


def _skip(path: str, number: int, file: BinaryIO) -> None:
    skipped = 0
    while (piece := file.readline(1 << 20)) and not piece.endswith(b"\n"):
        skipped += len(piece)
        if skipped > MAX_SKIPPED:
            raise SourceError(f"{path} line {number}: expected one document a line, found more than {MAX_LINE + MAX_SKIPPED} bytes")


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """The JSON lines of a shard, whatever it is packed in: known by its first bytes."""
    try:
        with nearby.near(Path(path)).open("rb") as raw:
            magic = raw.read(2)
            raw.seek(0)
            with _unpacked(path, magic, raw) as file:
                yield file
    except _BROKEN_FILE as error:
        raise SourceError(f"{path}: expected a whole shard, found {type(error).__name__}: {error}") from error


def _unpacked(path: str, magic: bytes, raw: BinaryIO) -> BinaryIO:
    if magic == b"\x1f\x8b":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if magic != b"PK":
        return raw
    archive = zipfile.ZipFile(raw)
    members = [member for member in archive.infolist() if not member.is_dir() and not member.filename.startswith("__MACOSX/")]
    if len(members) != 1:
        raise SourceError(f"{path}: expected a zip of one JSONL file, found {len(members)} files")
    # The member's name is never used: nothing is extracted.
    return io.BufferedReader(cast(io.RawIOBase, archive.open(members[0])), 1 << 20)
