"""What stood in the upstream files where rejects came from, and the pictures that it names: below the folders given, with bounded work."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.manifest import RejectRow
from shards.view import archives, rows
from shards.view.upstream import LETTERS, Upstream
from tests.shards.records import picture

ROWS: list[dict[str, Any]] = [{"id": n, "image": f"p{n}.jpg", "key": f"00000000{n}"} for n in range(5)]


def lines() -> bytes:
    """JSON lines, with a blank one among them."""
    return "\n".join([json.dumps(ROWS[0]), "", *map(json.dumps, ROWS[1:])]).encode()


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    """A tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def parquet() -> bytes:
    """Two row groups, with a column of bytes."""
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{**row, "jpg": b"12345"} for row in ROWS]), stream, row_group_size=2)
    return stream.getvalue()


def scenes() -> dict[str, bytes]:
    """A file a row."""
    return {f"part/sa_{n}.json": json.dumps(row).encode() for n, row in enumerate(ROWS)}


FILES = {
    "list.json": lambda: json.dumps(ROWS).encode(),
    "object.json": lambda: json.dumps({"info": {}, "annotations": [7], "images": ROWS}).encode(),
    "lines.jsonl": lines,
    "lines.jsonl.gz": lambda: gzip.compress(lines()),
    "docs_shard_1_v2.jsonl.zip": lambda: zipped({"folder/": b"", "__MACOSX/x": b"no", "docs.jsonl": lines()}),
    "part_1.tar.gz": lambda: gzip.compress(tarred({"part/._x.json": b"no", **scenes()})),
    "part_2.tar": lambda: tarred(scenes()),
    "00000.parquet": parquet,
}


def reject(file: str, row: int = 0, detail: str = "") -> RejectRow:
    """A ledger's row."""
    return RejectRow(file, row, "000000-00000000", "reason", detail)


