"""GranD: automatically annotated scenes of SA-1B pictures. https://github.com/mbzuai-oryx/groundingLMM/blob/main/docs/GranD.md

Goes in: one JSON per image, as files, in folders, or in the published tar.gz parts, which are streamed and never unpacked; and the SA-1B
pictures. Nobody published a schema: the fields are those that upstream's pipeline writes (GranD/utils/*.py). A scene, shortened:

    {"sa_302406.jpg": {
      "objects": [{"bbox": [1672.1, 677.5, 1895.3, 920.0], "labels": ["bulletin board", "hot-air_balloon"], "label": "blackboard",
                   "score": 0.98, "attributes": ["istant: red awning"], "id": 0, "depth": 4330.8,
                   "segmentation": {"size": [1500, 2250], "counts": "..."}, "segmentation_source": "SAM"}],
      "floating_objects": [...], "floating_attributes": [{"bbox": [...], "labels": [], "score": 0.6, "attributes": [...]}],
      "landmark": {"category": "Outdoor scene", "fine_category": "Urban landscape"},
      "affordances": {"Sit": {"description": "...", "object_ids": [302], "labels": ["bench"]}}, "id_counter": 408,
      "relationships": {"object_ids": [0], "floating_object_ids": [], "grounding": [{"phrase": "outdoor seating", "object_ids": [0]}]},
      "short_captions": [{"caption": "...", "details": [{"phrase": "...", "tokens_positive": [0, 5], "id": 0, "bbox": [...]}]}],
      "dense_caption": {"caption": "...", "details": [{"phrase": "...", "tokens_positive": null, "ids": [0], "bbox": [[...]]}]},
      "additional_context": "..."}}

Comes out: one record a scene. Objects and floating objects are regions under their upstream id, floating attributes (which have none) under
`fa<n>`; label, box (xyxy upstream, too), mask, score; `attributes` holds attributes (always a list), all labels, depth or median_depth,
segmentation_source, and floating: true. Phrases of relationships.grounding are expressions. The dense caption is the turn, with its
phrases as spans; short captions and the older ungrounded `captions` are choices (the first of them is the turn where there is
no dense one). Kept in meta: image name, landmark, additional_context, affordances.
Dropped: id_counter; the boxes of details, which repeat those of the objects; relationships' lists of the ids that took part.

Decisions:

* Objects share one counter of ids, yet promotion gave some twice: the first keeps the id, the second is dropped and counted.
* Ids that name no region (affordances were computed before ids were renumbered) are taken out and counted; what then names none is dropped.
* Upstream computed a dense caption's offsets before it took punctuation out: a phrase that does not stand (whatever its case) where its
  offsets say is looked up as whole words, the nearest free occurrence counts; phrases without offsets likewise, from the start.
* Two details of one phrase are one span with the regions of both. Of spans that cross, the later in upstream's order is dropped.
* A mask of another size than the picture says that the picture is another one: reject. A broken mask leaves the box.
* `Assistant:` before an attribute, or what the cut left of it, is the language model's answer mark: taken off and counted.
"""

from __future__ import annotations

import math
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple, cast

import msgspec
from isal import igzip, isal_zlib

from pipelines import nearby
from pipelines.images import Images
from pipelines.names import Names
from pipelines.rows import BOM, decode, decode_nan, once, position
from pipelines.source import Row, Sample, Tally, even, option, verify
from schemas import Expression, Image, Mask, Region, Reject, RequestError, SourceError, Span, Turn, record
from schemas.mask import MaskRefused, from_compressed, from_runs

TARS = (".tar", ".tar.gz", ".tgz")
MAX_SCENE = 64 << 20  # bytes of one JSON; the largest known has 1 MB
MAX_META = 60_000  # bytes: format 1 allows 64,000
MAX_DETAILS = 1_000  # phrases of one caption
SNIFFED = 10  # scenes of each input
MAX_EXTENSION, MAX_EXTENSIONS = 1 << 20, 16  # bytes of a PAX or long-name header; of one member
HEAD = 4096  # bytes in which the image's name stands
KNOWN = frozenset(("objects", "floating_objects", "short_captions", "dense_caption", "captions"))
_PREFIX = re.compile(r"\s*(?:ass)?istant:\s*", re.I)
_FIRST_KEY = re.compile(rb'\s*\{\s*("[^"\\]*(?:\\.[^"\\]*)*")\s*:')
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_BROKEN_TAR = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, zlib.error, cast(type[Exception], isal_zlib.IsalError))


