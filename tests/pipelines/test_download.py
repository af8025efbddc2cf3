"""URL lists and MMC4 pictures through img2dataset's real processes, from servers that misbehave as told."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.__main__ import main
from pipelines.download import run as download_run
from pipelines.download.urls import UrlList
from shards import manifest
from tests import internet
from tests.internet import Answer, Site, moved

Photo = Callable[..., bytes]
ROOT = Path(__file__).resolve().parents[2]
FAST = ["--allow-private", "--host-rate", "10000", "--workers", "1", "--max-reject-rate", "1"]
SMALL = [word for option in ("processes_count=1", "thread_count=16", "timeout=2") for word in ("--img2dataset", option)]
needs_img2dataset = pytest.mark.skipif(find_spec("img2dataset") is None, reason="no img2dataset: pip install -e .[download]")


@pytest.fixture
def site() -> Iterator[Site]:
    with internet.server() as running:
        yield running


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., Path]:
    """listed(urls, TEXT=[...], ...): a URL list in parquet, as LAION's are."""

    def make(urls: Sequence[str | None], name: str = "part-00000.parquet", **columns: Sequence[Any]) -> Path:
        folder = tmp_path / "lists"
        folder.mkdir(exist_ok=True)
        texts = {"TEXT": [f"picture {number}" for number in range(len(urls))]}
        pq.write_table(pa.table({"URL": pa.array(urls, pa.string()), **texts, **columns}), folder / name)
        return folder / name

    return make


def laion(urls: Path, out: Path, *more: object) -> list[str]:
    """The command line."""
    return ["convert", "laion", "--urls", str(urls), "--out", str(out), *FAST, *SMALL, *map(str, more)]


