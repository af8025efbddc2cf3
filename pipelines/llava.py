"""LLaVA: conversations about pictures. https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md

Goes in: JSON lists (llava_v1_5_mix665k.json, blip_laion_cc_sbu_558k.json, LLaVA-NeXT's) or the same rows as JSONL, and the pictures they
name. A row, shortened:

    {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat colour is the bus?"}, {"from": "gpt", "value": "Red."}]}

`image` may be a list (NeXT), null, "" or absent, and may be called `images`; turns may be {"messages": [{"role", "content"}]}. Roles
human and user are user; gpt and assistant are assistant; system; tool and function are tool.

Comes out: one record a row; each `<image>` becomes the picture where it stands, and the text around it is untouched: a turn's parts
joined by `<image>` give the upstream value. Kept in meta: id, url (of the row, or of blip_laion_cc_sbu_558k_meta.json, joined by id),
model, box_frame, unplaced, dropped (the bad pictures of a row that has others). Dropped: every other key.

Decisions:

* One picture and several markers: placed at each. As many pictures as markers: in their order. Another number: `markers_differ`.
* Pictures that no marker places stand first, are counted and listed in meta.unplaced. In a row without pictures `<image>` is text.
* A bad picture of several is dropped with its marker; a row whose pictures are all bad is a reject.
* Text that looks like a box stays text. Only of rows under `vg/` is the frame known (users of LLaVA worked it out, issue 606): 0 to 1 of
  the picture padded to a square; meta.box_frame says unit_padded_square. Of RefCOCO users disagree (issue 822): nothing is said.
* Whether roles alternate is for the trainer to judge. A row with a video is a reject: its frames are not here.
* Ids repeat in the mixture, once for each set that a COCO picture came in through: such rows are counted as a note, and kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import xxhash

from pipelines.images import Found, Images
from pipelines.rows import Rows, cells, decode, first_rows, once, readable, rows
from pipelines.source import Row, Sample, Tally, even, option, verify
from schemas import Part, Reject, RequestError, SourceError, Turn, record

MARKER = "<image>"
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
}
MAX_META = 1000  # characters of a string, pictures in a list: meta stays far below its 64 kB
_PLAIN = (str, int, float)
LOOK = 10  # rows that tell what a file is
_SHARE = r"(?:0?\.\d+|0(?:\.\d+)?|1(?:\.0+)?)"
_BOX = re.compile(rf"\[\s*(?:{_SHARE}\s*,\s*){{3}}{_SHARE}\s*\]")


class _Said(msgspec.Struct, gc=False):
    speaker: str | None = msgspec.field(name="from", default=None)
    role: str | None = None
    value: str | None = None
    content: str | None = None


class _Conversation(msgspec.Struct):
    id: str | int | float | None = None
    image: str | list[str] | None = None
    images: str | list[str] | None = None
    conversations: list[_Said] | None = None
    messages: list[_Said] | None = None
    url: Any = None
    model: Any = None
    video: Any = None


_NULL = msgspec.Raw(b"null")


class _Pictures(msgspec.Struct, gc=False):
    image: msgspec.Raw = _NULL
    images: msgspec.Raw = _NULL


class _Identity(msgspec.Struct, gc=False):
    id: msgspec.Raw = _NULL


class _Meta(msgspec.Struct, gc=False):
    id: str | int | float | None = None
    url: str | None = None


_conversation = msgspec.json.Decoder(_Conversation)
_pictures = msgspec.json.Decoder(_Pictures)
_meta = msgspec.json.Decoder(_Meta)
_names = msgspec.json.Decoder(str | list[str] | None)
_id = msgspec.json.Decoder(str | int | float | None)
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, kw_only=True)
class Llava:
    """LLaVA conversations: one record a row, pictures where their markers stand.

    example: llava --annotations llava_v1_5_mix665k.json --images playground/data
    """

    name: ClassVar[str] = "llava"

    annotations: tuple[Path, ...] = option("conversations: a JSON list, or JSONL", reads="annotations")
    meta: Path | None = option("blip_laion_cc_sbu_558k_meta.json: adds url, by id", reads="annotations", default=None)
    images: tuple[Path, ...] = option("what `image` is relative to: a folder, .zip or .tar", reads="pictures", default=())
    verify: str = verify()

    def units(self, limit: int | None) -> Sequence[range]:
        """Ranges of rows. Raises SourceError, RequestError."""
        for path in self.annotations:
            _look(path, ("conversations", "messages"))
        if not self.images:
            self._need_no_pictures()
        _ = self._images.stores, self._urls  # found out here, once, for all workers
        return even(len(self._rows), limit)

    def rows(self, unit: range) -> Iterator[Row]:
        """The rows, as JSON."""
        return (Row(*found) for found in self._rows.part(unit))

    def sample(self, row: Row) -> Sample:
        """The row's record. Raises Reject."""
        once(row.data, ("image", "images", "conversations", "messages"))
        item = decode(row.data, _conversation)
        if item.video:
            raise Reject("video", f"expected pictures, found the video {str(item.video)[:200]}")
        said = list(_said(item))
        names = _listed(item.image) or _listed(item.images)
        markers = _markers(said, names)
        counts = Tally()
        found = counts.pictures(self._images, names)
        kept = [picture for picture in found if picture is not None]
        turns = _turns(said, found, markers)
        meta = self._kept(item, counts)
        if any(name.startswith("vg/") for name in names) and any(_BOX.search(text) for _, text in said):
            meta["box_frame"] = "unit_padded_square"
        if kept and not markers:
            counts.note("mended", "image_unplaced", len(kept))
            meta["unplaced"] = list(range(len(kept)))[:MAX_META]
        if len(kept) < len(names):
            dropped = (name for name, picture in zip(names, found, strict=True) if picture is None)
            meta["dropped"] = [name[:200] for name in islice(dropped, 20)]
        made = record.record(self.name, images=[picture.image for picture in kept], turns=turns, meta=meta)
        return Sample(made, [picture.data for picture in kept], counts=counts)

    def references(self) -> Iterator[Sequence[str]]:
        """The pictures of every row."""
        for path in self.annotations:
            _look(path, ("conversations", "messages"))
            for row in cells(path, _Pictures):
                yield _names_of(row)

    def notes(self) -> Tally:
        """Rows whose id an earlier row has."""
        tally = Tally()
        hashes = np.concatenate([_hashes(path) for path in self.annotations])
        known = hashes[hashes != 0]
        tally.note("notes", "repeated_id", len(known) - len(np.unique(known)))
        return tally

    @cached_property
    def _rows(self) -> Rows:
        return rows(self.annotations)

    @cached_property
    def _images(self) -> Images:
        return Images(self.images, self.verify)

    @cached_property
    def _urls(self) -> _Urls | None:
        return None if self.meta is None else _Urls(self.meta)

    def _need_no_pictures(self) -> None:
        """A word at once where a whole run would only find pictures missing."""
        for path in self.annotations:
            for row in readable(first_rows(path, LOOK), _pictures):
                if names := _names_of(row):
                    raise RequestError(f"{path}: expected --images, for rows that name pictures ({names[0][:100]}), found none")

    def _kept(self, item: _Conversation, counts: Tally) -> dict[str, Any]:
        url = item.url
        if self._urls is not None and item.id is not None:
            url = self._urls.of(item.id) or url
            counts.note("notes", "no_meta", int(url is None))
        found = (("id", item.id), ("url", url), ("model", item.model))
        return {name: _short(value, counts) for name, value in found if isinstance(value, _PLAIN) and value != ""}


