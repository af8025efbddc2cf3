"""The writer: one unit's records into tars of bounded size with their indexes, each under its name only when it is whole.

`UUUUUU-PPP.tar` is cut before the record that would exceed `shard_bytes`; members are KEY.0.jpg, KEY.1.png, ..., maps, KEY.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from schemas import Record, RecordError, Reject, RequestError, validate
from schemas.picture import measure
from schemas.record import encode
from schemas.validate import map_name
from shards import durable, manifest, ustar
from shards.index import IndexBuilder, Packed, entry
from shards.manifest import RejectRow, ShardInfo, Unit
from shards.place import Place
from shards.settle import Settled, Settling
from shards.sink import Buffer, Sink
from shards.upload import Uploads

SHARD_BYTES = 256 << 20
_SMALL = 4096  # bytes of a payload that is rather copied
_MAX_PARTS = 1000  # shards of a unit: a name has three digits for it
_MAP_MODES = {"L8": (b"\x08\x00", b"\x08\x03"), "L16": (b"\x10\x00",), "RGB24": (b"\x08\x02",)}  # PNG bit depth, colour type


class UnitWriter:
    """Writes the records of one unit. Use as a context manager: left by an error, nothing of the open shard stays."""

    def __init__(
        self,
        folder: Path,
        unit: int,
        shard_bytes: int = SHARD_BYTES,
        place: Place | None = None,
        settling: Settling | None = None,
    ) -> None:
        """folder: where the shards are written; place: object storage that they go to from there; settling: what syncs and hashes them."""
        self.folder, self.unit, self.shard_bytes = folder, unit, shard_bytes
        self._settling = settling or Settling(1)
        self._uploads = Uploads(place) if place is not None and place.folder is None else None
        self.shards: list[ShardInfo] = []
        self.suffixes: set[str] = set()
        self._open: _Shard | None = None
        self._sealed: list[_Shard] = []

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._open is not None:
            self._open.discard()
        for shard in self._sealed if kind is not None else ():
            shard.discard()

    def add(self, row: int, record: Record, files: Sequence[Buffer], maps: Sequence[Buffer] = ()) -> int:
        """Give the record its key, validate it and write it; the bytes it takes in the tar.

        files: the pictures' bytes, one an image; maps: PNG bytes, one a map, whose `member` is its bare name. Raises RecordError, and then
        nothing was written.
        """
        record, text = ready(record, f"{self.unit:06d}-{row:08d}", files, maps)
        members = [
            *zip((image.member for image in record.images), files, strict=True),
            *zip((map.member for map in record.maps), maps, strict=True),
            (f"{record.key}.json", text),
        ]
        size = sum([ustar.stored(len(data)) for _, data in members])
        self._shard_with_room(size).add(record, members, files, size)
        self.suffixes.update([name[len(record.key) + 1 :] for name, _ in members])
        return size

    def seal(self) -> None:
        """No record comes any more; `finish` is left to do, in any thread, so that neither hash nor disk need be waited for."""
        if self._open is not None:
            self._open.seal(self._settling)
            self._sealed.append(self._open)
            self._open = None

    def finish(self) -> list[ShardInfo]:
        """All shards of the unit, in order, synced and under their names, on object storage where they go there."""
        try:
            self._finish_sealed(0)
        except BaseException:
            for shard in self._sealed:
                shard.discard()
            raise
        if self._uploads is not None:
            self._uploads.wait()
        return self.shards

    def _finish_sealed(self, most: int) -> None:
        """Finish, in order, what is settled by now, and what is more than so many."""
        while self._sealed and (len(self._sealed) > most or self._sealed[0].settled()):
            shard = self._sealed.pop(0)
            self.shards.append(shard.finish())
            if self._uploads is not None:
                self._uploads.put(shard.tar)

    def close(self) -> list[ShardInfo]:
        """Seal and finish: all shards of the unit, in order."""
        self.seal()
        self._settling.hurry()
        return self.finish()

    def result(self, run: str, rejects: list[RejectRow], dropped: dict[str, dict[str, int]]) -> Unit:
        """Finish: what is to be committed. rejects: the unit's items that became no record."""
        shards = self.finish()
        written, images = sum(shard.records for shard in shards), sum(shard.images for shard in shards)
        return Unit(self.unit, run, written + len(rejects), written, images, manifest.runs(rejects), dropped, shards, sorted(self.suffixes))

    def _shard_with_room(self, size: int) -> _Shard:
        if self._open is not None and self._open.size + size + len(ustar.END) > self.shard_bytes:
            self.seal()
            self._finish_sealed(self._settling.together)
        if self._open is None:
            part = len(self.shards) + len(self._sealed)
            if part == _MAX_PARTS:
                raise RequestError(f"--shard-bytes: expected at most {_MAX_PARTS} shards of a unit, found more at {self.shard_bytes} bytes")
            self._open = _Shard(self.folder, f"{self.unit:06d}-{part:03d}")
        return self._open