def rows(folder: Path) -> list[dict[str, Any]]:
    """Every row of every ledger, in order."""
    return [row for path in sorted(folder.glob("[0-9]*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def statuses(folder: Path) -> dict[str, str]:
    """What became of each URL, by its path."""
    return {row["url"].partition("//")[2].partition("/")[2]: row["status"] for row in rows(folder)}


def told(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    """The one line of a request that is refused."""
    capsys.readouterr()
    try:
        status = main(list(arguments))
    except SystemExit as error:
        status = int(str(error.code))
    out, err = capsys.readouterr()
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    return err


@needs_img2dataset
def test_every_url_becomes_a_record_or_a_reject_with_the_name_of_what_went_wrong(
    site: Site, listed: Callable[..., Path], tmp_path: Path, photo: Photo, caplog: pytest.LogCaptureFixture
) -> None:
    answers = {
        "/good.jpg": [Answer(photo(seed=1))],
        "/twin.jpg": [Answer(photo(seed=1))],
        "/other.png": [Answer(photo(seed=2, format="PNG"))],
        "/later.jpg": [Answer(503), Answer(photo(seed=3))],
        "/busy.jpg": [Answer(429, {"Retry-After": "1"}), Answer(photo(seed=4))],
        "/moved.jpg": [moved("/good.jpg")],
        "/gone.jpg": [Answer(404)],
        "/never.jpg": [Answer(403)],
        "/circle.jpg": [moved("/circle.jpg")],
        "/page.jpg": [Answer(b"<html></html>", type="text/html")],
        "/cut.jpg": [Answer(photo(), cut=50)],
        "/slow.jpg": [Answer(photo(), drip=0.5)],
        "/opt.jpg": [Answer(photo(), {"X-Robots-Tag": "noai"})],
        "/hidden/a.jpg": [Answer(photo())],
    }
    site.give("/robots.txt", Answer(b"User-agent: *\nDisallow: /hidden/", type="text/plain"))
    urls = [site.give(path, *given) for path, given in answers.items()] + [None]
    path = listed(urls, NSFW=["UNLIKELY"] * len(urls), similarity=[0.3] * len(urls))
    out = tmp_path / "out"
    caplog.set_level("INFO")

    assert main(laion(path, out, "--contact", "me@lab.example")) == 0

    folder = tmp_path / "out-downloads"
    found = {**{row["url"]: row for row in rows(folder)}}
    assert list(found) == urls
    expected = dict.fromkeys(urls[:6], "success")
    names = "http_404 http_403 redirects content_type cut_body timeout opt_out robots_txt url"
    expected |= dict(zip(urls[6:], names.split(), strict=True))
    assert {url: row["status"] for url, row in found.items()} == expected
    twice = {site.origin + path for path in ("/later.jpg", "/cut.jpg", "/slow.jpg")}
    assert {url for url, row in found.items() if row["attempts"] == 2} == twice
    assert {site.asked(path) for path in ("/gone.jpg", "/never.jpg", "/opt.jpg", "/good.jpg")} == {
        1,
        2,
    }  # /good.jpg is where /moved.jpg leads
    assert site.asked("/hidden/a.jpg") == 0
    one = found[urls[0]]
    assert (one["bytes"], one["sha256"]) == (len(photo(seed=1)), hashlib.sha256(photo(seed=1)).hexdigest())
    assert (one["caption"], one["NSFW"], one["width"], one["original_height"]) == ("picture 0", "UNLIKELY", 32, 24)
    assert all(request.headers["User-Agent"].startswith("shardweave/") for request in site.requests)
    assert all(request.headers["User-Agent"].endswith("(+me@lab.example)") for request in site.requests)
    said = manifest.read(out)
    assert said.totals == {"read": 15, "written": 6, "rejected": 9, "images": 6}
    assert said.rejected == dict.fromkeys(names.split(), 1)
    sums = "15 URLs = 6 downloaded + 9 failed"
    assert any(sums in message and message.endswith("2 exact duplicates") for message in caplog.messages), caplog.messages


@needs_img2dataset
def test_a_second_conversion_needs_no_network_and_gives_the_same_bytes(
    listed: Callable[..., Path], tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with internet.server() as site:
        path = listed([site.give(f"/{n}.jpg", Answer(photo(seed=n))) for n in range(6)] + [f"{site.origin}/gone.jpg"])
        folder = tmp_path / "kept"
        folder.mkdir()
        (folder / "sizes.json").write_text("{}")
        (folder / "_tmp").mkdir()
        assert main(laion(path, tmp_path / "first", "--downloads", folder)) == 0
    monkeypatch.setattr(download_run, "find_spec", lambda _: None)

    assert main(laion(path, tmp_path / "second", "--downloads", folder)) == 0
    assert main(["convert", "laion", "--annotations", str(folder), "--out", str(tmp_path / "third"), *FAST[3:]]) == 0

    contents = {(tmp_path / name / "manifest.json").read_bytes() for name in ("first", "second", "third")}
    assert len(contents) == 1
    with tarfile.open(folder / "00000.tar") as tar:
        names = Counter(os.path.splitext(name)[1] for name in tar.getnames())
    assert names == {".jpg": 6, ".txt": 6, ".json": 6}
    assert json.loads((folder / "00000_stats.json").read_text())["status_dict"] == {"http_404": 1, "success": 6}


@needs_img2dataset
def test_only_what_failed_is_asked_for_again_by_its_status(site: Site, listed: Callable[..., Path], tmp_path: Path, photo: Photo) -> None:
    good = site.give("/good.jpg", Answer(photo(seed=1)))
    urls = [good, site.give("/gone.jpg", Answer(404)), site.give("/busy.jpg", Answer(503)), site.give("/never.jpg", Answer(403))]
    path, folder = listed(urls), tmp_path / "out-downloads"
    assert main(laion(path, tmp_path / "out", "--retry", "none")) == 0
    size = (folder / "00000.tar").stat().st_size
    for name in ("/gone.jpg", "/busy.jpg", "/never.jpg"):
        site.give(name, Answer(photo(seed=2)))

    assert main(laion(path, tmp_path / "again", "--downloads", folder, "--retry", "http_404,http_503")) == 0

    assert [row["status"] for row in rows(folder)] == ["success", "success", "success", "http_403"]
    assert [row["attempts"] for row in rows(folder)] == [1, 2, 2, 1]
    assert (site.asked("/good.jpg"), site.asked("/never.jpg")) == (1, 1)
    assert (folder / "00000.tar").stat().st_size > size
    assert manifest.read(tmp_path / "again").totals == {"read": 4, "written": 3, "rejected": 1, "images": 3}


@needs_img2dataset
def test_a_shard_whose_urls_all_failed_is_not_done(
    site: Site, listed: Callable[..., Path], tmp_path: Path, photo: Photo, capsys: pytest.CaptureFixture[str]
) -> None:
    path = listed([f"{site.origin}/{number}.jpg" for number in range(4)])

    line = told(capsys, laion(path, tmp_path / "out"))
    assert "out-downloads/00000: expected at least one picture, found that all 4 URLs failed (http_404 4)" in line
    assert not (tmp_path / "out").exists()

    for number in range(4):
        site.give(f"/{number}.jpg", Answer(photo(seed=number)))
    assert main(laion(path, tmp_path / "out")) == 0
    assert {row["attempts"] for row in rows(tmp_path / "out-downloads")} == {1}


@needs_img2dataset
def test_without_a_network_the_first_shard_tells(listed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = listed([f"http://host-{number}.invalid/a.jpg" for number in range(100)])

    line = told(capsys, laion(path, tmp_path / "out", "--img2dataset", "number_sample_per_shard=10"))

    assert "all 10 URLs failed (name_resolution 10): is there a network?" in line


@needs_img2dataset
def test_a_partial_tar_is_downloaded_again_and_a_tail_is_cut_off(
    site: Site, listed: Callable[..., Path], tmp_path: Path, photo: Photo
) -> None:
    path = listed([site.give(f"/{n}.jpg", Answer(photo(seed=n))) for n in range(8)])
    folder, more = tmp_path / "out-downloads", ("--img2dataset", "number_sample_per_shard=4")
    assert main(laion(path, tmp_path / "out", *more)) == 0
    tars = [folder / f"0000{number}.tar" for number in range(2)]
    whole = [tar.read_bytes() for tar in tars]
    tars[0].write_bytes(whole[0][:-2000])
    tars[1].write_bytes(whole[1][:-1024] + b"x" * 5000)  # what a kill leaves that comes while pictures are appended

    assert main(laion(path, tmp_path / "again", "--downloads", folder, *more)) == 0

    assert [site.asked(f"/{n}.jpg") for n in range(8)] == [2] * 4 + [1] * 4
    assert tars[1].read_bytes() == whole[1]
    assert len(tars[0].read_bytes()) == len(whole[0])
    assert manifest.read(tmp_path / "again").fingerprint == manifest.read(tmp_path / "out").fingerprint


def started(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "pipelines", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(true: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.005)


@needs_img2dataset
def test_killed_at_any_moment_it_goes_on_and_every_url_has_one_row(
    site: Site, listed: Callable[..., Path], tmp_path: Path, photo: Photo
) -> None:
    path = listed([site.give(f"/{n}.jpg", Answer(photo(seed=n), after=0.02) if n % 7 else Answer(404)) for n in range(40)])
    more = ("--img2dataset", "number_sample_per_shard=4")
    whole, folder = tmp_path / "whole-downloads", tmp_path / "out-downloads"
    assert main(laion(path, tmp_path / "whole", *more)) == 0

    for shards in (1, 5):
        process = started(laion(path, tmp_path / "out", *more))
        try:
            _wait_for_shards(folder, shards, site, len(site.requests))
        finally:
            process.kill()
            process.communicate(timeout=30)
    process = started(laion(path, tmp_path / "out", *more))
    _, said = process.communicate(timeout=120)

    assert process.returncode == 0, said
    assert [row["url"] for row in rows(folder)] == [row["url"] for row in rows(whole)]
    for ledger in whole.glob("*.parquet"):
        assert (folder / ledger.name).read_bytes() == ledger.read_bytes()
        assert (folder / ledger.name).with_suffix(".tar").stat().st_size == ledger.with_suffix(".tar").stat().st_size
    assert manifest.read(tmp_path / "out").fingerprint == manifest.read(tmp_path / "whole").fingerprint
    assert not list((folder / "_download").glob("work*"))


def _wait_for_shards(folder: Path, shards: int, site: Site, asked: int) -> None:
    """Until so many stand there, and more was asked for."""
    wait_until(lambda: len(list(folder.glob("*.tar"))) >= shards and len(site.requests) > asked)


def children(process: int) -> list[int]:
    """Its child processes that run Python's workers."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@needs_img2dataset
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_shard_whose_process_hangs_or_dies_is_done_again(
    site: Site, listed: Callable[..., Path], tmp_path: Path, photo: Photo, how: signal.Signals
) -> None:
    path = listed([site.give(f"/{n}.jpg", Answer(photo(seed=n), after=0.3)) for n in range(3)])
    process = started(laion(path, tmp_path / "out", "--shard-deadline", 3))
    try:
        wait_until(lambda: site.asked("/0.jpg"))
        (worker,) = children(process.pid)
        os.kill(worker, how)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()

    assert process.returncode == 0, said
    assert set(statuses(tmp_path / "out-downloads").values()) == {"success"}
    assert site.asked("/0.jpg") == 2


@needs_img2dataset
def test_hashes_are_compared_where_the_list_has_them(site: Site, listed: Callable[..., Path], tmp_path: Path, photo: Photo) -> None:
    urls = [site.give(f"/{n}.jpg", Answer(photo(seed=n))) for n in range(3)]
    md5 = [hashlib.md5(photo(seed=0)).hexdigest().upper(), "0" * 32, None]

    assert main(laion(listed(urls, MD5=md5), tmp_path / "out")) == 0

    assert [row["status"] for row in rows(tmp_path / "out-downloads")] == ["success", "hash_differs", "success"]


@needs_img2dataset
def test_resizing_is_img2datasets(site: Site, listed: Callable[..., Path], tmp_path: Path, photo: Photo) -> None:
    path = listed([site.give("/a.png", Answer(photo(64, 48, format="PNG")))])

    assert main(laion(path, tmp_path / "out", "--img2dataset", "image_size=16", "--img2dataset", "resize_mode=keep_ratio")) == 0

    (row,) = rows(tmp_path / "out-downloads")
    assert (row["width"], row["height"], row["original_width"], row["original_height"]) == (21, 16, 64, 48)
    with tarfile.open(tmp_path / "out-downloads/00000.tar") as tar:
        assert "000000000.jpg" in tar.getnames()


@needs_img2dataset
def test_another_list_or_other_options_do_not_mix(
    site: Site, listed: Callable[..., Path], tmp_path: Path, photo: Photo, capsys: pytest.CaptureFixture[str]
) -> None:
    path = listed([site.give("/a.jpg", Answer(photo()))])
    assert main(laion(path, tmp_path / "out")) == 0

    line = told(capsys, laion(path, tmp_path / "out", "--img2dataset", "image_size=16"))
    assert "begun with another img2dataset" in line
    line = told(capsys, laion(listed([f"{site.origin}/b.jpg"], TEXT=["b"]), tmp_path / "out"))
    assert "begun with another urls" in line


@needs_img2dataset
def test_mmc4_from_documents_and_urls_to_shards_in_one_command(site: Site, tmp_path: Path, photo: Photo) -> None:
    def entry(name: str, path: str) -> dict[str, Any]:
        return {"image_name": name, "raw_url": site.origin + path, "matched_text_index": 0, "matched_sim": 0.3}

    for number in range(3):
        site.give(f"/{number}", Answer(photo(seed=number)))
    documents = [
        {"text_list": ["One."], "url": "http://a/1", "image_info": [entry("aa.jpg", "/0"), entry("bb.png", "/1")]},
        {"text_list": ["Two."], "url": "http://a/2", "image_info": [entry("aa.jpg", "/0"), entry("gone.jpg", "/gone")]},
        {"text_list": ["Three."], "url": "http://a/3", "image_info": [entry("../../evil.jpg", "/2"), entry("bb.png", "/1")]},
        {"text_list": ["Four."], "url": "http://a/4", "image_info": []},
    ]
    path = tmp_path / "docs_shard_17_v2.jsonl.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("docs.jsonl", "".join(f"{json.dumps(document)}\n" for document in documents))

    assert main(["convert", "mmc4", "--annotations", str(path), "--download", "--out", str(tmp_path / "out"), *FAST, *SMALL]) == 0

    folder = tmp_path / "out-downloads"
    assert {str(file.relative_to(folder)) for file in (folder / "images").rglob("*") if file.is_file()} == {
        "images/17/aa.jpg",
        "images/17/bb.png",
    }
    found = [(row["key"], row["status"]) for row in rows(folder)]
    assert found == [("17/aa.jpg", "success"), ("17/bb.png", "success"), ("17/gone.jpg", "http_404"), (None, "image_name")]
    assert site.asked("/0") == 1
    said = manifest.read(tmp_path / "out")
    assert (said.totals["written"], said.totals["images"]) == (4, 4)
    assert not list(tmp_path.rglob("evil*"))


def test_a_list_is_cut_evenly_and_read_as_a_stream(listed: Callable[..., Path], tmp_path: Path) -> None:
    path = listed([f"http://x/{n}" for n in range(10)])
    table = pq.ParquetFile(path).read()
    pq.write_table(table, path, row_group_size=3)
    pq.write_table(table.slice(0, 5), path.with_name("part-00001.parquet"))

    found = UrlList([path.parent], "url", "", 4)

    assert [shard.rows for shard in found.shards()] == [3, 3, 4, 2, 3]
    some = [found.shards()[number] for number in (1, 2, 4)]
    tables = dict(found.tables(some))
    assert [tables[shard]["url"].to_pylist() for shard in some] == [
        [f"http://x/{n}" for n in range(3, 6)],
        [f"http://x/{n}" for n in range(6, 10)],
        [f"http://x/{n}" for n in range(2, 5)],
    ]
    assert tables[some[0]]["key"].to_pylist() == ["000010", "000011", "000012"]
    assert tables[some[0]].column_names == ["url", "caption", "key"]
    assert len(UrlList([path.parent], "URL", "TEXT", 4, limit=4).shards()) == 2


def test_columns_are_known_by_name_and_a_text_that_is_none_costs_nothing_else(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", None], pa.binary()).view(pa.string())
    table = pa.table(
        {"TEXT": texts, "WIDTH": [1, 2, 3], "when": [b"x"] * 3, "SHA256": ["aa"] * 3, "width": [4] * 3, "URL": ["u1", "u2", "u3"]}
    )
    pq.write_table(table, tmp_path / "list.parquet")
    found = UrlList([tmp_path / "list.parquet"], "url", "", 10)

    ((_, rows),) = found.tables(found.shards())

    assert rows.to_pydict() == {
        "url": ["u1", "u2", "u3"],
        "caption": ["a", "\N{REPLACEMENT CHARACTER}", None],
        "expected_sha256": ["aa"] * 3,
        "WIDTH": [1, 2, 3],
        "key": ["000000", "000001", "000002"],
    }


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--url-column", "link"], "expected text columns link, found URL (string), TEXT (string)"),
        (["--caption-column", "alt"], "expected text columns alt, found URL (string)"),
        (["--img2dataset", "image_sise=3"], "did you mean image_size?"),
        (["--img2dataset", "image_size=big"], "expected a value of type int, found 'big'"),
        (["--img2dataset", "resize_mode=stretch"], "expected one of no, keep_ratio"),
        (["--img2dataset", "thread_count=0"], "thread_count: expected a number above 0"),
        (["--retry", "often"], "expected transient, all, none or statuses"),
        (["--host-rate", "0"], "--host-rate: expected a number above 0"),
        (["--contact", "a\nb"], "--contact: expected a mail address"),
        (["--downloads", "s3://lab/x"], "--downloads: expected a local folder"),
        (["--annotations", "x"], "expected either URL lists or --annotations, found both"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_one_line(
    listed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert says in told(capsys, laion(listed(["http://x/1"]), tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_a_wrong_list_is_one_line(listed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "urls.parquet"
    text.write_text("http://x/1\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    lists = {
        tmp_path / "gone.parquet": "expected a URL list (.parquet), found nothing",
        text: "expected a URL list in parquet, found",
        empty: "expected a URL list (.parquet) or a folder of them, found none",
        listed([]): "expected at least one URL, found none",
    }
    for path, says in lists.items():
        assert says in told(capsys, laion(path, tmp_path / "out"))
    assert "--out s3://lab/x" in told(capsys, [*laion(listed(["http://x/1"]), Path("out"))[:4], "--out", "s3://lab/x"])


def test_without_img2dataset_the_line_says_what_to_install(
    listed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_run, "find_spec", lambda _: None)

    assert "pip install 'shardweave[download]'" in told(capsys, laion(listed(["http://x/1"]), tmp_path / "out"))


def test_a_folder_of_somebody_elses_is_left_alone(listed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out-downloads"
    folder.mkdir()
    (folder / "00000.tar").write_bytes(b"")

    assert "found 00000.tar of somebody else's" in told(capsys, laion(listed(["http://x/1"]), tmp_path / "out"))


def test_laion_without_any_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected --annotations FOLDER, or, with convert, --urls FILE" in told(
        capsys, ["convert", "laion", "--out", str(tmp_path / "out")]
    )
