"""Annotations on object storage, of a real S3 service: what local ones give, byte for byte, and no copy that nobody needs."""

from __future__ import annotations

import gzip
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import nearby
from pipelines.__main__ import main
from schemas import RequestError
from shards.place import at
from tests.ceph import S3
from tests.pipelines.upstreams import UPSTREAMS, flag, made
from tests.proxy import Proxy


@pytest.fixture(autouse=True)
def environment(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This process reaches the service, and the workers that it starts; copies lie apart."""
    more = {"SHARDWEAVE_STORE_DEADLINE": "30", "SHARDWEAVE_CACHE": str(tmp_path / "cache")}
    for name, value in {**s3.environment, **more}.items():
        monkeypatch.setenv(name, value)
    nearby._place.cache_clear()  # clients of another endpoint
    nearby._copies.clear()


def uploaded(path: Path, url: str) -> str:
    """The URL of a file, or of all files below a folder, on the service."""
    place = at(url)
    for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
        place.write(str(file.relative_to(path.parent)), file.read_bytes())
    return f"{url}/{path.name}"


def convert(capsys: pytest.CaptureFixture[str], source: str, flags: list[Any], out: Path, *more: object) -> tuple[int, str]:
    """The status of a conversion, and what it said on stderr."""
    capsys.readouterr()
    status = main([str(one) for one in ("convert", source, *flags, "--out", out, "--workers", 1, *more)])
    return status, capsys.readouterr().err


def files(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def copies(tmp_path: Path) -> int:
    return len(list((tmp_path / "cache").rglob("*.tar")))


@pytest.mark.parametrize("source", sorted(UPSTREAMS))
def test_annotations_of_a_store_give_the_bytes_that_local_ones_give(
    source: str, s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, flags = made(source, tmp_path / "up")
    url = uploaded(path, s3.bucket() + "/deep/down")
    there = [url if one == str(path) else one for one in flags]

    assert convert(capsys, source, flags, tmp_path / "local")[0] == 0
    assert convert(capsys, source, there, tmp_path / "remote") == (0, "")

    assert files(tmp_path / "remote") == files(tmp_path / "local")
    # A unit's own files are gone with it; a file that every unit needs stays for the next run, once.
    assert copies(tmp_path) == (1 if source in ("llava", "coco", "visual_genome") else 0)
    assert main(["check", source, *there]) == main(["check", source, *flags]) == 0


def zips(root: Path) -> Path:
    """MMC4 shards, packed in every way."""
    path, _ = made("mmc4", root)
    folder = root / "docs"
    folder.mkdir()
    with zipfile.ZipFile(folder / "docs_shard_7_v2.jsonl.zip", "w") as archive:
        archive.write(path, "x.jsonl")
    (folder / "docs_shard_8_v2.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    (folder / "docs_shard_9_v2.jsonl").write_bytes(path.read_bytes())
    (folder / "README.md").write_text("no shard")
    return folder


def parts(root: Path) -> Path:
    """GranD scenes as files in folders, and in a published part."""
    folder, _ = made("grand", root)
    (folder / "deep").mkdir()
    (folder / "sa_1.json").rename(folder / "deep/sa_1.json")
    with tarfile.open(folder / "part_1.tar.gz", "w:gz") as tar:
        tar.add(folder / "sa_0.json", "part/sa_0.json")
    return folder


@pytest.mark.parametrize(("source", "make"), [("mmc4", zips), ("grand", parts)])
def test_a_prefix_is_what_the_folder_is_with_more_workers_too(
    source: str, make: Callable[[Path], Path], s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "up")
    url = uploaded(folder, s3.bucket())
    images = ["--images", tmp_path / "up/images"]

    assert convert(capsys, source, ["--annotations", folder, *images], tmp_path / "local", "--max-reject-rate", 1)[0] == 0
    assert convert(capsys, source, ["--annotations", url, *images], tmp_path / "remote", "--max-reject-rate", 1, "--workers", 2)[0] == 0

    assert files(tmp_path / "remote") == files(tmp_path / "local")
    assert copies(tmp_path) == 0


def test_files_of_a_prefix_may_be_named_one_by_one_and_limited(s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = zips(tmp_path / "up")
    url = uploaded(folder, s3.bucket())
    names = ["docs_shard_7_v2.jsonl.zip", "docs_shard_9_v2.jsonl"]
    local, there = ([word for name in names for word in ("--annotations", f"{root}/{name}")] for root in (folder, url))

    for flags, out in ((local, "local"), (there, "remote")):
        assert convert(capsys, "mmc4", [*flags, "--limit", 4], tmp_path / out, "--max-reject-rate", 1)[0] == 1  # no pictures: all rejected

    assert files(tmp_path / "remote") == files(tmp_path / "local")
    assert json.loads((tmp_path / "remote/manifest.json").read_bytes())["totals"]["read"] == 4


def test_a_whole_file_is_downloaded_once_a_machine(s3: S3, proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, flags = made("coco", tmp_path / "up")
    url = uploaded(path, s3.bucket())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in proxy.environment.items():
            patch.setenv(name, value)
        nearby._place.cache_clear()
        there = [url if one == str(path) else one for one in flags]
        assert convert(capsys, "coco", there, tmp_path / "out", "--workers", 3)[0] == 0
        assert (
            len([path for method, path in proxy.requests if method == "GET" and "captions.json" in path and "list-type" not in path]) == 1
        )
    nearby._place.cache_clear()


def test_a_store_that_fails_now_and_then_gives_the_same(s3: S3, proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, flags = made("laion", tmp_path / "up")
    url = uploaded(path, s3.bucket())
    assert convert(capsys, "laion", flags, tmp_path / "local")[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        for name, value in proxy.environment.items():
            patch.setenv(name, value)
        nearby._place.cache_clear()
        faults = [proxy.fail("status", every=3), proxy.fail("short", method="GET", every=5, after=50)]
        assert convert(capsys, "laion", [flag("laion"), url], tmp_path / "remote")[0] == 0
        assert all(fault.hits for fault in faults)
    nearby._place.cache_clear()

    assert files(tmp_path / "remote") == files(tmp_path / "local")


def test_an_object_that_was_overwritten_is_another_one(s3: S3, tmp_path: Path) -> None:
    url = s3.bucket()
    at(url).write("rows.json", b"[1]")
    path = Path(f"{url}/rows.json")
    first = nearby.near(path)
    assert first.read_bytes() == b"[1]"

    at(url).write("rows.json", b"[2]")
    nearby._copies.clear()  # as a new process has it

    assert nearby.near(path).read_bytes() == b"[2]"
    assert nearby.near(path) != first


def test_copies_of_a_block_go_with_it_and_others_stay(s3: S3, tmp_path: Path) -> None:
    url = s3.bucket()
    for name in ("all.json", "unit.zip"):
        at(url).write(name, name.encode())
    whole = nearby.near(Path(f"{url}/all.json"))

    with nearby.briefly():
        unit = nearby.near(Path(f"{url}/unit.zip"))
        assert nearby.near(Path(f"{url}/all.json")) == whole
        assert unit.read_bytes() == b"unit.zip"

    assert (whole.exists(), unit.exists()) == (True, False)
    assert nearby.near(Path(f"{url}/unit.zip")).read_bytes() == b"unit.zip"


def test_an_object_that_is_overwritten_while_it_is_read_is_named(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.bucket()
    at(url).write("rows.json", b"[1]")
    found = nearby._place(url)
    original = found.stream

    def overwritten(name: str) -> Any:
        yield from original(name)
        at(url).write(name, b"[2]")

    monkeypatch.setattr(found, "stream", overwritten)
    with pytest.raises(RequestError, match=r"rows\.json: expected an object that stays as it is, found it overwritten while it was read"):
        nearby.near(Path(f"{url}/rows.json"))
    assert copies(tmp_path) == 0


@pytest.mark.parametrize("source", sorted(UPSTREAMS))
def test_what_is_not_there_is_one_clear_line(source: str, s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, flags = made(source, tmp_path / "up")
    bucket = s3.bucket()
    at(bucket).write("other/thing.txt", b"x")

    for url in (f"{bucket}/gone/{path.name}", f"{bucket}x/{path.name}"):
        status, said = convert(capsys, source, [url if one == str(path) else one for one in flags], tmp_path / "out")
        assert (status, len(said.splitlines())) == (2, 1), said
        assert url.removesuffix(f"/{path.name}") in said
        assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_wrong_keys_are_one_clear_line_that_shows_none_of_them(
    s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = made("llava", tmp_path / "up")
    url = uploaded(path, s3.bucket())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-0815")
    nearby._place.cache_clear()

    status, said = convert(capsys, "llava", ["--annotations", url], tmp_path / "out")
    nearby._place.cache_clear()

    assert (status, len(said.splitlines())) == (2, 1)
    assert url in said
    assert "wrong-secret-0815" not in said


def test_a_damaged_object_is_named_by_its_url(s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = s3.bucket()
    at(url).write("rows.json", b'[{"id": 1}')
    at(url).write("empty.json", b"")
    at(url).write("docs_shard_1_v2.jsonl.zip", b"PK\x03\x04 no zip")
    for source, name, found in (
        ("llava", "rows.json", "line 1, byte 10"),
        ("llava", "empty.json", "found an empty file"),
        ("mmc4", "docs_shard_1_v2.jsonl.zip", "expected a whole shard"),
    ):
        status, said = convert(capsys, source, ["--annotations", f"{url}/{name}"], tmp_path / "out")
        assert (status, len(said.splitlines())) == (2, 1)
        assert f"{url}/{name}" in said
        assert found in said
