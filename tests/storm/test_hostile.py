"""Hostile input: whoever made the file wanted harm. No traceback, no hang, no path outside, bounded memory; everything is counted."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from tests.pipelines.upstreams import ITEMS, made
from tests.shards.foreign_tars import any_tar, img2dataset, img2dataset_rows
from tests.shards.records import picture
from tests.storm.accounts import account
from tests.storm.watch import Child, Ran

MUCH = 400 << 20  # bytes that no case here may take above what the process had: imports and the largest document are in it
PIXELS = 1 << 30  # bytes of the largest picture that is decoded
SECRET = b"what nobody asked for"
MILLION = 10**6


def converted(child: Child, source: str, flags: list[Any], out: Path, *more: object) -> tuple[Ran, dict[str, dict[str, int]]]:
    """The command's run, and its counts; they add up, and what it wrote is sound."""
    ran = child.run("pipelines", "convert", source, *flags, "--out", out, "--workers", 1, "--json", *more)
    if ran.status == 2:
        return ran, {}
    assert list(account(out).wrong()) == []
    assert child.run("shards", "check", out, "--deep", "--json", "--workers", 1).status == 0
    return ran, json.loads(ran.out)


def conversations(image: Any, id: Any = 0, asked: str = "<image>\nWhat?") -> dict[str, Any]:
    return {"id": id, "image": image, "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "A."}]}


# Many.


def test_a_million_pictures_in_one_row_are_one_reject(child: Child, ground: Path) -> None:
    flags = made("llava", ground / "in")[1]
    many = (["0.jpg"] * MILLION, [f"{n}.gone" for n in range(MILLION)])
    rows = [*(conversations(names, asked="What?") for names in many), conversations("1.jpg")]
    (ground / "in/rows.json").write_text(json.dumps(rows))

    ran, found = converted(child, "llava", flags, ground / "out")

    assert (ran.status, found["rejected"], found["totals"]["written"]) == (1, {"too_many_images": 2}, 1)
    assert ran.peak < MUCH
    assert child.run("pipelines", "check", "llava", *flags, "--json").peak < MUCH


def test_a_million_pictures_in_one_document_are_one_reject(child: Child, ground: Path) -> None:
    path, flags = made("mmc4", ground / "in")
    many = {"text_list": ["One."], "image_info": [{"image_name": "0.jpg", "matched_text_index": 0}] * MILLION, "similarity_matrix": []}
    path.write_text(json.dumps(many)[: 63 << 20] + "\n" + path.read_text())

    ran, found = converted(child, "mmc4", flags, ground / "out")

    assert (ran.status, found["rejected"], found["totals"]["written"]) == (1, {"too_many_images": 1}, ITEMS)
    assert ran.peak < 2 * MUCH  # 63 MB of JSON


DEEP = 100_000
DEEPEST = {"coco": '{"a":', "grand": "[", "llava": '{"a":', "mmc4": "[", "visual_genome": '{"a":'}
FIELD = {
    "coco": '"caption": ',
    "grand": '"objects": ',
    "llava": '"conversations": ',
    "mmc4": '"text_list": ',
    "visual_genome": '"regions": ',
}


@pytest.mark.parametrize("source", FIELD)
def test_json_nested_without_end_costs_no_more_than_its_row(source: str, child: Child, ground: Path) -> None:
    path, flags = made(source, ground / "in")
    opening = DEEPEST[source]
    deep = opening * DEEP + "1" + ("]" if opening == "[" else "}") * DEEP
    file = path / "sa_1.json" if source == "grand" else path
    before, field, behind = file.read_text().partition(FIELD[source])
    file.write_text(f'{before}{field}{deep}, "then": {behind}')

    ran, found = converted(child, source, flags, ground / "out")

    dropped = found["annotations_dropped"] if source in ("coco", "visual_genome") else found["rejected"]
    assert list(dropped.values()) == [1]
    assert found["totals"]["written"] == (ITEMS if source == "coco" else ITEMS - 1)
    assert ran.peak < MUCH
    assert child.run("pipelines", "check", source, *flags).peak < MUCH


NESTED = f'{{"then": {"[" * DEEP + "]" * DEEP}}}'


@pytest.mark.parametrize(("name", "statuses"), [("manifest.json", (1, 1)), ("run.json", (0, 2)), ("_units/000000.json", (0, 0))])
def test_json_nested_without_end_in_a_place_is_named(name: str, statuses: tuple[int, int], child: Child, ground: Path) -> None:
    _, flags = made("laion", ground)
    out = ground / "out"
    assert converted(child, "laion", flags, out)[0].status == 0
    (out / name).write_text(NESTED)

    check = child.run("shards", "check", out, "--json")
    again = child.run("pipelines", "convert", "laion", *flags, "--out", out, "--workers", 1)

    assert (check.status, again.status) == statuses


def test_json_nested_without_end_beside_a_tar_is_no_word_about_it(child: Child, ground: Path) -> None:
    place = img2dataset(ground / "tars", [2])
    (place / "00000_stats.json").write_text(NESTED)
    folder, flags = made("laion", ground)
    (folder / "00000_stats.json").write_text(NESTED)

    assert child.run("shards", "index", place, "--workers", 1).status == 1
    assert converted(child, "laion", flags, ground / "out")[1]["notes"] == {"no_stats": 1}


# Names.

HOSTILE = [
    "../secret", "a/../../secret", "./0.jpg/../../secret", "/etc/passwd", "..", ".", "", "/", "0.jpg/", "0.jpg\0", "0.jpg\n", "\x1b[2J",
    "n" * 10_000, "d/" * 3000, "\ud800.jpg", "images", "~root/x", "-rf", "C:\\x", "con",
    "file:///etc/passwd", "s3://bucket/x", "http://127.0.0.1:1/x",
]  # fmt: skip


@pytest.mark.parametrize("source", ["llava", "mmc4", "coco", "grand"])
@pytest.mark.parametrize("store", ["folder", "zip", "tar"])
def test_names_in_annotations_lead_nowhere(source: str, store: str, child: Child, ground: Path) -> None:
    path, flags = made(source, ground / "in")
    (ground / "in/secret").write_bytes(picture(24, 16, 99))
    folder = ground / "in/images"
    if store != "folder":
        flags[-1] = str(packed(folder, ground / f"in/images.{store}"))
    if source == "llava":
        path.write_text(json.dumps([conversations(name, n) for n, name in enumerate(HOSTILE)]))
    elif source == "mmc4":
        path.write_text("".join(json.dumps({"text_list": ["a"], "image_info": [{"image_name": name}]}) + "\n" for name in HOSTILE))
    elif source == "coco":
        rows = [{"id": n, "file_name": name} for n, name in enumerate(HOSTILE)]
        path.write_text(json.dumps({"images": rows, "annotations": [{"image_id": 0, "caption": "a"}]}))
    else:
        for n, name in enumerate(HOSTILE):
            (path / f"hostile_{n}.json").write_text(json.dumps({name: {"objects": []}}))

    ran, found = converted(child, source, flags, ground / "out")
    check = child.run("pipelines", "check", source, *flags)

    assert ran.status in (1, 2)
    assert found.get("totals", {}).get("read", 0) in (0, len(HOSTILE), len(HOSTILE) + ITEMS)
    secret = (ground / "in/secret").read_bytes()
    assert all(secret not in file.read_bytes() for file in (ground / "out").rglob("*") if file.is_file())
    assert check.status in (0, 1, 2)


def packed(folder: Path, target: Path) -> Path:
    """The folder's files in a zip or tar."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if target.suffix == ".tar":
        target.write_bytes(any_tar(files.items()))
        return target
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target


def special_members() -> Iterator[tarfile.TarInfo]:
    """Links, devices and pipes under names of pictures."""
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
    for kind in kinds:
        info = tarfile.TarInfo("0.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        yield info
    for name in HOSTILE:
        if name and "\0" not in name and "\ud800" not in name:
            info = tarfile.TarInfo(name)
            info.size = 0
            yield info


@pytest.mark.parametrize("dialect", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_devices_and_names_in_a_tar_of_pictures_are_only_names(dialect: int, child: Child, ground: Path) -> None:
    _, flags = made("llava", ground / "in")
    flags[-1] = str(ground / "in/images.tar")
    files = [(f"{n}.jpg", picture(24, 16, n)) for n in (1, 2)]
    (ground / "in/images.tar").write_bytes(any_tar([*special_members(), *files], dialect))
    before = {str(path) for path in ground.rglob("*")}

    ran, found = converted(child, "llava", flags, ground / "out")

    assert (ran.status, found["rejected"]) == (1, {"image_empty": 1})  # the one that is called 0.jpg/
    assert {str(path) for path in ground.rglob("*") if "out" not in path.parts} == before


def test_links_and_names_in_a_zip_of_pictures_are_only_names(child: Child, ground: Path) -> None:
    _, flags = made("llava", ground / "in")
    flags[-1] = str(ground / "in/images.zip")
    with zipfile.ZipFile(ground / "in/images.zip", "w") as archive:
        link = zipfile.ZipInfo("0.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        for name in HOSTILE[:-1]:
            if name and "\ud800" not in name:
                archive.writestr(zipfile.ZipInfo(name), b"x")
        archive.writestr("1.jpg", picture(24, 16, 1))

    ran, found = converted(child, "llava", flags, ground / "out")

    assert (ran.status, found["rejected"]) == (1, {"image_format": 1, "image_missing": 1})


@pytest.mark.parametrize("dialect", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_devices_and_names_in_tars_made_elsewhere_are_passed_over_and_counted(dialect: int, child: Child, ground: Path) -> None:
    place = ground / "place"
    place.mkdir()
    row = img2dataset_rows(0, 1)[0]
    good = [(f"{row['__key__']}.{suffix}", row[suffix]) for suffix in ("jpg", "json", "txt")]
    (place / "00000.tar").write_bytes(any_tar([*special_members(), *good], dialect))

    ran = child.run("shards", "index", place, "--json", "--workers", 1)

    assert ran.status == 0
    totals = json.loads((place / "manifest.json").read_bytes())["totals"]
    assert (totals["read"], totals["written"]) == (totals["written"] + totals["rejected"], 1)
    assert child.run("shards", "check", place, "--deep").status == 0
    assert sorted(path.name for path in place.iterdir()) == ["00000.tar", "_index", "manifest.json"]


def test_a_global_header_of_a_hundred_thousand_fields_costs_no_time(child: Child, ground: Path) -> None:
    fields = b"".join(_pax_record(f"k{n}", "v") for n in range(60_000))
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XGLTYPE, len(fields)
    stream = io.BytesIO()
    stream.write(header.tobuf(tarfile.USTAR_FORMAT) + fields + bytes(-len(fields) % 512))
    stream.write(any_tar([(f"{n}.x", b"") for n in range(20_000)]))
    place = ground / "place"
    place.mkdir()
    (place / "a.tar").write_bytes(stream.getvalue())

    assert child.run("shards", "index", place, "--workers", 1).status == 2  # no layout: and said within the deadline


def _pax_record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body)
    while len(f"{length}") + len(body) != length:
        length = len(f"{length}") + len(body)
    return f"{length}".encode() + body


# Bombs.


PIECE = gzip.compress(bytes(64 << 20), 6, mtime=0)


def deflated(header: bytes, pieces: int) -> bytes:
    """A gzip of a header and so many times 64 MiB of zeros."""
    return gzip.compress(header, 6, mtime=0) + PIECE * pieces


def test_a_shard_that_inflates_to_a_line_without_end_stops(child: Child, ground: Path) -> None:
    (ground / "shard_1.jsonl.gz").write_bytes(deflated(b'{"text_list": ["', 18))

    ran = child.run("pipelines", "convert", "mmc4", "--annotations", ground / "shard_1.jsonl.gz", "--out", ground / "out")

    assert ran.status == 2
    assert "expected one document a line, found more than" in ran.err
    assert ran.peak < MUCH


def test_a_zip_whose_picture_inflates_without_end_is_a_reject(child: Child, ground: Path) -> None:
    _, flags = made("llava", ground / "in")
    flags[-1] = str(ground / "in/images.zip")
    with zipfile.ZipFile(ground / "in/images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("0.jpg", "w", force_zip64=True) as file:
            for _ in range(300):
                file.write(bytes(1 << 20))
        archive.writestr("1.jpg", picture(24, 16, 1))
        archive.writestr("2.jpg", picture(24, 16, 2))
    _understate(ground / "in/images.zip", 300 << 20)

    ran, found = converted(child, "llava", flags, ground / "out")

    assert (ran.status, found["totals"]["written"], found["totals"]["rejected"]) == (1, 2, 1)
    assert ran.peak < MUCH + (256 << 20)


def _understate(path: Path, size: int) -> None:
    """The zip says that its largest file has a hundred bytes."""
    data = path.read_bytes()
    assert data.count(struct.pack("<I", size)) >= 1
    path.write_bytes(data.replace(struct.pack("<I", size), struct.pack("<I", 100)))


@pytest.mark.parametrize("what", ["a scene", "a long name", "extended headers one behind the other"])
def test_a_part_that_inflates_without_end_stops(what: str, child: Child, ground: Path) -> None:
    _, flags = made("grand", ground / "in")
    whole = tarfile.TarInfo("sa_0.json")
    scene = json.dumps({"sa_0.jpg": {"objects": [], "dense_caption": {"caption": "A."}}}).encode()
    whole.size = len(scene)
    first = whole.tobuf(tarfile.GNU_FORMAT) + scene + bytes(-len(scene) % 512)
    bomb = tarfile.TarInfo("sa_1.json")
    bomb.size = 4 << 30
    if what == "a long name":
        bomb.type = tarfile.GNUTYPE_LONGNAME
    headers = bomb.tobuf(tarfile.GNU_FORMAT)
    if what.startswith("extended"):
        bomb.type, bomb.size = tarfile.GNUTYPE_LONGNAME, 0
        headers = bomb.tobuf(tarfile.GNU_FORMAT) * 5000
    (ground / "part.tar.gz").write_bytes(deflated(first + headers, 8))
    given = ["--annotations", ground / "part.tar.gz", *flags[2:]]

    ran, found = converted(child, "grand", given, ground / "out")

    assert (ran.status, found) == (2, {})
    assert "expected a whole tar" in ran.err
    assert ran.peak < MUCH


def png(width: int, height: int, rows: int) -> bytes:
    """A PNG of one bit a pixel, with so many rows of zeros in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, pieces = zlib.compressobj(6), []
    row = bytes(1 + (width + 7) // 8)
    pieces = [packer.compress(row) for _ in range(rows)]
    data = b"".join([*pieces, packer.flush()])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def tiff(width: int, height: int) -> bytes:
    """A TIFF of packed zeros, which is decoded whenever it is measured."""
    stream = io.BytesIO()
    Pillow.new("1", (width, height)).save(stream, "TIFF", compression="group4")
    return stream.getvalue()


def gif(frames: int) -> bytes:
    stream = io.BytesIO()
    Pillow.new("P", (2, 2)).save(stream, "GIF")
    data = stream.getvalue()
    at = data.index(b"\x2c")
    return data[:-1] + data[at:-1] * frames + b";"


def profile() -> bytes:
    """A PNG whose iCCP chunk inflates a thousandfold."""
    data = png(10, 10, 10)
    packed = b"icc\0\0" + zlib.compress(bytes(256 << 20), 6)
    chunk = struct.pack(">I", len(packed)) + b"iCCP" + packed + struct.pack(">I", zlib.crc32(b"iCCP" + packed))
    return data[:33] + chunk + data[33:]


BOMBS: dict[str, tuple[Callable[[], bytes], dict[str, int]]] = {
    "2**62 pixels": (lambda: png(2**31 - 1, 2**31 - 1, 1), {"image_bomb": 1}),
    "more pixels than may be": (lambda: png(13_400, 13_400, 10), {"image_bomb": 1}),
    "13,000 x 13,000 pixels in 30 kB": (lambda: png(13_000, 13_000, 13_000), {}),
    "as many that are not there": (lambda: png(13_000, 13_000, 10), {}),  # Pillow takes missing rows for black ones
    "13,000 x 13,000 pixels of a TIFF": (lambda: tiff(13_000, 13_000), {}),
    "20,000 frames": (lambda: gif(20_000), {}),
    "256 MB of a colour profile": (profile, {"image_decode": 1}),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_picture_that_unpacks_to_much_is_bounded(what: str, child: Child, ground: Path) -> None:
    _, flags = made("llava", ground / "in")
    data, rejected = BOMBS[what]
    (ground / "in/images/0.jpg").write_bytes(data())

    ran, found = converted(child, "llava", flags, ground / "out", "--verify", "decode")

    assert found["rejected"] == rejected
    assert found["totals"]["read"] == ITEMS
    assert ran.peak < PIXELS


def test_a_parquet_of_three_million_rows_in_some_kilobytes_is_refused(child: Child, ground: Path) -> None:
    folder, flags = made("laion", ground / "in")
    column = pa.chunked_array([pa.array(["success"] * 100_000)] * 30)
    pq.write_table(pa.table({"url": column, "key": column, "status": column}), folder / "00000.parquet", compression="zstd")
    assert os.path.getsize(folder / "00000.parquet") < 100_000

    for verb, more in (("check", []), ("convert", ["--out", ground / "out"])):
        ran = child.run("pipelines", verb, "laion", *flags, *more)
        assert ran.status == 2
        assert "expected at most 2000000 rows, found 3000000" in ran.err
        assert ran.peak < MUCH


def test_text_that_is_no_utf_8_in_a_parquet_costs_its_row_or_names_its_file(child: Child, ground: Path) -> None:
    folder, flags = made("laion", ground / "in")
    binary = pa.array([b"ok", b"\xff\xfe", b"ok"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    table = pq.read_table(folder / "00000.parquet")
    pq.write_table(table.set_column(table.column_names.index("caption"), "caption", text), folder / "00000.parquet")

    ran, found = converted(child, "laion", flags, ground / "out")

    assert (ran.status, found["totals"]["read"], found["rejected"]) == (1, 3, {"text_unicode": 1})
