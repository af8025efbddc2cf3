"""Visual Genome: objects, attributes, relationships, region descriptions and questions, any subset. One record is one image.

Format: https://homes.cs.washington.edu/~ranjay/visualgenome/api.html. Every file is a list with one row an image, in one of two
generations of key names; both are read, in any mixture. Rows of version 1.0 and what later versions call the same (shortened):

    image_data            {"image_id": 1, "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg", "width": 800, "height": 600,
                           "coco_id": null, "flickr_id": null}                                                  image_id | id
    objects               {"id": 1, "objects": [{"id": 38203, "names": ["clock"], "x": 421, "y": 91, "w": 79, "h": 339}]}
                                                                             id | object_id, w | width, (merged_object_ids)
    attributes            {"id": 1, "attributes": [{"id": 38203, "object_names": ["clock"], "attributes": ["green"], "x": ...}]}
                                                                                              object_names | names
    relationships         {"id": 1, "relationships": [{"id": 15927, "predicate": "on", "subject": {"id": 38205, "name": "shade",
                           "x": ...}, "object": {...}}]}                                 name | names, subject_id, object_id
    region_descriptions   {"id": 1, "regions": [{"id": 1382, "phrase": "the clock is green in colour", "x": 421, "y": 57,
                           "width": 82, "height": 139}]}                                          id | region_id
    question_answers      {"id": 1, "qas": [{"qa_id": 986768, "question": "What color is the clock?", "answer": "Green."}]}

A file is known by the keys of its rows, not by its name; of a folder, files named as above (or objects_v1_2.json) are taken.

Items: the rows of image_data in order (an id that comes again is a reject, `image_id_repeated`), then images that only other files
name, whose picture is ID.jpg and whose size is the picture's. Four pictures are broken upstream and rejected (`known_broken`).

Kept: objects as regions `o<ID>`, labelled with their first name; their attributes, a JSON list, in `attributes`, or, where an object has
several names, {"names": [...], "attributes": [...]}. An object that only attributes or relationships name is a region from its own
box. Where files differ about an object's box or name, the first counts, in the order above (mended: object_box_differs). An id among
an object's merged_object_ids means that object. Region descriptions are regions `r<ID>` and expressions; a relationship is a relation
between objects. The first question and answer are the turns, the others choices. Text is untouched.

Dropped: synsets, ids of relationships and questions, the objects that a question names, the regions inside scene graphs. A region
whose box can not be kept takes its expression and relations with it (no_region).
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
import numpy as np

from pipelines import nearby
from pipelines.images import Found, Images
from pipelines.rows import Rows, converted, decode, loosely, once, rows
from pipelines.source import Row, Sample, Tally, even, option, verify
from schemas import Choice, Expression, Image, Region, Reject, Relation, RequestError, SourceError, Turn, record
from schemas.box import from_xywh

T = TypeVar("T")
Id = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]

# The key by which a row shows what file it is of, in the order in which files count.
LISTS = {
    "objects": "objects",
    "attributes": "attributes",
    "relationships": "relationships",
    "region_descriptions": "regions",
    "question_answers": "qas",
}
KINDS = ("image_data", *LISTS)
SNIFFED = 10  # rows
# Pictures that the published zips hold broken: https://github.com/rowanz/neural-motifs/blob/master/dataloaders/visual_genome.py
BROKEN = frozenset({1592, 1722, 4616, 4617})


class _ImageRow(msgspec.Struct):
    image_id: Id | None = None
    id: Id | None = None
    url: str | None = None
    width: int | None = None
    height: int | None = None
    coco_id: Id | float | str | None = None
    flickr_id: Id | float | str | None = None


class _ImageId(msgspec.Struct):
    image_id: Id | None = None
    id: Id | None = None


class _Boxed(msgspec.Struct):
    """Whatever has a box, in either generation's names."""

    id: Id | None = None
    x: float | None = None
    y: float | None = None
    w: float | None = None
    h: float | None = None
    width: float | None = None
    height: float | None = None

    def xywh(self) -> list[float] | None:
        """The box as upstream writes it, None where a number is missing."""
        w = self.width if self.w is None else self.w
        h = self.height if self.h is None else self.h
        return None if self.x is None or self.y is None or w is None or h is None else [self.x, self.y, w, h]