def ready(record: Record, key: str, files: Sequence[Buffer], maps: Sequence[Buffer]) -> tuple[Record, bytes]:
    """The record under this key, as a reader will see it, and its JSON. Raises RecordError where it, or a payload, breaks a rule."""
    name_members(record, key)
    record = _typed(record)
    validate(record)
    _payloads_match(record, files, maps)
    return record, _encoded(record)


def name_members(record: Record, key: str) -> None:
    """Give a record its key and its members their full names; a map's `member` is its bare name, or one that it was written under."""
    names = [map_name(record.key, map) or map.member for map in record.maps]
    record.key = key
    for index, image in enumerate(record.images):
        image.member = f"{key}.{index}.{image.format}"
    for map, name in zip(record.maps, names, strict=True):
        map.member = f"{key}.{map.image}.{name}.png"


_pack, _unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Record).decode


def _typed(record: Record) -> Record:
    """The record as a reader will see it: an int where a float belongs is made one, so that write, read, write gives the same bytes.

    By way of MessagePack, which keeps NaN for `validate` to see, and makes no dict of a struct; what that refuses is looked at closely.
    """
    try:
        return _unpack(_pack(record))
    except (msgspec.MsgspecError, UnicodeEncodeError, TypeError, OverflowError):
        return _converted(record)


def _converted(record: Record) -> Record:
    try:
        return msgspec.convert(msgspec.to_builtins(record), Record)
    except (msgspec.ValidationError, TypeError, OverflowError) as error:
        raise RecordError("types", f"expected the types of format 1, found: {error}"[:300]) from error


def _encoded(record: Record) -> bytes:
    try:
        return encode(record)
    except UnicodeEncodeError as error:
        raise RecordError("text_unicode", f"expected text that UTF-8 can hold, found {error}"[:300]) from error
    except (msgspec.EncodeError, OverflowError) as error:
        raise RecordError("types", f"expected numbers of 64 bits, found: {error}"[:300]) from error


def _payloads_match(record: Record, files: Sequence[Buffer], maps: Sequence[Buffer]) -> None:
    if len(files) != len(record.images) or len(maps) != len(record.maps):
        found = f"{len(files)} and {len(maps)}"
        raise RecordError("payloads", f"expected {len(record.images)} pictures and {len(record.maps)} maps, found {found}")
    for image, data in zip(record.images, files, strict=True):
        if image.bytes != len(data):
            raise RecordError("image_bytes", f"{image.member}: expected {image.bytes} bytes, found {len(data)}")
    for map, data in zip(record.maps, maps, strict=True):
        image = record.images[map.image]
        try:
            picture = measure(data)
        except Reject as reject:
            raise RecordError("map_png", f"{map.member}: {reject}") from reject
        if map.encoding in _MAP_MODES and picture.format == "png" and bytes(data[24:26]) not in _MAP_MODES[map.encoding]:
            raise RecordError(
                "map_encoding", f"{map.member}: expected {map.encoding}, found PNG depth and colour {bytes(data[24:26]).hex()}"
            )
        if picture != ("png", image.width, image.height):
            raise RecordError("map_size", f"{map.member}: expected a png of {image.width}x{image.height}, found {tuple(picture)}")


