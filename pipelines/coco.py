"""COCO: captions, instances, keypoints and panoptic maps, any subset together. One record is one image.

Format: https://cocodataset.org/#format-data and https://github.com/cocodataset/panopticapi. Each file is an object of lists; these
rows (shortened) are of instances_train2017.json, captions, person_keypoints and panoptic:

    images         {"id": 493652, "file_name": "000000493652.jpg", "width": 640, "height": 399, "license": 3,
                    "coco_url": "http://images.cocodataset.org/train2017/000000493652.jpg", "flickr_url": "http://farm4..."}
    annotations    {"id": 1, "image_id": 493652, "category_id": 17, "bbox": [x, y, width, height], "area": 210.5, "iscrowd": 0,
                    "segmentation": [[x0, y0, x1, y1, ...]] | {"size": [h, w], "counts": [730, 50, ...] | "P0o1"}}
                   {"id": 88366, "image_id": 493652, "caption": "An airport filled with large passenger jets."}
                   {"id": 1, "image_id": 493652, "keypoints": [x, y, v, ...], "num_keypoints": 14, ...}
                   {"image_id": 142238, "file_name": "000000142238.png", "segments_info": [{"id": 3937500, "category_id": 1,
                    "area": 3528, "iscrowd": 0, "bbox": [282, 207, 48, 149]}]}
    categories     {"id": 17, "name": "cat", "supercategory": "animal"}

An item is a row of an images table: in the order of captions, instances, keypoints, panoptic, and of their rows; an id that an earlier file
has is the same image, an id that the same file has already is a reject (`image_id_repeated`), because two rows claim its annotations.

Kept: captions in file order, the first as the turn, the others as choices; instances as regions `a<ID>` (`n<POSITION>` without id,
`a<ID>.2` if the id comes twice), labelled with the category's name; keypoints as points of the region with the same annotation id; the
panoptic PNG as it is, with its segments; of the image its id, licence and URLs, and the keypoints' names, in meta.

Dropped: area, supercategory, skeleton, isthing, num_keypoints, the boxes of segments, date_captured, info. A mask that can not be kept
leaves its region with the box (mended: masks_dropped); polygons of under three points have no area and only go themselves
(polygons_dropped). Points are not clipped: upstream writes 0, 0 for those that nobody labelled. No language: the files state none.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
import numpy as np

from pipelines.images import Found, Images
from pipelines.rows import Rows, converted, decode, loosely, once, tables
from pipelines.source import Row, Sample, Tally, even, option, verify
from schemas import Choice, Image, Map, Mask, Region, Reject, RequestError, Segment, SourceError, Turn, record
from schemas import mask as masks
from schemas.box import from_xywh

T = TypeVar("T", bound=msgspec.Struct)
Id = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | str

# The fields by which a file shows that it is of this kind, in the order in which files are read.
FIELDS = {
    "captions": ("caption",),
    "instances": ("bbox", "segmentation"),
    "keypoints": ("keypoints",),
    "panoptic": ("segments_info",),
}
SNIFFED = 10  # rows
MAX_NAMES = 8_000  # bytes of keypoint names, which every record with points repeats in its meta


class _ImageRow(msgspec.Struct):
    id: Id
    file_name: str
    width: int | None = None
    height: int | None = None
    license: Id | None = None
    coco_url: str | None = None
    flickr_url: str | None = None


class _ImageId(msgspec.Struct):
    id: Id


class _Owner(msgspec.Struct):
    image_id: Id


class _Caption(msgspec.Struct):
    caption: str


class _Annotation(msgspec.Struct):
    """An instance, or a person with keypoints, who is one too."""

    id: Id | None = None
    category_id: Id | None = None
    bbox: list[float] | None = None
    segmentation: Any = None
    iscrowd: bool | int | None = None
    keypoints: list[float] | None = None


class _Polygons(msgspec.Struct):
    polygons: list[list[float]]


class _Runs(msgspec.Struct):
    size: list[int]
    counts: list[int] | str


class _SegmentRow(msgspec.Struct):
    id: Annotated[int, msgspec.Meta(ge=0, lt=1 << 24)]
    category_id: Id | None = None
    area: float | None = None
    iscrowd: bool | int | None = None


class _Panoptic(msgspec.Struct):
    file_name: str
    segments_info: list[_SegmentRow]


class _Category(msgspec.Struct):
    id: Id
    name: str
    keypoints: list[str] | None = None


class _Licence(msgspec.Struct):
    id: Id
    name: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class _Groups:
    """Annotation rows, sorted by item; those of item k are starts[k] to starts[k + 1]."""

    rows: Rows
    starts: np.ndarray

    def of(self, item: int) -> Iterator[memoryview]:
        """The item's rows, in file order."""
        return (self.rows[number] for number in range(self.starts[item], self.starts[item + 1]))