class _Object(_Boxed):
    object_id: Id | None = None
    names: list[str] | str | None = None
    object_names: list[str] | str | None = None
    name: str | None = None
    attributes: list[Any] | str | None = None
    merged_object_ids: list[Id] | None = None

    def number(self) -> int | None:
        return self.id if self.object_id is None else self.object_id

    def called(self) -> list[str]:
        """Its names, each once."""
        names = self.names or self.object_names or self.name or []
        return list(dict.fromkeys([names] if isinstance(names, str) else names))


class _Relationship(msgspec.Struct):
    predicate: str | None = None
    subject: _Object | None = None
    object: _Object | None = None
    subject_id: Id | None = None
    object_id: Id | None = None


class _Described(_Boxed):
    region_id: Id | None = None
    phrase: str | None = None


class _Question(msgspec.Struct):
    question: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class _Plan:
    """The join: what stays in memory, and travels to the workers."""

    files: dict[str, Rows]
    ids: np.ndarray  # int64 (items,): the image's id, where it can be read
    at: np.ndarray  # int32 (items, KINDS): the image's row in each file, -1 where it has none
    repeats: frozenset[int]  # items whose id an earlier item has
    notes: Tally


@dataclass(frozen=True, kw_only=True)
class VisualGenome:
    """Visual Genome: objects, attributes, relationships, region descriptions, questions; one record an image.

    example: visual_genome --annotations visual_genome --images VG_100K --images VG_100K_2
    """

    name: ClassVar[str] = "visual_genome"

    annotations: tuple[Path, ...] = option("the JSON files, or folders that hold them", reads="annotations")
    images: tuple[Path, ...] = option("VG_100K and VG_100K_2, or what holds both: folder, .zip or .tar", reads="pictures")
    verify: str = verify()

    def units(self, limit: int | None) -> Sequence[range]:
        """Ranges of items. Raises SourceError, RequestError."""
        _ = self._images.stores
        return even(len(self._plan.ids), limit)

    def rows(self, unit: range) -> Iterator[Row]:
        """The items, by number, each where the first file that has it has it."""
        for item in unit:
            kind = int(np.argmax(self._plan.at[item] >= 0))
            yield Row(*self._plan.files[KINDS[kind]].where(int(self._plan.at[item, kind])), item)

    def sample(self, row: Row) -> Sample:
        """The image's record. Raises Reject."""
        id, entry = self._entry(row.data)
        if id in BROKEN:
            raise Reject("known_broken", f"expected a picture that is whole, found {id}, which is broken upstream")
        counts = Tally()
        found = self._picture(id, entry, counts)
        counts.note("notes", "image_without_annotation", int(not (self._plan.at[row.data, 1:] >= 0).any()))
        scene = self._scene(row.data, found.image, counts)
        conversations = list(self._conversations(row.data, counts))
        built = record.record(
            self.name,
            images=[found.image],
            turns=conversations[0] if conversations else [record.turn("text", [record.image_part(0)])],
            choices=[Choice(turns) for turns in conversations[1:]],
            regions=scene.kept(),
            expressions=scene.expressions,
            relations=scene.relations,
            meta={"id": id, "url": entry.url, "coco_id": entry.coco_id, "flickr_id": entry.flickr_id},
        )
        return Sample(built, [found.data], [], counts)

    def references(self) -> Iterator[Sequence[str]]:
        """The picture of each item, by the name under which it is there."""
        return self._images.resolve(self._wanted(item) for item in range(len(self._plan.ids)))

    def notes(self) -> Tally:
        """What belongs to no item: rows that can not be read, and second rows of an image."""
        return self._plan.notes

    @cached_property
    def _plan(self) -> _Plan:
        if not self.annotations:
            raise RequestError("visual_genome: expected --annotations, found none")
        return _planned(_opened(self.annotations))

    @cached_property
    def _images(self) -> Images:
        return Images(self.images, self.verify)

    def _entry(self, item: int) -> tuple[int, _ImageRow]:
        """The image's id and its row of image_data, empty where it has none. Raises Reject."""
        number = int(self._plan.at[item, 0])
        entry = _ImageRow() if number < 0 else self._listed(number)
        id = int(self._plan.ids[item])
        if number >= 0 and entry.image_id is None and entry.id is None:
            raise Reject("schema", "expected image_id or id, found neither")
        if item in self._plan.repeats:
            raise Reject("image_id_repeated", f"expected an id once in image_data, found {id} again")
        return id, entry

    def _listed(self, number: int) -> _ImageRow:
        row = self._plan.files["image_data"][number]
        once(row, _ImageRow.__struct_fields__)
        return decode(row, _image_row)

    def _wanted(self, item: int) -> list[str]:
        try:
            return _names(*self._entry(item), self.images)
        except Reject:
            return []  # `sample` says why

    def _picture(self, id: int, entry: _ImageRow, counts: Tally) -> Found:
        found = self._images.any_of(_names(id, entry, self.images))
        counts.note("mended", "other_suffix", int(found.other_suffix))
        if entry.width not in (None, found.image.width) or entry.height not in (None, found.image.height):
            expected = f"{entry.width} x {entry.height}"
            raise Reject("size_differs", f"expected {expected}, found {found.image.width} x {found.image.height}")
        return found

    def _scene(self, item: int, image: Image, counts: Tally) -> _Scene:
        scene = _Scene(image, counts)
        scene.objects(list(self._read("objects", item, _Object, counts, "regions_dropped")))
        for thing in self._read("attributes", item, _Object, counts, "regions_dropped"):
            scene.describe(thing)
        for relationship in self._read("relationships", item, _Relationship, counts, "relations_dropped"):
            scene.relate(relationship)
        for described in self._read("region_descriptions", item, _Described, counts, "regions_dropped"):
            scene.express(described)
        return scene

    def _conversations(self, item: int, counts: Tally) -> Iterator[list[Turn]]:
        for qa in self._read("question_answers", item, _Question, counts, "turns_dropped"):
            if not (qa.question and qa.question.strip()):
                counts.note("turns_dropped", "question_missing")
            elif not (qa.answer and qa.answer.strip()):
                counts.note("turns_dropped", "answer_missing")
            else:
                asked = record.turn("user", [record.image_part(0), record.text_part(qa.question)])
                yield [asked, record.turn("assistant", [record.text_part(qa.answer)])]

    def _read(self, kind: str, item: int, type: type[T], counts: Tally, family: str) -> Iterator[T]:
        """The things of this kind that the image has; what can not be read is counted."""
        number = int(self._plan.at[item, KINDS.index(kind)])
        try:
            things = () if number < 0 else _things(self._plan.files[kind][number], LISTS[kind])
        except Reject as reject:
            counts.note(family, reject.reason)
            return
        for thing in things:
            try:
                yield converted(thing, type)
            except Reject as reject:
                counts.note(family, reject.reason)