class Thing(msgspec.Struct):
    """An object, floating object or floating attribute."""

    bbox: list[float | None] | None = None
    labels: list[str | None] | str | None = None
    label: str | None = None
    score: float | None = None
    attributes: list[str | None] | str | None = None
    id: int | float | str | None = None
    depth: float | None = None
    median_depth: float | None = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    segmentation_source: str | None = None


class Runs(msgspec.Struct):
    """A mask: compressed, or a count list."""

    size: list[int]
    counts: str | list[int]


class Detail(msgspec.Struct):
    """A phrase of a caption: `ids` in dense captions, `id` in short ones."""

    phrase: str | None = None
    tokens_positive: Any = None
    ids: Any = None
    id: Any = None


class Caption(msgspec.Struct):
    """A text and its phrases."""

    caption: str | None = None
    details: list[Detail] | None = None


class Grounding(msgspec.Struct):
    """A phrase and what it names."""

    phrase: str | None = None
    object_ids: Any = None


class Relationships(msgspec.Struct):
    """What is left of them: phrases."""

    grounding: list[Grounding] | None = None


class Scene(msgspec.Struct):
    """All that is said of one image."""

    objects: list[Thing] | None = None
    floating_objects: list[Thing] | None = None
    floating_attributes: list[Thing] | None = None
    relationships: Relationships | None = None
    dense_caption: Caption | str | None = None
    short_captions: list[Caption | str] | None = None
    captions: list[str] | None = None
    landmark: Any = None
    affordances: Any = None
    additional_context: Any = None


_scenes = msgspec.json.Decoder(dict[str, Scene])
_runs = msgspec.json.Decoder(Runs)
_keys = msgspec.json.Decoder(dict[str, dict[str, msgspec.Raw]])


class Files(NamedTuple):
    """A unit of scenes that are files: their names under a root; without one, as they were given."""

    root: str
    names: Sequence[str]


class Part(NamedTuple):
    """A unit that is a tar, or the first scenes of one where there is a limit."""

    path: Path
    stop: int | None


class _Folder(NamedTuple):
    """What lies in a folder of annotations."""

    scenes: Names
    tars: list[Path]
    counted: Names  # of both, and of all others, what is a part of the input


class _Loose(NamedTuple):
    """An input: scenes that are files under a root."""

    root: str
    names: Names


class Units(Sequence[Files | Part]):
    """Runs of files, and tars, in order. Names are read when a unit is asked for: there are millions of them."""

    def __init__(self, cuts: Sequence[tuple[_Loose | Path, int, int | None]]) -> None:
        self._cuts = cuts

    def __reduce__(self) -> tuple[type[list[Files | Part]], tuple[list[Files | Part]]]:
        return list, (list(self),)

    def __len__(self) -> int:
        return len(self._cuts)

    def __getitem__(self, number: Any) -> Any:
        input, start, stop = self._cuts[number]
        return Part(input, stop) if isinstance(input, Path) else Files(input.root, tuple(input.names.part(start, stop or start)))


