"""Places: a directory and a bucket keep the same promises; a store that fails is asked again, and named when it goes on failing."""

from __future__ import annotations

import os
import pickle
import threading
import time
from pathlib import Path

import pytest

from schemas import RequestError, StoreError
from shards.bucket import PIECE, Bucket
from shards.folder import Folder
from shards.place import Place, at
from tests.ceph import S3
from tests.proxy import Proxy


@pytest.fixture
def environment(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This process reaches the service; nobody's own profile has a part in it."""
    for name, value in {**s3.environment, "HOME": str(tmp_path), "SHARDWEAVE_STORE_DEADLINE": "20"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["directory", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place that is not there yet."""
    if request.param == "directory":
        return at(tmp_path / "place")
    request.getfixturevalue("environment")
    return at(request.getfixturevalue("s3").bucket() + "/some/prefix")


@pytest.fixture
def faulty(proxy: Proxy, environment: None, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """The service behind a proxy that injects faults."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    return proxy


def test_what_is_written_is_read(place: Place) -> None:
    place.write("a.json", b"0123456789")
    assert place.read("a.json") == b"0123456789"
    assert place.size("a.json") == 10
    assert bytes(place.read_range("a.json", 2, 3)) == b"234"
    place.write("a.json", b"again")
    assert place.read("a.json") == b"again"


def test_a_range_ends_where_the_object_does(place: Place) -> None:
    place.write("a", b"0123456789")
    assert bytes(place.read_range("a", 8, 5)) == b"89"
    assert bytes(place.read_range("a", 10, 5)) == b""
    assert bytes(place.read_range("a", 20, 5)) == b""
    assert bytes(place.read_range("a", 0, 0)) == b""


def test_names_are_listed_in_order_with_their_sizes(place: Place) -> None:
    for name in ("b", "a/2", "a-1", "a/10", "c d%20#?ü"):
        place.write(name, name.encode())
    names = ["a-1", "a/10", "a/2", "b", "c d%20#?ü"]
    assert list(place.names()) == [(name, len(name.encode())) for name in names]
    assert [name for name, _ in place.names("a/")] == ["a/10", "a/2"]
    assert [name for name, _ in place.names("a")] == ["a-1", "a/10", "a/2"]
    assert list(place.names("nothing/")) == []
    assert place.read("c d%20#?ü") == "c d%20#?ü".encode()


def test_an_empty_place_has_no_names(place: Place) -> None:
    assert list(place.names()) == []


def test_what_is_not_there_is_a_file_not_found(place: Place) -> None:
    for ask in (place.read, place.size, lambda name: place.read_range(name, 0, 1), lambda name: list(place.stream(name))):
        with pytest.raises(FileNotFoundError, match="nothing"):
            ask("nothing")
    place.remove("nothing")


def test_of_many_that_create_at_once_one_succeeds(place: Place) -> None:
    barrier = threading.Barrier(8)
    won: list[int] = []

    def create(number: int) -> None:
        barrier.wait()
        if place.create("taken", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert place.read("taken") == b"%d" % won[0]
    assert not place.create("taken", b"%d" % won[0])


def test_a_file_of_several_parts_is_uploaded_and_streamed(place: Place, tmp_path: Path) -> None:
    data = os.urandom(2 * PIECE + 12345)
    (tmp_path / "file").write_bytes(data)
    place.upload("x/shard.tar", tmp_path / "file")
    assert place.size("x/shard.tar") == len(data)
    assert b"".join(place.stream("x/shard.tar")) == data
    assert b"".join(place.stream("x/shard.tar", PIECE + 7)) == data[PIECE + 7 :]
    assert place.read("x/shard.tar") == data
    assert [name for name, _ in place.names()] == ["x/shard.tar"]


def test_an_empty_object_is_no_missing_one(place: Place) -> None:
    place.write("empty", b"")
    assert (place.read("empty"), place.size("empty"), list(place.stream("empty"))) == (b"", 0, [])


def test_when_an_object_was_changed_is_listed(place: Place) -> None:
    began = time.time()
    for name in ("_units/000000.json", "_units/000001.json", "run.json"):
        place.write(name, b"1")

    found = dict(place.modified("_units/"))

    assert list(found) == ["_units/000000.json", "_units/000001.json"]
    assert all(abs(changed - began) < 60 for changed in found.values())  # of the store, whose clock is another


def test_removed_is_gone(place: Place) -> None:
    place.write("a", b"1")
    place.remove("a")
    assert list(place.names()) == []


def test_it_pickles_by_what_it_is_called(place: Place) -> None:
    place.write("a", b"1")
    assert pickle.loads(pickle.dumps(place)).read("a") == b"1"


def test_what_a_place_is_called() -> None:
    assert at("s3://bucket/pre/fix/").url == "s3://bucket/pre/fix"
    assert at("gs://bucket").url == "gs://bucket"
    assert at("az://container/x").folder is None
    assert at("file:///tmp/a%20b").folder == Path("/tmp/a b")
    assert at("out/a").folder == Path("out/a")
    assert isinstance(at(Path("/x")), Folder)
    assert isinstance(at("s3://bucket"), Bucket)


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "s3://", "s3:///x", "s3://key:secret@bucket/x", "s3://bucket/a//b", "s3://bucket/../x", "file://host/x"]
)
def test_a_place_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RequestError) as caught:
        at(url)
    assert "secret" not in str(caught.value)


def test_a_profile_is_read_from_its_files(s3: S3, environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in s3.environment:
        monkeypatch.delenv(name)
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(f"[mine]\naws_access_key_id = {s3.key}\naws_secret_access_key = {s3.secret}\n")
    (tmp_path / ".aws" / "config").write_text(f"[profile mine]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\n")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    place = at(s3.bucket())
    place.write("a", b"1")
    assert place.read("a") == b"1"
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(RequestError, match="AWS_PROFILE other: expected its aws_access_key_id"):
        at(s3.bucket()).read("a")


def test_no_credentials_are_said_at_once(s3: S3, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="expected credentials"):
        at(s3.bucket()).read("a")


def test_a_wrong_key_and_a_missing_bucket_are_said_at_once(s3: S3, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDWEAVE_STORE_DEADLINE", "1000")
    for ask in (lambda place: place.read("a"), lambda place: list(place.names()), lambda place: place.write("a", b"1")):
        with pytest.raises(StoreError, match=r"s3://no-such-bucket.*404 Not Found: NoSuchBucket"):
            ask(at("s3://no-such-bucket"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "notthesecretatall")
    place = at(s3.bucket())
    for ask in (
        lambda: place.read("a"),
        lambda: place.size("a"),
        lambda: place.create("a", b"1"),
        lambda: place.upload("a", Path(__file__)),
    ):
        with pytest.raises(StoreError, match="403 Forbidden") as caught:
            ask()
        assert "notthesecretatall" not in str(caught.value)
        assert s3.key not in str(caught.value)


def test_an_unreachable_endpoint_is_named_at_the_deadline(monkeypatch: pytest.MonkeyPatch, environment: None) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("SHARDWEAVE_STORE_DEADLINE", "1")
    with pytest.raises(StoreError, match=r"s3://bucket/a: read: expected success within 1 s, .*Connection refused"):
        at("s3://bucket").read("a")


def test_a_forked_process_is_told_and_does_not_hang(place: Place) -> None:
    place.write("a", b"1")
    child = os.fork()
    if child == 0:
        try:
            place.read("a")
            os._exit(0)
        except StoreError:
            os._exit(7)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == (0 if place.folder else 7)


FAULTS = ["status", "reset", "stall", "short", "trickle", "lost", "cut"]


@pytest.mark.parametrize("kind", FAULTS)
def test_reads_outlive_faults(kind, faulty: Proxy, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDWEAVE_STORE_DEADLINE", "6")  # tries of 1.5 s
    place = at(s3.bucket())
    data = os.urandom(PIECE + 100_000)
    (tmp_path / "file").write_bytes(data)
    place.upload("big", tmp_path / "file")
    place.write("small", b"small" * 100)
    small = faulty.fail(kind, method="GET", path="/small", times=2, after=100)
    big = faulty.fail(kind, method="GET", path="/big", times=1, after=70_000)
    listing = faulty.fail("status" if kind == "cut" else kind, method="GET", path="list-type", times=1, after=50)
    assert place.read("small") == b"small" * 100
    assert b"".join(place.stream("big")) == data
    assert [name for name, _ in place.names()] == ["big", "small"]
    assert (small.hits, big.hits, listing.hits) == (2, 1, 1)


@pytest.mark.parametrize("kind", ["status", "lost", "stall"])
def test_writes_outlive_faults(kind, faulty: Proxy, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDWEAVE_STORE_DEADLINE", "6")
    place = at(s3.bucket())
    data = os.urandom(3 * PIECE)
    (tmp_path / "file").write_bytes(data)
    faults = [
        faulty.fail(kind, method="PUT", path="partNumber=2", times=1),
        faulty.fail(kind, method="POST", path=r"uploads", times=1),
        faulty.fail(kind, method="POST", path=r"uploadId", times=1),
        faulty.fail(kind, method="PUT", path="/small", times=2),
        faulty.fail(kind, method="PUT", path="/created", times=1),
    ]
    place.upload("big", tmp_path / "file")
    place.write("small", b"1")
    assert place.create("created", b"mine")
    assert not place.create("created", b"another's")
    faulty.heal()
    assert (place.read("big") == data, place.read("small"), place.read("created")) == (True, b"1", b"mine")
    assert [fault.hits for fault in faults if fault.hits] == [fault.times for fault in faults if fault.hits]
    assert all(faults[number].hits for number in (0, 3, 4))


@pytest.mark.parametrize("kind", ["status", "reset", "stall", "short", "trickle"])
def test_a_fault_that_stays_is_named_within_the_deadline(
    kind, faulty: Proxy, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = at(s3.bucket())
    place.write("a", b"1" * 1000)
    (tmp_path / "file").write_bytes(os.urandom(2 * PIECE))
    monkeypatch.setenv("SHARDWEAVE_STORE_DEADLINE", "2")
    faulty.fail(kind, after=10)
    place = at(place.url)
    for verb, ask in {
        "read": lambda: place.read("a"),
        "list": lambda: list(place.names()),
        "upload": lambda: place.upload("big", tmp_path / "file"),
    }.items():
        begun = time.monotonic()
        with pytest.raises(StoreError, match=f"{place.url}.*: {verb}: expected success within 2 s"):
            ask()
        assert time.monotonic() - begun < 20  # far from for ever; the machine may be slow
    faulty.heal()
    assert [name for name, _ in at(place.url).names()] == ["a"]