@dataclass
class _Scene:
    """The regions of one image as they come together, and what is said of them. A region that was dropped is None."""

    image: Image
    counts: Tally
    expressions: list[Expression] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    _regions: dict[str, Region | None] = field(default_factory=dict)
    _boxes: dict[int, list[float] | None] = field(default_factory=dict)  # of objects, as upstream writes them
    _names: dict[int, list[str]] = field(default_factory=dict)
    _attributes: dict[int, list[Any]] = field(default_factory=dict)
    _merged: dict[int, int] = field(default_factory=dict)

    def kept(self) -> list[Region]:
        """The regions, objects with their attributes."""
        for number, names in self._names.items():
            region = self._regions[f"o{number}"]
            if region is not None:
                region.attributes = _attributes(names, self._attributes.get(number, []))
        return [region for region in self._regions.values() if region is not None]

    def objects(self, things: list[_Object]) -> None:
        """Take the list of objects. Ids that were merged into an object are known from here on."""
        own = {thing.number() for thing in things}
        for thing in things:
            if thing.number() in self._boxes:
                self.counts.note("mended", "object_repeated")
            number = self._object(thing)
            if number is not None:
                self._merged.update((other, number) for other in thing.merged_object_ids or () if other not in own)
                self._add_attributes(number, thing)

    def describe(self, thing: _Object) -> None:
        """Take an object's attributes."""
        number = self._object(thing)
        if number is not None:
            self._add_attributes(number, thing)

    def relate(self, relationship: _Relationship) -> None:
        """Take a relationship, and the objects at its ends."""
        subject = self._end(relationship.subject, relationship.subject_id)
        object = self._end(relationship.object, relationship.object_id)
        if relationship.predicate is None:
            self.counts.note("relations_dropped", "predicate_missing")
        elif subject is None or object is None:
            self.counts.note("relations_dropped", "no_region")
        else:
            self.relations.append(Relation(subject, relationship.predicate, object))

    def express(self, described: _Described) -> None:
        """Take a region description."""
        number = described.id if described.region_id is None else described.region_id
        if number is None:
            self.counts.note("regions_dropped", "id_missing")
            self.counts.note("expressions_dropped", "no_region")
            return
        id, again = f"r{number}", 2
        while id in self._regions:
            id, again = f"r{number}.{again}", again + 1
        self.counts.note("mended", "region_repeated", int(again > 2))
        self._regions[id] = self._drawn(id, described.xywh(), None)
        if self._regions[id] is None:
            self.counts.note("expressions_dropped", "no_region")
        elif not (described.phrase and described.phrase.strip()):
            self.counts.note("expressions_dropped", "phrase_missing")
        else:
            self.expressions.append(Expression(described.phrase, [id]))

    def _end(self, thing: _Object | None, number: int | None) -> str | None:
        """The region at an end of a relationship, None where it was dropped or nothing is named."""
        named = self._object(thing or _Object(object_id=number)) if thing or number is not None else None
        return None if named is None or self._regions[f"o{named}"] is None else f"o{named}"

    def _object(self, thing: _Object) -> int | None:
        """The number of the object that is meant; drawn, or dropped, where it is named for the first time."""
        named, box = thing.number(), thing.xywh()
        if named is None:
            self.counts.note("regions_dropped", "id_missing")
            return None
        number = self._merged.get(named, named)
        if number != named:
            self.counts.note("mended", "object_merged")
        elif number not in self._boxes:
            self._boxes[number], self._names[number] = box, thing.called()
            self._regions[f"o{number}"] = self._drawn(f"o{number}", box, thing)
        elif box is not None and box != self._boxes[number]:
            self.counts.note("mended", "object_box_differs")
        return number

    def _drawn(self, id: str, box: list[float] | None, thing: _Object | None) -> Region | None:
        if box is None:
            self.counts.note("regions_dropped", "box_missing")
            return None
        fitted = self.counts.box(from_xywh(box), self.image)
        label = next(iter(thing.called()), None) if thing else None
        return None if fitted is None else record.region(id, 0, box=fitted, label=label)

    def _add_attributes(self, number: int, thing: _Object) -> None:
        attributes = [thing.attributes] if isinstance(thing.attributes, str) else thing.attributes
        known = self._attributes.setdefault(number, [])
        known.extend(attribute for attribute in attributes or () if attribute not in known)