@dataclass(frozen=True, kw_only=True)
class Grand:
    """GranD scenes as grounded records. The module's docstring says what is kept.

    example: grand --annotations annotations/part_1.tar.gz --images sa1b
    """

    name: ClassVar[str] = "grand"

    annotations: tuple[Path, ...] = option("a scene's .json, a folder of them, or a .tar.gz part; repeatable", reads="annotations")
    images: tuple[Path, ...] = option("folder, .zip or .tar of SA-1B pictures; repeatable", reads="pictures", default=())
    verify: str = verify()

    def units(self, limit: int | None) -> Sequence[Files | Part]:
        """Runs of files, and tars whole, in the order in which they were named, a folder's files before its tars."""
        found: list[tuple[_Loose | Path, int, int | None]] = []
        for input in self._inputs:
            if limit is not None and limit <= 0:
                break
            _sniff(input)
            cut = _cut(input, limit)
            found += [(input, *range) for range in cut]
            limit = None if limit is None else limit - sum((stop or 0) - start for start, stop in cut)
        return Units(found)

    def rows(self, unit: Files | Part) -> Iterator[Row]:
        """Its scenes, as the bytes of their JSON; None for one that is too long."""
        for file, number, data in _read(unit, MAX_SCENE + 1):
            yield Row(file, number, data if len(data) <= MAX_SCENE else None)

    def sample(self, row: Row) -> Sample:
        """The scene's record."""
        if row.data is None:
            raise Reject("json_bytes", f"expected a scene of at most {MAX_SCENE} bytes, found a longer one")
        counts = Tally()
        once(row.data, Scene.__struct_fields__)
        scenes, nans = decode_nan(row.data.removeprefix(BOM), _scenes)
        counts.note("mended", "json_nan", nans)
        if len(scenes) != 1:
            raise Reject("schema", f"expected one image, found {len(scenes)}: {', '.join(list(scenes)[:3])[:200]}")
        ((name, scene),) = scenes.items()
        once(row.data, (name,))
        found = self._images.read(name)
        counts.note("mended", "other_suffix", int(found.other_suffix))
        return Sample(_record(name, scene, found.image, counts), [found.data], counts=counts)

    def references(self) -> Iterator[Sequence[str]]:
        """The picture of each scene: the only key of its JSON, which stands at its beginning."""
        for unit in self.units(None):
            for _, _, head in _read(unit, HEAD):
                yield _image_name(head)

    def listed(self, folder: Path) -> Names:
        """The files of a folder of annotations that are a part of the input; it is listed once, for this and for the units."""
        return self._folders[folder].counted

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_inputs", "_folders")}  # a unit has what it needs

    @cached_property
    def _images(self) -> Images:
        return Images(self.images, self.verify)

    @cached_property
    def _inputs(self) -> list[_Loose | Path]:
        return list(_inputs(self.annotations, self._folders))

    @cached_property
    def _folders(self) -> dict[Path, _Folder]:
        return {path: _listed(path) for path in self.annotations if nearby.is_folder(path)}


def _record(name: str, scene: Scene, image: Image, counts: Tally) -> record.Record:
    regions = _regions(scene, image, counts)
    turns = [_turn(caption, regions, counts) for caption in _captions(scene, counts)] or [record.turn("text", [record.image_part(0)])]
    return record.record(
        "grand",
        images=[image],
        turns=turns[:1],
        choices=[record.Choice([turn]) for turn in turns[1:]],
        regions=list(regions.values()),
        expressions=_expressions(scene, regions, counts),
        meta=_meta(name, scene, regions, counts),
    )


def _regions(scene: Scene, image: Image, counts: Tally) -> dict[str, Region]:
    """The regions by id."""
    kinds = (("o", scene.objects, False), ("f", scene.floating_objects, True), ("fa", scene.floating_attributes, True))
    seen: set[str] = set()
    regions: dict[str, Region] = {}
    for prefix, things, floating in kinds:
        for number, thing in enumerate(things or ()):
            id = f"{prefix}{number}" if thing.id is None else _id(thing.id)
            if id in seen:
                counts.note("regions_dropped", "duplicate_id")
                continue
            seen.add(id)
            region = _region(id, thing, floating, image, counts)
            if region is not None:
                regions[id] = region
    return regions


def _region(id: str, thing: Thing, floating: bool, image: Image, counts: Tally) -> Region | None:
    mask = _mask(thing.segmentation, image, counts)
    box = None
    if thing.bbox is not None:
        corners = [math.nan if value is None else value for value in thing.bbox]
        if len(corners) != 4:
            counts.note("regions_dropped", "box_length")
            return None
        box = counts.box(corners, image)
        if box is None:
            return None
    elif mask is None:
        counts.note("regions_dropped", "box_missing")
        return None
    labels = _list(thing.labels)
    label = thing.label if thing.label is not None else next(iter(labels), None)
    attributes = _attributes(thing, labels, floating, counts)
    return record.region(id, 0, box=box, mask=mask, label=label, score=thing.score, attributes=record.json_text(attributes))


def _mask(segmentation: msgspec.Raw, image: Image, counts: Tally) -> Mask | None:
    if bytes(segmentation) == b"null":
        return None
    try:
        runs = decode(segmentation, _runs)
        if len(runs.size) == 2 and runs.size != [image.height, image.width]:
            raise Reject("size_differs", f"expected a mask of {image.height} x {image.width}, found {runs.size[0]} x {runs.size[1]}")
        return from_compressed(runs.size, runs.counts) if isinstance(runs.counts, str) else from_runs(runs.counts, runs.size)
    except MaskRefused as error:
        counts.note("masks_dropped", error.reason)
    except Reject as reject:
        if reject.reason == "size_differs":
            raise
        counts.note("masks_dropped", "mask_schema")
    return None


