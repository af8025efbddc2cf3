"""Picture stores: directory, zip and tar answer alike, and none is taken in by a hostile name or a damaged archive."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import stores
from pipelines.stores import open_store, safe
from schemas import Reject, RequestError

FILES = {"coco/a.jpg": b"aaaa", "coco/b.png": b"bb", "coco/b.json": b"{}", "c.gif": b"c", "coco/deep/d.jpg": b"dddd" * 400}


def folder(path: Path) -> Path:
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def zipped(path: Path) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("coco")
        for name, data in FILES.items():
            archive.writestr(name, data)
    return path.with_suffix(".zip")


def tarred(path: Path, format: int = tarfile.PAX_FORMAT, prefix: str = "./") -> Path:
    with tarfile.open(path.with_suffix(".tar"), "w", format=format) as archive:
        above = tarfile.TarInfo("coco")
        above.type = tarfile.DIRTYPE
        archive.addfile(above)
        for name, data in FILES.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path.with_suffix(".tar")


@pytest.fixture(params=[folder, zipped, tarred])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same files as a directory, a zip and a tar."""
    return request.param(tmp_path / "store")


def test_every_store_lists_its_files_with_their_sizes(root: Path) -> None:
    assert dict(open_store(root).names()) == {name: len(data) for name, data in FILES.items()}


def test_every_store_reads_by_name_and_has_none_for_others(root: Path) -> None:
    store = open_store(root)

    assert {name: store.read(name) for name in FILES} == FILES
    assert [store.read(name) for name in ("coco", "coco/a.png", "nowhere/a.jpg", "c.gif/x")] == [None] * 4


def test_every_store_finds_a_picture_under_another_suffix(root: Path) -> None:
    store = open_store(root)

    assert store.twin("coco/b.jpg") == "coco/b.png"
    assert store.twin("c.jpg") == "c.gif"
    assert store.twin("coco/none.jpg") is None
    assert store.twin("none/b.jpg") is None


def test_every_store_travels_to_a_worker_after_use(root: Path) -> None:
    store = open_store(root)
    store.read("c.gif")
    list(store.names())

    assert pickle.loads(pickle.dumps(store)).read("coco/a.jpg") == b"aaaa"


def test_every_store_refuses_a_picture_above_the_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_BYTES", 1000)

    assert open_store(root).read("coco/a.jpg") == b"aaaa"
    with pytest.raises(Reject, match="image_bytes"):
        open_store(root).read("coco/deep/d.jpg")


def test_a_file_that_is_no_picture_is_nobodys_twin(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.txt").write_text("a")

    assert open_store(tmp_path).twin("a.jpg") is None


def test_of_several_twins_the_first_by_name_counts(tmp_path: Path) -> None:
    for suffix in ("png", "gif", "webp"):
        (tmp_path / f"a.{suffix}").write_bytes(b"x")

    assert open_store(tmp_path).twin("a.jpg") == "a.gif"


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.jpg", "a/../../b.jpg", "", ".", "..", "a\0.jpg", "a/" * 3000])
def test_a_name_that_leaves_its_root_is_refused(name: str) -> None:
    with pytest.raises(Reject) as refused:
        safe(name)
    assert refused.value.reason == "image_path"


@pytest.mark.parametrize(
    ("name", "clean"), [("./a//b.jpg", "a/b.jpg"), ("a/../b.jpg", "b.jpg"), ("..a.jpg", "..a.jpg"), ("a..b/c", "a..b/c")]
)
def test_an_odd_name_inside_its_root_is_normalised(name: str, clean: str) -> None:
    assert safe(name) == clean


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jpg").write_bytes(b"a")
    (tmp_path / "root").mkdir()
    for name in ("one", "two"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "data")
    (tmp_path / "data" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "broken.jpg").symlink_to(tmp_path / "gone")

    assert {"one/a.jpg", "two/a.jpg"} <= {name for name, _ in open_store(tmp_path / "root").names()}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")

    assert open_store(tmp_path).read("a.jpg") == b""


def test_what_is_no_store_is_a_wrong_request(tmp_path: Path) -> None:
    (tmp_path / "x.rar").write_bytes(b"x")
    (tmp_path / "x.zip").write_bytes(b"no zip")
    (tmp_path / "x.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "gz.tar").write_bytes(b"\x1f\x8b" + bytes(600))

    for name, message in (
        ("x.rar", r"expected a directory, \.zip or \.tar of pictures, found a \.rar file"),
        ("gone", r"expected a directory, \.zip or \.tar of pictures, found nothing"),
        ("x.zip", "expected a zip of pictures, found File is not a zip file"),
        ("x.tar", r"expected a whole, uncompressed tar of pictures, found .*\(expected a tar header at byte 0\)"),
        ("gz.tar", "expected a whole, uncompressed tar of pictures, found gzip"),
    ):
        with pytest.raises(RequestError, match=message):
            list(open_store(tmp_path / name).names())


def test_a_damaged_member_of_a_zip_is_a_reject(tmp_path: Path) -> None:
    path = zipped(tmp_path / "store")
    with zipfile.ZipFile(path) as archive:
        where = archive.getinfo("coco/deep/d.jpg")
        body = where.header_offset + 30 + len(where.filename)
    data = bytearray(path.read_bytes())
    data[body : body + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)

    with pytest.raises(Reject, match="image_unreadable"):
        open_store(path).read("coco/deep/d.jpg")


def test_a_cut_tar_is_said_not_read_as_a_shorter_one(tmp_path: Path) -> None:
    path = tarred(tmp_path / "store")
    path.write_bytes(path.read_bytes()[:2000])

    with pytest.raises(RequestError, match=r"store\.tar: expected a whole, uncompressed tar of pictures, found the end of the file"):
        open_store(path).read("coco/a.jpg")


def test_reading_a_folder_costs_no_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(folder(tmp_path / "store"))

    def refuse(*_: object) -> Callable[..., None]:
        raise AssertionError("listed")

    monkeypatch.setattr(os, "scandir", refuse)
    assert store.read("coco/a.jpg") == b"aaaa"