_image_row = msgspec.json.Decoder(_ImageRow)
_image_id = msgspec.json.Decoder(_ImageId)


def _attributes(names: list[str], attributes: list[Any]) -> str | None:
    if len(names) > 1:
        return record.json_text({"names": names, "attributes": attributes})
    return record.json_text(attributes) if attributes else None


def _things(row: memoryview, name: str) -> list[Any]:
    """The list of this name in a row, [] where it is absent or null. Raises Reject."""
    once(row, (name,))
    value = loosely(row)
    things = value.get(name) if isinstance(value, dict) else value
    if things is not None and (things is value or not isinstance(things, list)):
        raise Reject("schema", f"expected an object with a list of {name}, found {type(things).__name__}")
    return things or []


def _names(id: int, entry: _ImageRow, roots: Sequence[Path]) -> list[str]:
    """What a picture may be called: the zips hold VG_100K/ID.jpg and VG_100K_2/ID.jpg, GQA's images.zip holds images/ID.jpg."""
    folders, base = posixpath.split(entry.url or "")
    base = base or f"{id}.jpg"
    inside = (posixpath.basename(folders), *(root.stem for root in roots), "VG_100K", "VG_100K_2")
    return list(dict.fromkeys([base, *(f"{folder}/{base}" for folder in inside if folder)]))