def _attributes(thing: Thing, labels: Sequence[str], floating: bool, counts: Tally) -> dict[str, Any]:
    said = _list(thing.attributes)
    clean = [_PREFIX.sub("", text, count=1) if _PREFIX.match(text) else text for text in said]
    counts.note("mended", "attribute_prefix", sum(before != after for before, after in zip(said, clean, strict=True)))
    found: dict[str, Any] = {"attributes": clean, "labels": list(labels)}
    for name in ("depth", "median_depth", "segmentation_source"):
        if getattr(thing, name) is not None:
            found[name] = getattr(thing, name)
    return {**found, "floating": True} if floating else found


def _list(value: list[str | None] | str | None) -> list[str]:
    """Upstream's null, string or list."""
    return [text for text in ([value] if isinstance(value, str) else value or ()) if text is not None]


def _id(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _ids(value: Any) -> list[str]:
    """Upstream's null, id or list of ids, each once."""
    values = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(_id(one) for one in values if isinstance(one, int | float | str)))


def _known(value: Any, regions: dict[str, Region], counts: Tally, reason: str) -> list[str]:
    """The ids that name a region; the others are counted."""
    ids = _ids(value)
    known = [id for id in ids if id in regions]
    counts.note("mended", reason, len(ids) - len(known))
    return known


def _expressions(scene: Scene, regions: dict[str, Region], counts: Tally) -> list[Expression]:
    found: list[Expression] = []
    for grounding in (scene.relationships and scene.relationships.grounding) or ():
        ids = _known(grounding.object_ids, regions, counts, "expression_dangling_id")
        if ids and grounding.phrase:
            found.append(Expression(grounding.phrase, ids))
        else:
            counts.note("expressions_dropped", "no_phrase" if ids else "no_region")
    return found


def _captions(scene: Scene, counts: Tally) -> Iterator[Caption]:
    """Dense, short and ungrounded captions that have a text."""
    dense = [] if scene.dense_caption is None else [scene.dense_caption]
    for caption in (*dense, *(scene.short_captions or ()), *(scene.captions or ())):
        caption = Caption(caption) if isinstance(caption, str) else caption
        if caption.caption and caption.caption.strip():
            yield caption
        else:
            counts.note("captions_dropped", "empty")


def _turn(caption: Caption, regions: dict[str, Region], counts: Tally) -> Turn:
    text = caption.caption or ""
    spans = _spans(text, caption.details or (), regions, counts)
    return record.turn("text", [record.image_part(0), record.text_part(text)], spans=spans)


def _spans(text: str, details: Sequence[Detail], regions: dict[str, Region], counts: Tally) -> list[Span]:
    """The phrases as spans, in order of their places."""
    counts.note("spans_dropped", "too_many", max(0, len(details) - MAX_DETAILS))
    kept: dict[tuple[int, int], Span] = {}
    for detail in details[:MAX_DETAILS]:
        ids = _known(detail.id if detail.ids is None else detail.ids, regions, counts, "span_dangling_id")
        place = _place(text, detail, kept, counts) if ids else None
        if not ids or place is None:
            counts.note("spans_dropped", "phrase_not_found" if ids else "no_region")
        elif place in kept:
            kept[place].regions += [id for id in ids if id not in kept[place].regions]
            counts.note("mended", "span_merged")
        elif any(_cross(place, other) for other in kept):
            counts.note("spans_dropped", "span_cross")
        else:
            kept[place] = Span(*place, ids)
    return [kept[place] for place in sorted(kept, key=lambda place: (place[0], -place[1]))]


def _place(text: str, detail: Detail, taken: Iterable[tuple[int, int]], counts: Tally) -> tuple[int, int] | None:
    """Start and end of the detail's phrase in the text."""
    phrase, stated = (detail.phrase or "").strip(), _offsets(detail.tokens_positive)
    if not phrase:
        return None
    if stated and 0 <= stated[0] < stated[1] <= len(text) and text[slice(*stated)].lower() == (detail.phrase or "").lower():
        return stated
    found = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.I)]
    if not found:
        return None
    counts.note("mended", "span_moved" if stated else "span_found")
    near = stated[0] if stated else 0
    return min(found, key=lambda place: (place in taken, abs(place[0] - near)))