class _Urls:
    """The meta file's urls by id: 32 bytes a row, the rows themselves stay in the file. Picklable."""

    def __init__(self, path: Path) -> None:
        _look(path, ("url",))
        self.rows = rows([path])
        hashes = _hashes(path)
        self.order = np.argsort(hashes, kind="stable")
        self.hashes = hashes[self.order]

    def of(self, id: str | int | float) -> str | None:
        """The url of the first row with this id."""
        wanted = _hash(id)
        for at in range(int(np.searchsorted(self.hashes, np.uint64(wanted))), len(self.hashes)):
            if self.hashes[at] != wanted:
                return None
            row = decode(self.rows[int(self.order[at])], _meta)
            if str(row.id) == str(id):
                return row.url
        return None


def _said(item: _Conversation) -> Iterator[tuple[str, str]]:
    """Role and text of every turn. Raises Reject: no_turns, role, schema."""
    turns = item.conversations or item.messages
    if not turns:
        raise Reject("no_turns", "expected at least one turn, found none")
    for number, turn in enumerate(turns):
        name = turn.speaker if turn.speaker is not None else turn.role
        text = turn.value if turn.value is not None else turn.content
        if name not in ROLES:
            raise Reject("role", f"turn {number}: expected one of {', '.join(ROLES)}, found {str(name)[:100]!r}")
        if text is None:
            raise Reject("schema", f"turn {number}: expected a text, found none")
        yield ROLES[name], text