@dataclass(frozen=True)
class _File:
    """One annotation file."""

    images: Rows
    annotations: Rows | None
    categories: dict[Id, str]
    keypoint_names: dict[str, list[str]]  # of a category
    licences: dict[Id, dict[str, Id | None]]


@dataclass(frozen=True)
class _Plan:
    """The join: what stays in memory, and travels to the workers."""

    files: dict[str, _File]
    items: np.ndarray  # int32 (items, 3): file, row of its images table, whether that row repeats an id
    groups: dict[str, _Groups]
    notes: Tally


@dataclass(frozen=True, kw_only=True)
class Coco:
    """COCO: captions, instances, keypoints, panoptic maps; any of the files, one record an image.

    example: coco --captions annotations/captions_train2017.json --instances annotations/instances_train2017.json --images train2017
    """

    name: ClassVar[str] = "coco"

    captions: Path | None = option("captions_*.json", reads="annotations", default=None)
    instances: Path | None = option("instances_*.json", reads="annotations", default=None)
    keypoints: Path | None = option("person_keypoints_*.json", reads="annotations", default=None)
    panoptic: Path | None = option("panoptic_*.json; needs --panoptic-maps", reads="annotations", default=None)
    panoptic_maps: tuple[Path, ...] = option("its PNG files: a folder, .zip or .tar", reads="pictures", default=())
    images: tuple[Path, ...] = option("the pictures: a folder, .zip or .tar (train2017 or the folder above it)", reads="pictures")
    verify: str = verify()

    def units(self, limit: int | None) -> Sequence[range]:
        """Ranges of items. Raises SourceError, RequestError."""
        if (self.panoptic is None) != (not self.panoptic_maps):
            raise RequestError("coco: expected --panoptic and --panoptic-maps together, found one of them")
        for pictures in (self._images, self._maps):
            _ = pictures.stores
        return even(len(self._plan.items), limit)

    def rows(self, unit: range) -> Iterator[Row]:
        """The items, by number."""
        for item in unit:
            file, row, _ = self._plan.items[item]
            yield Row(*self._file(file).images.where(int(row)), item)

    def sample(self, row: Row) -> Sample:
        """The image's record. Raises Reject."""
        entry = self._entry(row.data)
        counts = Tally()
        found = self._picture(entry, counts)
        captions = list(self._captions(row.data, counts))
        regions = list(self._regions(row.data, found.image, counts))
        maps = list(self._panoptic_maps(row.data, found.image, counts))
        if not any(True for groups in self._plan.groups.values() for _ in groups.of(row.data)):
            counts.note("notes", "image_without_annotation")
        built = record.record(
            self.name,
            images=[found.image],
            turns=[_turn(*captions[:1])],
            choices=[Choice([_turn(caption)]) for caption in captions[1:]],
            regions=regions,
            maps=[map for map, _ in maps],
            meta=self._meta(entry, regions),
        )
        return Sample(built, [found.data], [data for _, data in maps], counts)

    def references(self) -> Iterator[Sequence[str]]:
        """The picture of each item, by the name under which it is there."""
        return self._images.resolve(self._wanted(item) for item in range(len(self._plan.items)))

    def notes(self) -> Tally:
        """What belongs to no item: annotations whose image no table lists, annotations that can not be read."""
        return self._plan.notes

    @cached_property
    def _plan(self) -> _Plan:
        given = {kind: path for kind in FIELDS if (path := getattr(self, kind)) is not None}
        if not given:
            raise RequestError("coco: expected at least one of --captions, --instances, --keypoints, --panoptic, found none")
        notes = Tally()
        return _planned({kind: _opened(kind, path, notes) for kind, path in given.items()}, notes)

    @cached_property
    def _images(self) -> Images:
        return Images(self.images, self.verify)

    @cached_property
    def _maps(self) -> Images:
        return Images(self.panoptic_maps, self.verify)

    def _file(self, number: int) -> _File:
        return list(self._plan.files.values())[number]

    def _entry(self, item: int) -> _ImageRow:
        file, row, repeats = self._plan.items[item]
        data = self._file(file).images[int(row)]
        once(data, _ImageRow.__struct_fields__)
        entry = decode(data, _image_row)
        if repeats:
            raise Reject("image_id_repeated", f"expected an id once in a file, found {entry.id!r} again")
        return entry

    def _wanted(self, item: int) -> list[str]:
        try:
            entry = self._entry(item)
        except Reject:
            return []  # `sample` says why
        return _names(entry.file_name, self.images, entry.coco_url)

    def _picture(self, entry: _ImageRow, counts: Tally) -> Found:
        found = self._images.any_of(_names(entry.file_name, self.images, entry.coco_url))
        counts.note("mended", "other_suffix", int(found.other_suffix))
        if entry.width not in (None, found.image.width) or entry.height not in (None, found.image.height):
            expected = f"{entry.width} x {entry.height}"
            raise Reject("size_differs", f"expected {expected}, found {found.image.width} x {found.image.height}")
        return found

    def _read(self, kind: str, item: int, type: type[T], counts: Tally, family: str, reason: str = "") -> Iterator[T]:
        """The item's annotations of this kind; what can not be read is counted under `reason`, or as what it is."""
        if kind in self._plan.groups:
            for data in self._plan.groups[kind].of(item):
                try:
                    once(data, type.__struct_fields__)
                    yield converted(loosely(data), type)
                except Reject as reject:
                    counts.note(family, reason or reject.reason)

    def _captions(self, item: int, counts: Tally) -> Iterator[str]:
        for row in self._read("captions", item, _Caption, counts, "turns_dropped"):
            if row.caption.strip():
                yield row.caption
            else:
                counts.note("turns_dropped", "caption_empty")

    def _regions(self, item: int, image: Image, counts: Tally) -> Iterator[Region]:
        taken: set[str] = set()
        for position, (annotation, label) in enumerate(self._merged(item, counts)):
            if label is None:
                counts.note("mended", "category_unknown")
            id = f"n{position}" if annotation.id is None else f"a{annotation.id}"
            region = _region(_free(id, taken, counts), annotation, label, image, counts)
            if region is not None:
                yield region

    def _merged(self, item: int, counts: Tally) -> list[tuple[_Annotation, str | None]]:
        """Instances with the keypoints of the same annotation id, then the keypoints that have none, each with its label."""
        found = [(row, self._label("instances", row)) for row in self._read("instances", item, _Annotation, counts, "regions_dropped")]
        waiting = {row.id: row for row, _ in reversed(found) if row.id is not None}
        for row in self._read("keypoints", item, _Annotation, counts, "mended", "points_dropped"):
            instance = None if row.id is None else waiting.pop(row.id, None)
            if instance is None:
                found.append((row, self._label("keypoints", row)))
            else:
                instance.keypoints = row.keypoints
        return found

    def _label(self, kind: str, row: _Annotation | _SegmentRow) -> str | None:
        return None if row.category_id is None else self._plan.files[kind].categories.get(row.category_id)

    def _panoptic_maps(self, item: int, image: Image, counts: Tally) -> Iterator[tuple[Map, bytes]]:
        """At most one map and its PNG."""
        rows = list(self._read("panoptic", item, _Panoptic, counts, "maps_dropped"))
        counts.note("maps_dropped", "map_repeated", len(rows[1:]))
        for row in rows[:1]:
            try:
                data = self._map_bytes(row.file_name, image)
            except Reject as reject:
                counts.note("maps_dropped", reject.reason)
                continue
            segments = list(self._segments(row.segments_info, counts))
            yield record.label_map(0, "panoptic", "RGB24", ignore=0, segments=segments, member="panoptic"), data

    def _segments(self, rows: list[_SegmentRow], counts: Tally) -> Iterator[Segment]:
        seen: set[int] = set()
        for row in rows:
            label = self._label("panoptic", row)
            counts.note("mended", "category_unknown", int(label is None))
            if row.id in seen:
                counts.note("mended", "segment_repeated")
                continue
            seen.add(row.id)
            area = int(row.area) if row.area is not None and abs(row.area) < 1 << 53 else None
            yield Segment(row.id, label, area, _crowd(row.iscrowd))

    def _map_bytes(self, name: str, image: Image) -> bytes:
        """The PNG, which must be one of 8-bit RGB, as large as the image. Raises Reject."""
        try:
            found = self._maps.any_of(_names(name, self.panoptic_maps))
        except Reject as reject:
            raise Reject("map_" + reject.reason.removeprefix("image_"), reject.detail) from reject
        if found.image.format != "png":
            raise Reject("map_format", f"{name}: expected png, found {found.image.format}")
        if found.data[24:26] != b"\x08\x02":  # IHDR: bit depth, colour type
            raise Reject("map_mode", f"{name}: expected 8-bit RGB, found depth and colour type {found.data[24:26].hex()}")
        if (found.image.width, found.image.height) != (image.width, image.height):
            raise Reject("map_size", f"{name}: expected {image.width} x {image.height}, found another size")
        return found.data

    def _meta(self, entry: _ImageRow, regions: list[Region]) -> dict[str, Any]:
        meta: dict[str, Any] = {"id": entry.id, "url": entry.coco_url, "flickr_url": entry.flickr_url, "license": None}
        if entry.license is not None:
            known = (file.licences[entry.license] for file in self._plan.files.values() if entry.license in file.licences)
            meta["license"] = next(known, {"id": entry.license})
        labels = {region.label for region in regions if region.points is not None}
        if labels:
            names = {label: names for file in self._plan.files.values() for label, names in file.keypoint_names.items()}
            meta["keypoints"] = {label: names[label] for label in sorted(names) if label in labels}
        return meta