def _offsets(value: Any) -> tuple[int, int] | None:
    """[start, end), also where it is nested as MDETR does."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list) and len(value) == 2 and all(isinstance(at, int) for at in value):
        return value[0], value[1]
    return None


def _cross(one: tuple[int, int], other: tuple[int, int]) -> bool:
    first, second = sorted((one, other))
    return first[0] < second[0] < first[1] < second[1]


def _meta(name: str, scene: Scene, regions: dict[str, Region], counts: Tally) -> dict[str, Any]:
    """What fits, in order of use; what does not is counted."""
    affordances = _affordances(scene.affordances, regions, counts)
    kept: dict[str, Any] = {"id": name}
    room = MAX_META - len(name.encode())
    more = {"landmark": scene.landmark, "additional_context": scene.additional_context, "affordances": affordances}
    for field, value in more.items():
        size = len(field) + 4 + len(msgspec.json.encode(value))
        if value and size <= room:
            kept[field] = value
            room -= size
        elif value:
            counts.note("meta_dropped", field)
    return kept


def _affordances(affordances: Any, regions: dict[str, Region], counts: Tally) -> Any:
    """As upstream has them, with ids of regions."""
    if not isinstance(affordances, dict):
        return affordances
    return {name: _affordance(one, regions, counts) for name, one in affordances.items()}


def _affordance(one: Any, regions: dict[str, Region], counts: Tally) -> Any:
    if not isinstance(one, dict) or "object_ids" not in one:
        return one
    return {**one, "object_ids": _known(one["object_ids"], regions, counts, "affordance_dangling_id")}


def _inputs(annotations: Sequence[Path], folders: dict[Path, _Folder]) -> Iterator[_Loose | Path]:
    """Files named one after another together, each folder's, and each tar."""
    single = Names()
    for path in annotations:
        if path not in folders and not nearby.is_file(path):
            raise RequestError(f"{nearby.called(path)}: expected a .json, a .tar.gz or a folder of them, found nothing")
        if path not in folders and not path.name.endswith(TARS):
            single.append(str(path))
            continue
        if single:
            yield _Loose("", single)
            single = Names()
        if path not in folders:
            yield path
            continue
        if folders[path].scenes:
            yield _Loose(str(path), folders[path].scenes)
        yield from folders[path].tars
    if single:
        yield _Loose("", single)


def _listed(folder: Path) -> _Folder:
    found = _Folder(Names(), [], Names())
    for run in nearby.runs(folder):
        found.scenes.extend([name for name in run if name.endswith(".json")])
        found.tars.extend(folder / name for name in run if name.endswith(TARS))
        found.counted.extend(run if nearby.counted(run) else [])
    if not found.scenes and not found.tars:
        raise SourceError(f"{nearby.called(folder)}: expected scenes (.json) or parts ({', '.join(TARS)}), found neither")
    return found


def _cut(input: _Loose | Path, limit: int | None) -> list[tuple[int, int | None]]:
    """Start and stop of its units."""
    if isinstance(input, _Loose):
        return [(part.start, part.stop) for part in even(len(input.names), limit)]
    if limit is None:
        return [(0, None)]
    with nearby.briefly():
        return [(0, sum(1 for _ in islice(_members(input, 1), limit)))]


def _read(unit: Files | Part, most: int) -> Iterator[tuple[str, int, bytes]]:
    """File, number within it and the first `most` bytes of the JSON of each of its scenes."""
    if isinstance(unit, Part):
        with nearby.briefly():
            for number, data in enumerate(islice(_members(unit.path, most), unit.stop)):
                yield unit.path.name, number, data
        return
    for name in unit.names:
        yield name if unit.root else Path(name).name, 0, _head(unit.root, name, most)


def _head(root: str, name: str, most: int) -> bytes:
    try:
        return nearby.read(root, name, most)
    except OSError as error:
        raise SourceError(f"{nearby.called(Path(root, name))}: expected a readable file, found {error.strerror}") from error