def _markers(said: Iterable[tuple[str, str]], names: Sequence[str]) -> int:
    """How many markers stand for pictures. Raises Reject(markers_differ)."""
    markers = sum(text.count(MARKER) for _, text in said) if names else 0
    if len(names) > 1 and markers not in (0, len(names)):
        raise Reject("markers_differ", f"expected {len(names)} markers for as many pictures, found {markers}")
    return markers


def _turns(said: Sequence[tuple[str, str]], found: Sequence[Found | None], markers: int) -> list[Turn]:
    """The turns with their pictures in place, numbered as they are kept."""
    number = count()
    numbers = [None if picture is None else next(number) for picture in found]
    places = repeat(numbers[0]) if len(numbers) == 1 else iter(numbers)
    turns = [record.turn(role, _parts(text, places) if markers and MARKER in text else _text(text)) for role, text in said]
    if not markers:
        turns[0].parts[:0] = [record.image_part(index) for index in numbers if index is not None]
    return turns


def _parts(text: str, places: Iterator[int | None]) -> list[Part]:
    """Text and pictures in reading order; the marker of a dropped picture (None) leaves no seam."""
    before, *behind = text.split(MARKER)
    parts: list[Part] = []
    for piece in behind:
        place = next(places)
        if place is None:
            before += piece
            continue
        parts += (*_text(before), record.image_part(place))
        before = piece
    return parts + _text(before)


def _text(text: str) -> list[Part]:
    return [record.text_part(text)] if text else []


def _listed(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) and names else list(names or ())


def _names_of(row: _Pictures | None) -> list[str]:
    return [] if row is None else _raw_names(row.image) or _raw_names(row.images)


def _raw_names(raw: msgspec.Raw) -> list[str]:
    if raw is _NULL:
        return []
    try:
        return _listed(_names.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []


def _short(value: Any, counts: Tally) -> Any:
    if isinstance(value, str) and len(value) > MAX_META:
        counts.note("mended", "meta_cut")
        return value[:MAX_META]
    return value


def _hashes(path: Path) -> np.ndarray:
    """A hash of each row's id, 0 where there is none: uint64 (rows,)."""
    return np.fromiter((_raw_hash(row.id) if row is not None else 0 for row in cells(path, _Identity)), np.uint64)


def _raw_hash(raw: msgspec.Raw) -> int:
    try:
        id = _id.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0
    return 0 if id is None else _hash(id)


def _hash(id: str | int | float) -> int:
    return xxhash.xxh3_64_intdigest(str(id).encode())


def _look(path: Path, wanted: Sequence[str]) -> None:
    """Raises SourceError where none of the first rows has any of these keys: this is some other file."""
    seen: dict[str, None] = {}
    for raw in first_rows(path, LOOK):
        try:
            keys = decode(raw, _keys)
        except Reject as reject:
            seen |= {} if reject.reason == "json" else {"rows that are no objects": None}
            continue
        if any(name in keys for name in wanted):
            return
        seen |= dict.fromkeys(keys)
    if seen:
        raise SourceError(f"{path}: expected rows with {' or '.join(wanted)}, found {', '.join(seen)[:200]}")