_image_row = msgspec.json.Decoder(_ImageRow)
_image_id = msgspec.json.Decoder(_ImageId)
_owner = msgspec.json.Decoder(_Owner)


def _opened(kind: str, path: Path, notes: Tally) -> _File:
    """The file's tables. Raises SourceError where it is not of this kind."""
    found = tables(path, ("images", "annotations", "categories", "licenses"))
    if "images" not in found:
        raise SourceError(f"{path}: expected a COCO object with images, found no images")
    _sniff(path, found["images"], "images", ("file_name",))
    annotations = found.get("annotations")
    if annotations is not None:
        _sniff(path, annotations, "annotations", FIELDS[kind])
    categories = _table("categories", found.get("categories"), _Category, notes)
    licences = _table("licenses", found.get("licenses"), _Licence, notes)
    return _File(
        images=found["images"],
        annotations=annotations,
        categories={row.id: row.name for row in categories},
        keypoint_names={
            row.name: row.keypoints for row in categories if row.keypoints and len(record.json_text(row.keypoints)) < MAX_NAMES
        },
        licences={row.id: {"id": row.id, "name": row.name, "url": row.url} for row in licences},
    )


def _sniff(path: Path, rows: Rows, table: str, fields: Sequence[str]) -> None:
    """Raise SourceError where rows can be read, and none of the first has one of the fields."""
    seen: list[str] = []
    for number in range(min(SNIFFED, len(rows))):
        try:
            row = loosely(rows[number])
        except Reject:
            continue
        seen.extend(row if isinstance(row, dict) else [type(row).__name__])
    if seen and not set(fields) & set(seen):
        raise SourceError(f"{path}: expected {table} with {' or '.join(fields)}, found {', '.join(dict.fromkeys(seen))[:200]}")


