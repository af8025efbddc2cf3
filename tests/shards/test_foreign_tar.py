"""Tars made elsewhere, as bytes: every dialect is read, every sample is the one that webdataset sees, every damage is named."""

from __future__ import annotations

import io
import tarfile
from collections import Counter

import pytest
from webdataset import tariterators

from shards.foreign_tar import Member, TarDamage, members, samples
from tests.shards.foreign_tars import any_tar

FILES = [("a.jpg", b"x" * 700), ("a.json", b"{}"), ("b.jpg", b""), ("b.txt", b"\0" * 512)]


def listed(data: bytes) -> list[Member]:
    return list(members(data, Counter()))


def by_python(data: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [Member(info.name, info.offset, info.offset_data, info.size) for info in tar if info.isreg()]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mtime", [0, 1700000000.25])
def test_every_dialect_gives_what_python_s_tarfile_gives(format: int, mtime: float) -> None:
    long = [] if format == tarfile.USTAR_FORMAT else [("d/" * 80 + "é" * 60 + ".jpg", b"long"), ("z" * 101 + ".txt", b"longer")]
    data = any_tar([*FILES, ("./c.d/e.seg.png", b"1"), *long, ("f.txt", b"2")], format, mtime=mtime)
    assert listed(data) == by_python(data)
    assert len(listed(data)) == 6 + len(long)


def test_a_ustar_prefix_is_part_of_the_name() -> None:
    data = any_tar([("p" * 90 + "/" + "n" * 60 + ".txt", b"x")])
    assert [member.name for member in listed(data)] == ["p" * 90 + "/" + "n" * 60 + ".txt"]


def test_a_size_in_base_256_is_read() -> None:
    data = bytearray(any_tar([("a.txt", b"x" * 600)]))
    data[124:136] = b"\x80" + (600).to_bytes(11, "big")
    summed = sum(data[:148]) + 8 * 32 + sum(data[156:512])
    data[148:156] = b"%06o\0 " % summed
    assert listed(bytes(data)) == [Member("a.txt", 0, 512, 600)]


def test_links_devices_and_folders_are_passed_over_and_counted() -> None:
    odd = []
    for name, kind in (("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("n.jpg", tarfile.CHRTYPE), ("d.jpg", tarfile.DIRTYPE)):
        odd.append(tarfile.TarInfo(name))
        odd[-1].type, odd[-1].linkname = kind, "../../etc/passwd"
    ignored: Counter[str] = Counter()
    data = any_tar([FILES[0], *odd, ("../../etc/passwd", b"root"), ("/abs/c.txt", b"1"), ("__meta__", b"2"), ("__m__/c.txt", b"3")])
    assert [sample.key for sample in samples(data, ignored)] == ["a", "/abs/c"]
    assert ignored == {"symbolic_link": 1, "hard_link": 1, "device": 1, "directory": 1, "no_key": 2, "meta_name": 1}


def test_samples_are_those_that_webdataset_groups() -> None:
    names = [
        "a.jpg",
        "a.JSON",
        "a.x.png",
        "b.txt",
        "a.txt",
        "dir.d/a.txt",
        "dir.d/a.jpg",
        "x/__y__/c.txt",
        "__z__/c.txt",
        "nodot",
        ".hidden",
    ]
    names += ["__k__.txt", "./d.jpg", "d.jpg", "e.", "f..g", "a/b/c.1.2.3"]
    data = any_tar([(name, name.encode()) for name in names], tarfile.PAX_FORMAT, mtime=0.5)
    files = tariterators.tar_file_expander([{"url": "x", "stream": io.BytesIO(data)}])
    wanted = [
        (row["__key__"], {name: value for name, value in row.items() if not name.startswith("__")})
        for row in tariterators.group_by_keys(files)
    ]
    found = [
        (sample.key, {suffix: data[at.offset : at.offset + at.size] for suffix, at in sample.members})
        for sample in samples(data, Counter())
    ]
    assert found == wanted
    assert len(found) > 8


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_any_bit_of_a_header_that_flips_is_named_with_its_offset_or_changes_nothing(format: int) -> None:
    data = any_tar(FILES, format, mtime=0.5 if format == tarfile.PAX_FORMAT else 0)
    sound = listed(data)
    at = sound[1].offset - 512  # the header itself, not the extended one before it
    named = 0
    for bit in range(512 * 8):
        flipped = bytearray(data)
        flipped[at + bit // 8] ^= 1 << bit % 8
        try:
            found: object = listed(bytes(flipped))
        except TarDamage as damage:
            found = damage.offset
        assert found in (sound, at)
        named += found == at
    assert named > 4000


def test_a_tar_cut_anywhere_is_named() -> None:
    data = any_tar(FILES)
    end = listed(data)[-1].end
    for length in (1, 511, *range(512, end + 512, 256)):
        found = []
        with pytest.raises(TarDamage, match="the end of the file"):
            found.extend(members(data[:length], Counter()))
    assert listed(data[: end + 512]) == listed(data)  # one closing block is enough


def test_what_stands_behind_the_end_is_named() -> None:
    data = any_tar(FILES)
    at = listed(data)[2].start
    blanked = data[:at] + bytes(512) + data[at + 512 :]
    with pytest.raises(TarDamage, match=f"closing block at {at}"):
        listed(blanked)
    with pytest.raises(TarDamage, match=f"byte {len(data)}"):
        listed(data + data)


def test_what_is_no_plain_tar_says_so() -> None:
    sparse = bytearray(any_tar(FILES, tarfile.GNU_FORMAT))
    sparse[156:157] = b"S"
    sparse[148:156] = b"%06o\0 " % (sum(sparse[:148]) + 8 * 32 + sum(sparse[156:512]))
    huge = any_tar([("a.txt", b"")], tarfile.PAX_FORMAT, pax_headers={"comment": "x" * (2 << 20)})
    for data, said in (
        (b"\x1f\x8b" + bytes(600), "gzip"),
        (bytes(sparse), "sparse"),
        (b"<html>" * 200, "checksum"),
        (huge, "extended header"),
    ):
        with pytest.raises(TarDamage, match=said):
            listed(data)
    with pytest.raises(TarDamage, match="end of the file at 0"):
        listed(b"")


def test_a_lying_pax_record_is_named() -> None:
    data = any_tar(FILES, tarfile.PAX_FORMAT, mtime=0.5)
    assert data[512:514] == b"13"
    for lie in (b"99", b"-1", b"00", b"x3"):
        with pytest.raises(TarDamage, match="a PAX record"):
            listed(data[:512] + lie + data[514:])