def write(folder: Path, files: dict[str, bytes]) -> Upstream:
    """Below a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Upstream([folder])


@pytest.mark.parametrize("name", FILES)
def test_a_row_is_found_in_every_layout(tmp_path: Path, name: str) -> None:
    upstream = write(tmp_path, {f"annotations/{name}": FILES[name]()})

    found = {row: upstream.stood(reject(name, row)) for row in (3, 0, 4, 5, -1, 2**60)}

    assert {row: json.loads(stood.text)["id"] if stood else None for row, stood in found.items()} == {
        **{0: 0, 3: 3, 4: 4},
        **dict.fromkeys((5, -1, 2**60)),
    }


def test_a_scene_is_a_file_of_its_own(tmp_path: Path) -> None:
    whole, broken = b'{"sa_1.jpg": {"objects": []}}', b'{"sa_2.jpg": {"objects": ['
    upstream = write(tmp_path, {"a/sa_1.json": whole, "a/sa_2.json": broken})

    assert json.loads(upstream.stood(reject("sa_1.json")).text) == json.loads(whole)  # pyright: ignore[reportOptionalMemberAccess]
    assert upstream.stood(reject("sa_2.json")).text == broken.decode()  # pyright: ignore[reportOptionalMemberAccess]
    assert upstream.stood(reject("sa_1.json", 1)) is None


def test_bytes_in_a_row_are_only_counted(tmp_path: Path) -> None:
    upstream = write(tmp_path, {"00000.parquet": parquet()})

    assert '"5 bytes"' in upstream.stood(reject("00000.parquet", 1)).text  # pyright: ignore[reportOptionalMemberAccess]


def test_a_long_row_is_cut_and_its_pictures_are_found_all_the_same(tmp_path: Path) -> None:
    row = json.dumps({"text": "x" * 2 * LETTERS, "image": "p.jpg"}).encode()
    upstream = write(tmp_path, {"a.jsonl": row, "images/p.jpg": picture()})

    assert len(upstream.stood(reject("a.jsonl")).text) < LETTERS + 9  # pyright: ignore[reportOptionalMemberAccess]
    assert upstream.picture(reject("a.jsonl")) == picture()


def test_what_is_packed_is_read_through_no_further_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bombs = {
        "a.jsonl.gz": gzip.compress(b"{}\n" * 10 + bytes(5_000_000)),
        "b.jsonl.zip": zipped({"b.jsonl": b"{}\n" * 10 + bytes(5_000_000)}),
        "c.tar.gz": gzip.compress(tarred({f"{n}.json": bytes(500_000) for n in range(10)})),
        "d.parquet": parquet(),
    }
    upstream = write(tmp_path, bombs)
    monkeypatch.setattr(rows, "UNPACKED", 100)
    monkeypatch.setattr(rows, "LINE", 50)

    assert [upstream.stood(reject(name, 30)) for name in bombs] == [None] * 4
    assert upstream.stood(reject("d.parquet", 0)) is None


@pytest.mark.parametrize("name", FILES)
def test_damage_is_nothing_found(tmp_path: Path, name: str) -> None:
    whole = FILES[name]()
    upstream = write(tmp_path, {f"cut/{name}": whole[: len(whole) // 4], f"none/y{name}": b""})

    assert [upstream.stood(reject(start + name, 4)) for start in ("", "y")] == [None] * 2


def test_a_tar_of_other_files_is_none_of_scenes(tmp_path: Path) -> None:
    upstream = write(tmp_path, {"00000.tar": tarred({"a.jpg": b"1", "a.json": b"{}", "b.json": b"{}"})})

    assert upstream.stood(reject("00000.tar", 1)) is None


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_picture_is_found_in_an_archive(tmp_path: Path, pack: Any) -> None:
    end = ".zip" if pack is zipped else ".tar"
    named = {"other/p1.jpg": picture(seed=1), "coco/p1.jpg": picture(seed=2), "coco/p2.jpg": b"no picture", "coco/p3.png": picture(seed=3)}
    upstream = write(tmp_path, {f"images{end}": pack(named), "a.jsonl": json.dumps({"image": "coco/p1.jpg"}).encode()})

    assert upstream.picture(reject("a.jsonl")) == picture(seed=2)
    assert upstream.picture(reject("none", detail="p1.jpg")) is None  # which of the two, nobody knows
    assert upstream.picture(reject("none", detail="expected 'coco/p1.jpg'; found")) == picture(seed=2)
    assert upstream.picture(reject("none", detail="coco/p2.jpg coco/p3.png")) == picture(seed=3)


def test_img2datasets_picture_is_in_the_tar_beside_its_row(tmp_path: Path) -> None:
    files = {f"{n:05d}.tar": tarred({"000000003.webp": picture(seed=n, format="webp")}) for n in range(2)}
    upstream = write(tmp_path, {**files, "00000.parquet": parquet(), "00001.parquet": parquet()})

    assert upstream.picture(reject("00001.parquet", 3)) == picture(seed=1, format="webp")
    assert upstream.picture(reject("00001.parquet", 2)) is None


def test_names_in_archives_and_rows_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(picture())
    (tmp_path / "upstream").mkdir()
    row = {"a": "../secret.jpg", "b": str(tmp_path / "secret.jpg"), "c": "http://example.org/x.jpg", "d": "\0.jpg"}
    packed = zipped({"../secret.jpg": b"GIF89a, in the zip", "/etc/passwd.jpg": b"GIF89a"})
    upstream = write(tmp_path / "upstream", {"a.jsonl": json.dumps(row).encode(), "i.zip": packed, "x.jpg": picture()})

    assert upstream.picture(reject("a.jsonl")) == b"GIF89a, in the zip"
    assert upstream.stood(reject("../../etc/passwd.json")) is None


def test_a_picture_in_an_archive_is_read_no_further_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = picture() + bytes(10**6)
    upstream = write(tmp_path, {"i.zip": zipped({"p.jpg": large}), "j.tar": tarred({"q.jpg": large})})
    monkeypatch.setattr(archives, "PICTURE", 10_000)

    assert [upstream.picture(reject("none", detail=name)) for name in ("p.jpg", "q.jpg")] == [None, None]


def test_a_damaged_archive_holds_what_stands_before_the_damage(tmp_path: Path) -> None:
    packed = tarred({"p.jpg": picture(seed=1), "q.jpg": picture(seed=2)})
    upstream = write(tmp_path, {"i.tar": packed[:2048], "j.zip": b"PK, and nothing", "k.zip": b"", "l.tar": b""})

    assert upstream.picture(reject("none", detail="p.jpg")) == picture(seed=1)
    assert upstream.picture(reject("none", detail="q.jpg")) is None


def test_looking_up_ends_when_its_time_is_up_and_goes_on(tmp_path: Path) -> None:
    upstream = write(tmp_path, {f"{name}.jsonl": lines() for name in "abc"})
    wanted = [reject(f"{name}.jsonl", row) for name in "abc" for row in (1, 0)]

    assert not upstream.look(wanted, 0)
    assert [upstream.looked(one) for one in wanted] == [True, True, False, False, False, False]
    assert [upstream.look(wanted, 0) for _ in range(2)] == [False, True]
    assert all(map(upstream.looked, wanted))


def test_a_row_that_is_no_json_hides_no_other(tmp_path: Path) -> None:
    rows_ = [json.dumps({"id": 0, "text": 'a "quote", [x] \\'}), '{"id": 1, broken, "s": "]"}', '{"id": 2, "x": NaN}', "[3, [4, {}]]", "5"]
    upstream = write(tmp_path, {"a.json": f"[{', '.join(rows_)} ]".encode()})

    found = [upstream.stood(reject("a.json", row)) for row in range(6)]

    assert [stood.text.replace("\n", "").replace(" ", "") if stood else None for stood in found] == [
        *(row.replace(" ", "") for row in rows_),
        None,
    ]


def test_a_row_is_laid_out_to_be_read(tmp_path: Path) -> None:
    upstream = write(tmp_path, {"a.jsonl": b'{"bbox":[1,-2.5,3e5],"said":"[ 1,\\n2 ]","of":[[1],["x"]]}'})

    stood = upstream.stood(reject("a.jsonl"))

    assert stood is not None
    assert stood.text.splitlines() == [
        "{",
        ' "bbox": [1, -2.5, 3e5],',
        ' "said": "[ 1,\\n2 ]",',
        ' "of": [',
        "  [1],",
        "  [",
        '   "x"',
        "  ]",
        " ]",
        "}",
    ]