def _table(name: str, rows: Rows | None, type: type[T], notes: Tally) -> list[T]:
    """A small table, whole, less what can not be read."""
    found: list[T] = []
    for row in rows or ():
        try:
            found.append(converted(loosely(row), type))
        except Reject:
            notes.note("rows_dropped", name)
    return found


def _planned(files: dict[str, _File], notes: Tally) -> _Plan:
    items: list[tuple[int, int, bool]] = []
    first: dict[Id, int] = {}  # image id to the item that has it
    for number, file in enumerate(files.values()):
        here: set[Id] = set()
        for row, id in enumerate(_image_ids(file.images)):
            if id is None or id not in first or id in here:
                items.append((number, row, id in here))
            if id is not None:
                first.setdefault(id, len(items) - 1)
                here.add(id)
    groups = {
        kind: _grouped(kind, file.annotations, first, len(items), notes) for kind, file in files.items() if file.annotations is not None
    }
    return _Plan(files, np.array(items, np.int32), groups, notes)


def _image_ids(rows: Rows) -> Iterator[Id | None]:
    """Each row's id, None where it has none; what is wrong with such a row is said when its turn comes."""
    for data in rows:
        try:
            yield decode(data, _image_id).id
        except Reject:
            yield None


def _grouped(kind: str, rows: Rows, items: dict[Id, int], number: int, notes: Tally) -> _Groups:
    at = np.full(len(rows), -1, np.int32)
    for row, data in enumerate(rows):
        try:
            id = _image_of(data)
        except Reject as reject:
            notes.note("annotations_dropped", reject.reason)
            continue
        at[row] = items.get(id, -1)
        notes.note("annotations_without_image", kind, int(at[row] < 0))
    kept = np.flatnonzero(at >= 0)
    order = kept[np.argsort(at[kept], kind="stable")]
    return _Groups(Rows(rows.paths, [rows.ranges[order]]), np.searchsorted(at[order], np.arange(number + 1)))