def _members(path: Path, most: int) -> Iterator[bytes]:
    """The first `most` bytes of each .json of a tar, in its order. Raises SourceError where the tar is cut off or damaged."""
    try:
        with _opened(path) as file, tarfile.open(fileobj=cast(IO[bytes], file), mode="r|", tarinfo=_Header) as tar:
            while (member := tar.next()) is not None:
                # tarfile remembers every member, and a part has hundreds of thousands.
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                if member.isreg() and member.name.endswith(".json") and not Path(member.name).name.startswith("."):
                    yield cast(IO[bytes], tar.extractfile(member)).read(most)
            _end(path, file, cast(IO[bytes], tar.fileobj))
    except _BROKEN_TAR as error:
        raise SourceError(f"{nearby.called(path)}: expected a whole tar, found {type(error).__name__}: {error}") from error


class _Header(tarfile.TarInfo):
    """A header. What tarfile reads or goes into before anything is asked for is bounded: long names, PAX fields, sparse maps."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        behind = vars(tar)["behind"] = vars(tar).get("behind", 0) + 1 if self.type in _EXTENDED else 0  # one another
        if behind and (self.size > MAX_EXTENSION or behind > MAX_EXTENSIONS):
            found = f"{behind}, the last of {self.size}"
            raise tarfile.ReadError(f"expected at most {MAX_EXTENSIONS} extended headers of {MAX_EXTENSION} bytes, found {found}")
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._sparse()
        return super()._proc_member(tar)  # pyright: ignore[reportAttributeAccessIssue]

    def _sparse(self, *_: object) -> None:
        raise tarfile.ReadError("expected a plain file, found a sparse one")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _sparse


class _Tail:
    """A file that remembers the last block that was read."""

    def __init__(self, file: Any) -> None:
        self.file, self.block = file, b""

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.block = (self.block + data)[-512:]
        return data


@contextmanager
def _opened(path: Path) -> Iterator[_Tail]:
    with nearby.near(path).open("rb") as raw:
        magic = raw.read(2)
        raw.seek(0)
        if magic != b"\x1f\x8b":
            yield _Tail(raw)
            return
        with igzip.IGzipFile(fileobj=raw) as unpacked:
            yield _Tail(unpacked)


def _end(path: Path, file: _Tail, stream: IO[bytes]) -> None:
    """tarfile takes a bad header for the end: behind the true one there are only zeros, and at least a block of them."""
    while rest := stream.read(1 << 20):
        if rest.strip(b"\0"):
            raise SourceError(f"{nearby.called(path)}: expected a tar header, found {rest.lstrip(bytes(1))[:16]!r}")
    if file.block != bytes(512):
        raise SourceError(f"{nearby.called(path)}: expected a tar that ends in zeros, found one that is cut off")


def _sniff(input: _Loose | Path) -> None:
    """Raise SourceError unless one of the first scenes is one."""
    few = Part(input, SNIFFED) if isinstance(input, Path) else Files(input.root, input.names.part(0, SNIFFED))
    heads = [data for _, _, data in _read(few, MAX_SCENE + 1)]
    path = input if isinstance(input, Path) else Path(input.root, next(iter(input.names)))
    where = nearby.called(path)
    if not heads:
        raise SourceError(f"{where}: expected scenes (.json), found none")
    found = [_found(data) for data in heads]
    if all(found):
        first = heads[0]
        at = f"{where} member 1" if isinstance(input, Path) else position(path, first, len(first)) if "truncated" in found[0] else where
        raise SourceError(f"{at}: expected an image name with {', '.join(sorted(KNOWN)[:3])}, ..., found {found[0]}")


def _found(data: bytes) -> str:
    """What is wrong with a scene at first sight; empty for nothing."""
    if len(data) > MAX_SCENE:
        return f"more than {MAX_SCENE} bytes"
    try:
        scenes, _ = decode_nan(data.removeprefix(BOM), _keys)
    except Reject as reject:
        return f"{data[:24]!r}: {reject.detail}"
    keys = {key for scene in scenes.values() for key in scene}
    return "" if keys & KNOWN else f"{', '.join([*scenes, *sorted(keys)][:6]) or 'nothing'}"


def _image_name(head: bytes) -> list[str]:
    found = _FIRST_KEY.match(head.removeprefix(BOM))
    if found is None:
        return []
    try:
        return [msgspec.json.decode(found[1], type=str)]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
