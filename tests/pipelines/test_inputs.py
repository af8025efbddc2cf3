from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipelines.inputs import inputs, options, paths
from pipelines.source import option, verify
from schemas import RequestError, SourceError


@dataclass(frozen=True, kw_only=True)
class Made:
    """Only its fields matter here."""

    name: ClassVar[str] = "made"

    annotations: tuple[Path, ...] = option("files", reads="annotations")
    extra: Path | None = option("a file", reads="annotations", default=None)
    images: tuple[Path, ...] = option("pictures", reads="pictures", default=())
    limit_of: int = option("a plain value", default=3)
    verify: str = verify()


def of(**fields: Any) -> list[dict[str, Any]]:
    return inputs(Made(**fields))  # pyright: ignore[reportArgumentType] - not a whole source


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_an_annotation_file_is_its_hash(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b"[]")
    (tmp_path / "more.json").write_bytes(b"[1]")

    assert of(annotations=(tmp_path / "rows.json",), extra=tmp_path / "more.json") == [
        {"option": "annotations", "name": "rows.json", "files": 1, "bytes": 2, "sha256": sha256(b"[]")},
        {"option": "extra", "name": "more.json", "files": 1, "bytes": 3, "sha256": sha256(b"[1]")},
    ]


def test_an_annotation_folder_is_its_sorted_names_and_hashes(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    (folder / "b").mkdir(parents=True)
    (folder / "b/1.json").write_bytes(b"x")
    (folder / "a.json").write_bytes(b"yy")
    (folder / "c.tar").write_bytes(b"zzz")
    (folder / ".hidden").write_bytes(b"not counted")

    rows = f"a.json\t{sha256(b'yy')}\nb/1.json\t{sha256(b'x')}\nc.tar\t3\n"
    assert of(annotations=(folder,)) == [
        {"option": "annotations", "name": "parts", "files": 3, "bytes": 6, "sha256": sha256(rows.encode())}
    ]


def test_a_picture_store_is_its_sorted_names_and_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "b").mkdir(parents=True)
    (folder / "b/1.jpg").write_bytes(b"x")
    (folder / "a.jpg").write_bytes(b"yy")
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for name in ("b/1.jpg", "a.jpg"):
            archive.write(folder / name, name)
    (tmp_path / "rows.json").write_bytes(b"[]")

    hashed = {"files": 2, "bytes": 3, "sha256": sha256(b"a.jpg\t2\nb/1.jpg\t1\n")}
    found = of(annotations=(tmp_path / "rows.json",), images=(folder, tmp_path / "pictures.zip"))
    assert found[1:] == [{"option": "images", "name": "pictures", **hashed}, {"option": "images", "name": "pictures.zip", **hashed}]


def test_the_same_input_elsewhere_is_the_same_input(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name / "pictures").mkdir(parents=True)
        (tmp_path / name / "pictures/1.jpg").write_bytes(b"x")
        (tmp_path / name / "rows.json").write_bytes(b"[]")

    here, there = (of(annotations=(tmp_path / name / "rows.json",), images=(tmp_path / name / "pictures",)) for name in ("here", "there"))
    assert here == there


def test_a_changed_size_or_byte_is_another_input(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/1.jpg").write_bytes(b"x")
    (tmp_path / "rows.json").write_bytes(b"[]")

    def found() -> list[str]:
        return [row["sha256"] for row in of(annotations=(tmp_path / "rows.json",), images=(tmp_path / "pictures",))]

    before = found()
    (tmp_path / "pictures/1.jpg").write_bytes(b"xx")
    (tmp_path / "rows.json").write_bytes(b"{}")
    assert [old == new for old, new in zip(before, found(), strict=True)] == [False, False]


def test_what_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.json: expected a readable file"):
        of(annotations=(tmp_path / "gone.json",))

    (tmp_path / "rows.json").write_bytes(b"[]")
    with pytest.raises(RequestError, match="gone: expected a directory"):
        of(annotations=(tmp_path / "rows.json",), images=(tmp_path / "gone",))


def test_plain_options_are_those_that_read_nothing(tmp_path: Path) -> None:
    assert options(Made(annotations=(tmp_path,), verify="decode")) == {"limit_of": 3, "verify": "decode"}  # pyright: ignore[reportArgumentType]


def test_paths_are_none_one_or_several() -> None:
    assert paths(None) == ()
    assert paths(Path("a")) == (Path("a"),)
    assert paths((Path("a"), Path("b"))) == (Path("a"), Path("b"))


def test_a_link_to_nothing_is_no_picture_and_is_named_among_annotations(tmp_path: Path) -> None:
    for folder in ("images", "parts"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(b"x")
        (tmp_path / folder / "2.jpg").symlink_to(tmp_path / "gone")

    (tmp_path / "rows.json").write_bytes(b"[]")
    assert of(annotations=(tmp_path / "rows.json",), images=(tmp_path / "images",))[1]["files"] == 1
    with pytest.raises(SourceError, match=r"parts/2\.jpg: expected a readable file, found No such file"):
        of(annotations=(tmp_path / "parts",))


def test_what_is_converted_of_linked_folders_is_hashed(tmp_path: Path) -> None:
    for name, content in (("one", b"x"), ("two", b"y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.json").write_bytes(content)
    hashes = []
    for name in ("one", "two"):
        (tmp_path / f"parts-{name}").mkdir()
        (tmp_path / f"parts-{name}/deep").symlink_to(tmp_path / name)
        hashes.append(of(annotations=(tmp_path / f"parts-{name}",))[0]["sha256"])

    assert hashes == [sha256(f"deep/a.json\t{sha256(content)}\n".encode()) for content in (b"x", b"y")]