def _image_of(data: memoryview) -> Id:
    once(data, ("image_id",))
    try:
        return _owner.decode(data).image_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # NaN in a box is no reason to lose the image's id
        return converted(loosely(data), _Owner).image_id


def _names(name: str, roots: Sequence[Path], url: str | None = None) -> list[str]:
    """What a picture may be called: `train2017/` is or is not in the name, in the zip, in the folder given."""
    base = posixpath.basename(name)
    names = [name, base, *(f"{root.stem}/{base}" for root in roots)]
    if url:
        names.append("/".join([*url.split("/")[-2:-1], base]))
    return list(dict.fromkeys(names))


def _turn(*captions: str) -> Turn:
    return record.turn("text", [record.image_part(0), *map(record.text_part, captions)])


def _free(id: str, taken: set[str], counts: Tally) -> str:
    """The id, or where it is taken id.2, id.3, ..."""
    free, number = id, 2
    while free in taken:
        free, number = f"{id}.{number}", number + 1
    counts.note("mended", "annotation_id_repeated", int(free != id))
    taken.add(free)
    return free


def _region(id: str, row: _Annotation, label: str | None, image: Image, counts: Tally) -> Region | None:
    """The annotation's region; None, counted, where its box can not be kept or nothing is left."""
    box = None
    if row.bbox:
        if len(row.bbox) != 4:
            counts.note("regions_dropped", "box_length")
            return None
        box = counts.box(from_xywh(row.bbox), image)
        if box is None:
            return None
    mask = _mask(row.segmentation, image, counts)
    points = _points(row.keypoints, counts)
    if box is None and mask is None and points is None:
        counts.note("regions_dropped", "region_empty")
        return None
    return record.region(id, 0, box=box, mask=mask, points=points, label=label, crowd=_crowd(row.iscrowd))


def _mask(segmentation: Any, image: Image, counts: Tally) -> Mask | None:
    if not segmentation:
        return None
    try:
        mask = _rasterised(segmentation, image, counts)
    except (masks.MaskRefused, msgspec.ValidationError):
        mask = None
    if mask is None or mask.size != [image.height, image.width] or not masks.area(mask):
        counts.note("mended", "masks_dropped")
        return None
    return mask


def _rasterised(segmentation: Any, image: Image, counts: Tally) -> Mask:
    """Raises MaskRefused, ValidationError."""
    if isinstance(segmentation, list):
        polygons = msgspec.convert({"polygons": segmentation}, _Polygons).polygons
        whole = [polygon for polygon in polygons if len(polygon) >= 6]
        counts.note("mended", "polygons_dropped", len(polygons) - len(whole))
        return masks.from_polygons(whole, image.width, image.height)
    runs = msgspec.convert(segmentation, _Runs)
    if isinstance(runs.counts, str):
        return masks.from_compressed(runs.size, runs.counts)
    return masks.from_runs(runs.counts, runs.size)


def _points(keypoints: list[float] | None, counts: Tally) -> list[list[float]] | None:
    if not keypoints:
        return None
    if len(keypoints) % 3 or not all(map(math.isfinite, keypoints)):
        counts.note("mended", "points_dropped")
        return None
    return [keypoints[at : at + 3] for at in range(0, len(keypoints), 3)]


def _crowd(iscrowd: bool | int | None) -> bool | None:
    return None if iscrowd is None else bool(iscrowd)