def _opened(annotations: Sequence[Path]) -> dict[str, Rows]:
    """The files by kind, in the order of KINDS. Raises SourceError, RequestError."""
    found: dict[str, tuple[Path, Rows]] = {}
    for path in (file for given in annotations for file in _files(given)):
        opened = rows([path])
        kind = _kind(path, opened)
        if kind in found:
            raise RequestError(f"{nearby.called(path)}: expected one file of {kind}, found {nearby.called(found[kind][0])}, too")
        found[kind] = path, opened
    return {kind: found[kind][1] for kind in KINDS if kind in found}


def _files(given: Path) -> list[Path]:
    """A file itself; of a folder, the files that are named like one of the kinds."""
    if not nearby.is_folder(given):
        return [given]
    names = nearby.top(given)
    found = [given / name for kind in KINDS for name in names if name == f"{kind}.json" or fnmatch.fnmatchcase(name, f"{kind}_v*.json")]
    if not found:
        raise SourceError(f"{nearby.called(given)}: expected {'.json, '.join(KINDS)}.json, or some of them, found none")
    return found


def _kind(path: Path, opened: Rows) -> str:
    """What file this is, by the keys of its first rows. Raises SourceError."""
    keys: dict[str, None] = {}
    for number in range(min(SNIFFED, len(opened))):
        try:
            row = loosely(opened[number])
        except Reject:
            continue
        keys.update(dict.fromkeys(row if isinstance(row, dict) else [type(row).__name__]))
    kinds = [kind for kind, name in LISTS.items() if name in keys]
    if not kinds and {"url", "width", "height"} <= set(keys):
        kinds = ["image_data"]
    if len(kinds) != 1 or not keys.keys() & {"id", "image_id"}:
        expected = f"rows of Visual Genome with image_id or id and one of url, {', '.join(LISTS.values())}"
        raise SourceError(f"{nearby.called(path)}: expected {expected}, found {', '.join(keys)[:200] or 'no row that can be read'}")
    return kinds[0]


def _planned(files: dict[str, Rows]) -> _Plan:
    ids: list[int] = []
    first: dict[int, int] = {}  # image id to the item that has it
    repeats: set[int] = set()
    for id in _image_ids(files.get("image_data", ())):
        if isinstance(id, int) and first.setdefault(id, len(ids)) != len(ids):
            repeats.add(len(ids))
        ids.append(id if isinstance(id, int) else -1)
    columns, notes = {"image_data": {item: item for item in range(len(ids))}}, Tally()
    for kind in [kind for kind in LISTS if kind in files]:
        column = columns[kind] = {}
        for number, id in enumerate(_image_ids(files[kind])):
            if isinstance(id, Reject):
                notes.note("annotations_dropped", id.reason)
                continue
            item = first.setdefault(id, len(ids))
            ids.extend([id] if item == len(ids) else [])
            notes.note("annotations_dropped", "image_id_repeated", int(item in column))
            column.setdefault(item, number)
    return _Plan(files, np.array(ids, np.int64), _table(columns, len(ids)), frozenset(repeats), notes)


def _table(columns: dict[str, dict[int, int]], items: int) -> np.ndarray:
    at = np.full((items, len(KINDS)), -1, np.int32)
    for kind, column in columns.items():
        at[list(column), KINDS.index(kind)] = list(column.values())
    return at


def _image_ids(opened: Iterable[memoryview]) -> Iterator[int | Reject]:
    """Each row's image id, or why it has none."""
    for data in opened:
        try:
            yield _image_of(data)
        except Reject as reject:
            yield reject


def _image_of(data: memoryview) -> int:
    try:
        row = _image_id.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # NaN in a box is no reason to lose the image's id
        row = converted(loosely(data), _ImageId)
    id = row.id if row.image_id is None else row.image_id
    if id is None:
        raise Reject("schema", "expected image_id or id, found neither")
    return id