class _Shard:
    """One tar being written, and its index."""

    def __init__(self, folder: Path, name: str) -> None:
        self.tar, self.name, self.size = folder / f"{name}.tar", name, 0
        self.images = 0
        self._file = os.open(durable.aside(self.tar), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._sink, self._index = Sink(self._file), IndexBuilder()
        self._packed: Packed | None = None
        self._settled: Settled | None = None

    def add(self, record: Record, members: Sequence[tuple[str, Buffer]], pictures: Sequence[Buffer], size: int) -> None:
        buffers, places = _laid_out(members, self.size)
        try:
            self._sink.record(buffers, pictures)
        except OSError as error:
            raise self._named(error) from error
        self._index.entries.append(entry(record, self.size, size, places, upstream_id(record)))
        self.images += len(pictures)
        self.size += size

    def seal(self, settling: Settling) -> None:
        """No record comes any more: written to its end, it is given to be synced and hashed."""
        self.size += len(ustar.END)
        try:
            self._sink.write([ustar.END])
            self._sink.flush()
            self._settled = settling.put(self._file, self.size)
            self._packed = self._index.pack(self._sink.crc32, self._sink.xxh3, self.tar.parent)
        except OSError as error:
            raise self._named(error) from error
        del self._index, self._sink  # many shards may wait

    def settled(self) -> bool:
        """Whether `finish` has nothing to wait for."""
        return self._settled is not None and self._settled.done()

    def finish(self) -> ShardInfo:
        """Synced, indexed, renamed. The index comes first, so a tar that has its name has its index. Nothing stays if it fails."""
        try:
            sha256 = self._synced()
            assert self._packed is not None
            with self._packed.file:
                index = self._packed.encode(self.size, sha256)
            durable.write(self.tar.with_suffix(".parquet"), index)
            durable.publish(self.tar)
            os.close(self._file)
        except BaseException:
            self.discard()
            raise
        return ShardInfo(self.name + ".tar", self._packed.records, self.images, self.size, sha256, hashlib.sha256(index).hexdigest())

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # nothing here may hide why it is discarded
            durable.aside(self.tar).unlink(missing_ok=True)
            if self._packed is not None:
                self._packed.file.close()
            os.close(self._file)

    def _synced(self) -> str:
        """Its sha256, when it is on the disk."""
        assert self._settled is not None
        try:
            return self._settled.wait()
        except OSError as error:
            raise self._named(error) from error

    def _named(self, error: OSError) -> OSError:
        """Errors of the descriptor say which file it is."""
        return OSError(error.errno, error.strerror, str(self.tar))


def _laid_out(members: Sequence[tuple[str, Buffer]], at: int) -> tuple[list[Buffer], list[tuple[str, int, int]]]:
    """A record's bytes in the tar, and of each member name, offset and size, where the record begins at this byte.

    Small pieces are joined: every buffer costs a call to hash it and a place in the write.
    """
    buffers: list[Buffer] = []
    small: list[Buffer] = []
    places = []
    for name, data in members:
        places.append((name, at + ustar.BLOCK, len(data)))
        at += ustar.stored(len(data))
        small.append(ustar.header(name, len(data)))
        if len(data) > _SMALL:
            buffers += (b"".join(small), data)
            small = []
        else:
            small.append(data)
        small.append(ustar.padding(len(data)))
    return [*buffers, b"".join(small)], places


def upstream_id(record: Record) -> str | None:
    """`id` in the record's meta, as text."""
    try:
        found = _with_id.decode(record.meta).id
    except (msgspec.DecodeError, RecursionError):
        return None
    return None if found is None else str(found)


class _WithId(msgspec.Struct):
    id: str | int | float | None = None


_with_id = msgspec.json.Decoder(_WithId)  # here: see shards.manifest
