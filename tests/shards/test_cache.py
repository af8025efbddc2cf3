"""The cache: one download a machine, whatever is killed; what lies in it is what the manifest states; the budget holds."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import shards
from schemas import RequestError, ShardError, StoreError
from shards import manifest
from shards.cache import Cache
from shards.manifest import ShardInfo
from shards.reader import Shards
from tests.ceph import S3
from tests.proxy import Proxy
from tests.shards.counted import Counted
from tests.shards.records import several

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 28 records in 4 shards of one size. Not to be changed: copy it."""
    place = tmp_path_factory.mktemp("made")
    shards.write(place, several(28), shard_bytes=20_000)
    assert len({path.stat().st_size for path in place.glob("*.tar")}) == 1
    assert len(list(place.glob("*.tar"))) == 4
    return place


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Counted:
    """The data set, as object storage holds it."""
    (tmp_path / "log").mkdir()
    return Counted(shutil.copytree(made, tmp_path / "store"), tmp_path / "log" / "requests")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache with room for everything."""
    return Cache(tmp_path / "cache")


def infos(store: Counted) -> list[ShardInfo]:
    return manifest.decode(store.read("manifest.json")).shards


def opened(store: Counted, cache: Cache | None) -> Shards:
    return Shards(store, manifest.decode(store.read("manifest.json")), cache)


def content(data: Shards) -> list[tuple[str, bytes]]:
    return [(sample.key, bytes(sample.image(0))) for sample in data]


def held(cache: Cache) -> list[str]:
    """Everything in the folder."""
    return sorted(path.name for path in cache.folder.iterdir())


def names(*found: ShardInfo) -> list[str]:
    """Of their files in a cache."""
    return sorted(f"{info.sha256}.tar" for info in found)


@contextlib.contextmanager
def running(*work: Callable[[], Any]) -> Iterator[Sequence[BaseProcess]]:
    """One process for each, none of which is left."""
    processes = [FORK.Process(target=one) for one in work]
    try:
        for process in processes:
            process.start()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join(10)


def finished(processes: Sequence[BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def test_processes_that_want_the_same_shards_bring_each_once(store: Counted, cache: Cache, made: Path) -> None:
    expected = content(shards.open(made))
    store.slow = 0.02

    def read() -> None:
        os._exit(0 if content(opened(store, cache)) == expected else 1)

    with running(*[read] * 4) as processes:
        assert finished(processes) == [0] * 4

    assert store.asked() == {info.name: 1 for info in infos(store)}
    assert held(cache) == names(*infos(store))


def test_a_second_run_downloads_nothing(store: Counted, cache: Cache) -> None:
    first, second = opened(store, cache), opened(store, cache)

    one, two = ([bytes(sample.image(0)) for shard in data.shards for sample in shard] for data in (first, second))

    assert one == two
    assert (first.fetched.cache_misses, first.fetched.cache_hits) == (4, 0)
    assert (second.fetched.cache_misses, second.fetched.cache_hits) == (0, 4)
    indexes = sum((store.root / info.name).with_suffix(".parquet").stat().st_size for info in infos(store))
    assert second.fetched.bytes_read == indexes
    assert first.fetched.bytes_read == indexes + sum(info.bytes for info in infos(store))


def test_who_waits_takes_over_when_the_downloader_is_killed(store: Counted, cache: Cache) -> None:
    info = infos(store)[0]
    gate = store.shut(info.name)
    with running(lambda: cache.fetch(store, info), lambda: cache.fetch(store, info)) as processes:
        until(lambda: store.asked() == {info.name: 1})
        assert held(cache) == [f".{info.sha256}.lock", f".{info.sha256}.part"]
        until(lambda: all(process.is_alive() for process in processes))
        store.log.write_text("")
        first, second = processes if _holds(processes[0], cache, info) else processes[::-1]
        first.kill()
        until(lambda: store.asked() == {info.name: 1})
        gate.unlink()
        assert finished([second]) == [0]

    assert held(cache) == names(info)
    assert cache.fetch(store, info).read_bytes() == (store.root / info.name).read_bytes()


def _holds(process: BaseProcess, cache: Cache, info: ShardInfo) -> bool:
    """Whether the process has the part open."""
    links = Path(f"/proc/{process.pid}/fd").iterdir()
    return any(os.readlink(link).endswith(f".{info.sha256}.part") for link in links if link.is_symlink())


def test_a_fork_of_the_killed_downloader_keeps_nobody_waiting(store: Counted, cache: Cache, tmp_path: Path) -> None:
    info = infos(store)[0]
    gate = store.shut(info.name)

    def download_and_fork() -> None:
        threading.Thread(target=cache.fetch, args=(store, info), daemon=True).start()
        until(lambda: store.asked() == {info.name: 1})
        child = os.fork()
        if child:
            (tmp_path / "child").write_text(str(child))
        time.sleep(60)

    with running(download_and_fork) as processes:
        until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text())
        processes[0].kill()
        until(lambda: not processes[0].is_alive())
        child = int((tmp_path / "child").read_text())
        try:
            gate.unlink()
            os.kill(child, 0)  # it lives on, and with it every descriptor that it was not told to close
            assert Cache(cache.folder, patience=2).fetch(store, info).is_file()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_downloader_that_stands_still_is_an_error_and_no_hang(store: Counted, cache: Cache) -> None:
    info = infos(store)[0]
    store.shut(info.name)
    with running(lambda: cache.fetch(store, info)):
        until(lambda: store.asked() == {info.name: 1})

        with pytest.raises(StoreError, match=rf"{info.name}: expected the process that is downloading to go on"):
            Cache(cache.folder, patience=0.2).fetch(store, info)


def test_what_killed_runs_left_goes_when_room_is_made(store: Counted, cache: Cache) -> None:
    for name in (f".{'0' * 64}.part", f".{'0' * 64}.lock", f".{'1' * 64}.part", f".{'2' * 64}.lock"):
        (cache.folder / name).write_bytes(bytes(100))

    cache.fetch(store, infos(store)[0])

    assert held(cache) == names(infos(store)[0])


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "longer"])
def test_a_damaged_copy_is_dropped_and_brought_once_more(store: Counted, cache: Cache, made: Path, damage: str) -> None:
    info = infos(store)[1]
    copy = cache.fetch(store, info)
    whole = copy.read_bytes()
    altered = {"cut": whole[:-1024], "flipped": _flipped(whole, 3000), "empty": b"", "longer": whole + bytes(512)}
    copy.write_bytes(altered[damage])

    data = opened(store, cache)

    assert content(data) == content(shards.open(made))
    assert store.asked()[info.name] == 2
    assert copy.read_bytes() == whole


def test_a_damaged_copy_is_dropped_by_random_access_too_from_many_threads(store: Counted, cache: Cache, made: Path) -> None:
    for info in infos(store):
        copy = cache.fetch(store, info)
        copy.write_bytes(_flipped(copy.read_bytes(), 3000))
    expected = [bytes(sample.image(0)) for sample in shards.open(made)]
    data = opened(store, cache)
    order = [number % 28 for number in range(280)]
    random.Random(0).shuffle(order)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: bytes(data[number].image(0)), order))

    assert found == [expected[number] for number in order]
    assert all(count <= 3 for count in store.asked().values())  # a thread may find a fresh copy that it can not know to be one


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_another_shard_than_the_manifest_states_is_named_and_not_kept(store: Counted, cache: Cache) -> None:
    info = infos(store)[2]
    tar = store.root / info.name
    tar.write_bytes(_flipped(tar.read_bytes(), 3000))
    found = hashlib.sha256(tar.read_bytes()).hexdigest()

    with (
        opened(store, cache) as data,
        pytest.raises(ShardError, match=rf"{info.name}: shard altered: expected sha256 {info.sha256}, found {found}"),
    ):
        list(data)
    assert f"{info.sha256}.tar" not in held(cache)
    assert not [name for name in held(cache) if name.startswith(".")]


class FlippedOnce(Counted):
    """Damages the first bytes that it sends."""

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        found = super().read_range(name, offset, length)
        return found if sum(self.asked().values()) > 1 else _flipped(found, 100)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "by range"])
def test_bytes_that_were_damaged_on_the_way_are_asked_for_again(store: Counted, cache: Cache, made: Path, cached: bool) -> None:
    data = opened(FlippedOnce(store.root, store.log), cache if cached else None)

    assert bytes(data[0].image(0)) == bytes(shards.open(made)[0].image(0))
    assert sum(store.asked().values()) == 2


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda tar: os.truncate(tar, 512), "shard size: expected 18944, found 512"),
        (lambda tar: tar.unlink(), "shard missing: expected 18944 bytes, found no such file"),
        (lambda tar: shutil.copy(tar.with_name("000000-002.tar"), tar), "(shard altered|000000-00000007: record altered)"),
    ],
    ids=["cut", "missing", "swapped"],
)
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "by range"])
def test_a_damaged_shard_at_the_store_is_named(
    store: Counted, cache: Cache, damage: Callable[[Path], Any], what: str, cached: bool
) -> None:
    damage(store.root / "000000-001.tar")
    data = opened(store, cache if cached else None)

    if not cached:
        what = what.replace("shard size: expected 18944", "bytes at 0: expected [0-9]+")
    with pytest.raises(ShardError, match=rf"000000-001\.tar:? {what}"):
        content(data)
    with pytest.raises(ShardError, match=r"000000-001\.tar"):
        data[7]
    assert data[0].key == "000000-00000000"
    assert data[27].key == "000000-00000027"


def test_equal_names_of_other_content_never_meet(store: Counted, cache: Cache, made: Path, tmp_path: Path) -> None:
    shards.write(tmp_path / "other", list(several(56))[28:], shard_bytes=20_000)
    other = Counted(tmp_path / "other", tmp_path / "log" / "other")
    assert [info.name for info in infos(other)] == [info.name for info in infos(store)]

    assert content(opened(store, cache)) == content(shards.open(made))
    assert content(opened(other, cache)) == content(shards.open(tmp_path / "other"))
    assert held(cache) == names(*infos(store), *infos(other))


def test_the_least_recently_used_goes_first(store: Counted, tmp_path: Path) -> None:
    a, b, c, d = infos(store)
    cache = Cache(tmp_path / "cache", 3 * a.bytes)
    for age, info in ((30, a), (20, b), (10, c)):
        cache.fetch(store, info)
        os.utime(tmp_path / "cache" / f"{info.sha256}.tar", (time.time() - age, time.time() - age))
    cache.fetch(store, a)

    cache.fetch(store, d)

    assert held(cache) == names(a, c, d)


def test_what_is_being_read_goes_last_and_stays_readable(store: Counted, tmp_path: Path, made: Path) -> None:
    a, b, c, d = infos(store)
    cache = Cache(tmp_path / "cache", 2 * a.bytes)
    data = opened(store, cache)
    sample = data[0]
    os.utime(tmp_path / "cache" / f"{a.sha256}.tar", (0, 0))
    cache.fetch(store, b)
    cache.fetch(store, c)
    assert held(cache) == names(a, c)

    other = data[14]
    cache.fetch(store, d)

    assert held(cache) == names(*([c, d] if f"{c.sha256}.tar" in held(cache) else [a, d]))
    expected = shards.open(made)
    assert bytes(sample.image(0)) == bytes(expected[0].image(0))
    assert bytes(other.image(0)) == bytes(expected[14].image(0))
    assert content(data) == content(expected)


def test_readers_that_evict_from_each_other_read_everything(store: Counted, tmp_path: Path, made: Path) -> None:
    cache = Cache(tmp_path / "cache", 2 * infos(store)[0].bytes)
    expected = [bytes(sample.image(0)) for sample in shards.open(made)]

    def read(seed: int) -> None:
        order = list(range(4)) * 5
        random.Random(seed).shuffle(order)
        data = opened(store, cache)
        for shard in order:
            found = [bytes(sample.image(0)) for sample in data.shards[shard]]
            assert found == expected[7 * shard : 7 * shard + 7]
            data.shards[shard].close()

    with running(*(lambda seed=seed: read(seed) for seed in range(4))) as processes:
        assert finished(processes) == [0] * 4
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= cache.budget
    assert not [name for name in held(cache) if name.startswith(".")]


def test_a_budget_that_holds_no_shard_is_told(store: Counted, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1000)

    with pytest.raises(RequestError, match=r"cache .*: expected room for 000000-000\.tar, 18944 bytes, found a budget of 1000"):
        cache.fetch(store, infos(store)[0])
    assert held(cache) == []


def test_a_full_disk_is_one_clear_line(store: Counted, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        cache = Cache(disk / "cache")
        cache.fetch(store, infos(store)[0])
        with pytest.raises(
            RequestError, match=r"expected room on the disk for 000000-001\.tar, 18944 bytes, found: No space left on device"
        ):
            cache.fetch(store, infos(store)[1])
        assert held(cache) == names(infos(store)[0])
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_hash_that_is_a_path_leads_nowhere(store: Counted, cache: Cache) -> None:
    info = infos(store)[0]

    with pytest.raises(ShardError, match="expected 64 hexadecimal digits"):
        cache.fetch(store, ShardInfo(info.name, info.records, info.images, info.bytes, "../../evil", info.index_sha256))


def test_a_data_set_pickles_with_its_cache(store: Counted, cache: Cache, made: Path) -> None:
    data = opened(store, cache)
    data.prefetch(range(4))

    assert content(pickle.loads(pickle.dumps(data))) == content(shards.open(made))
    data.close()


def test_prefetched_shards_are_there_when_they_are_used(store: Counted, cache: Cache) -> None:
    with opened(store, cache) as data:
        data.prefetch([2, 0])
        until(lambda: data.shards[2].is_open and data.shards[0].is_open)
        store.log.write_text("")

        assert data[0].key == "000000-00000000"
        assert data[14].key == "000000-00000014"
        assert not store.asked()
        assert data.fetched.cache_misses == 2
        assert not data.shards[1].is_open


def test_a_record_does_not_wait_for_the_whole_shard_that_is_coming(store: Counted, cache: Cache, made: Path) -> None:
    store.slow = 0.0
    with opened(store, cache) as data:
        brought = threading.Event()
        fetch, cache.open = cache.open, lambda *a: (brought.wait(30), fetch(*a))[1]  # type: ignore[method-assign]
        data.prefetch([0])
        assert bytes(data[3].image(0)) == bytes(shards.open(made)[3].image(0))
        assert (store.asked(), data.shards[0].is_open) == ({"000000-000.tar": 1}, False)

        brought.set()
        until(lambda: data.shards[0].is_open)
        assert bytes(data[4].image(0)) == bytes(shards.open(made)[4].image(0))
        assert store.asked() == {"000000-000.tar": 2}


def test_what_fails_ahead_fails_where_it_is_used(store: Counted, cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    (store.root / "000000-003.tar").unlink()
    with opened(store, cache) as data:
        data.prefetch(range(4))
        until(lambda: "read ahead: 000000-003.tar: shard missing" in caplog.text)

        assert data[0].key == "000000-00000000"
        with pytest.raises(ShardError, match=r"000000-003\.tar: shard missing"):
            data[27]


def test_a_process_that_ends_does_not_wait_for_what_was_coming(store: Counted, cache: Cache) -> None:
    script = (
        "import sys; from pathlib import Path; from shards import manifest; from shards.cache import Cache\n"
        "from shards.reader import Shards\n"
        "from tests.shards.counted import Counted\n"
        "store = Counted(Path(sys.argv[1]), Path(sys.argv[2]), slow=1.0)\n"
        "data = Shards(store, manifest.decode((store.root / 'manifest.json').read_bytes()), Cache(Path(sys.argv[3])))\n"
        "data.prefetch(list(range(4)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, store.root, store.log, cache.folder], capture_output=True, text=True, timeout=30, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert not store.asked("range")
    assert held(cache) == []


def test_closing_gives_up_what_is_under_way(store: Counted, cache: Cache) -> None:
    data = opened(store, cache)
    gate = store.shut("000000-000.tar")
    data.prefetch([0])
    until(lambda: store.asked() == {"000000-000.tar": 1})
    threading.Timer(0.1, gate.unlink).start()
    data.close()

    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("shardweave")] == []
    assert data[0].key == "000000-00000000"


# Against a real service: clients in processes of their own, requests counted and disturbed by a proxy in front of it.

READ = """
import hashlib, sys
from pathlib import Path
import shards
from shards.cache import Cache
data = shards.open(sys.argv[1], cache=Cache(Path(sys.argv[2])) if len(sys.argv) > 2 else None)
with data:
    digest = hashlib.sha256()
    for sample in data:
        digest.update(sample.key.encode() + bytes(sample.image(0)))
print(digest.hexdigest(), data.fetched.cache_misses)
"""


@pytest.fixture
def bucket(s3: S3, proxy: Proxy, made: Path) -> str:
    """The data set in a bucket."""
    url = s3.bucket()
    for path in made.iterdir():
        if path.is_file():
            assert s3.request("PUT", f"/{url.removeprefix('s3://')}/place/{path.name}", path.read_bytes())[0] == 200
    return f"{url}/place"


def client(proxy: Proxy, *arguments: object) -> subprocess.Popen[str]:
    """A process that reads everything, through the proxy."""
    environment = {**os.environ, **proxy.environment, "SHARDWEAVE_STORE_DEADLINE": "30"}
    command = [sys.executable, "-c", READ, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def digest(made: Path) -> str:
    """What a client prints, before the number of shards that it has downloaded."""
    found = hashlib.sha256()
    for sample in shards.open(made):
        found.update(sample.key.encode() + bytes(sample.image(0)))
    return found.hexdigest()


def gets(proxy: Proxy, suffix: str) -> list[str]:
    return [path for method, path in proxy.requests if method == "GET" and path.endswith(suffix)]


def test_three_processes_and_one_service(proxy: Proxy, bucket: str, made: Path, tmp_path: Path) -> None:
    processes = [client(proxy, bucket, tmp_path / "cache") for _ in range(3)]
    try:
        outputs = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()

    assert [output.split()[0] for output, _ in outputs if output] == [digest(made)] * 3, outputs
    assert sum(int(output.split()[1]) for output, _ in outputs) == 4
    assert len(set(gets(proxy, ".tar"))) == 4


def test_a_killed_downloader_and_one_service(proxy: Proxy, bucket: str, made: Path, tmp_path: Path) -> None:
    stall = proxy.fail("stall", path=r"\.tar", method="GET", after=5000)
    first = second = client(proxy, bucket, tmp_path / "cache")
    try:
        until(lambda: stall.hits)
        second = client(proxy, bucket, tmp_path / "cache")
        until(lambda: len(gets(proxy, "manifest.json")) == 2)
        first.kill()
        first.communicate(timeout=10)
        proxy.heal()
        assert second.communicate(timeout=60) == (f"{digest(made)} 4\n", "")
    finally:
        for process in (first, second):
            process.kill()
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".tar"] * 4


@pytest.mark.parametrize("kind", ["cut", "wrong", "reset", "short", "status"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "by range"])
def test_a_service_that_fails_now_and_then_loses_no_record(
    proxy: Proxy, bucket: str, made: Path, tmp_path: Path, kind: Any, cached: bool
) -> None:
    fault = proxy.fail(kind, path=r"\.tar", method="GET", times=1, after=3000)
    process = client(proxy, bucket, *([tmp_path / "cache"] if cached else []))
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()

    assert output.split()[:1] == [digest(made)], errors
    assert fault.hits == 1


def test_without_a_cache_a_record_is_one_request(proxy: Proxy, bucket: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in proxy.environment.items():
        monkeypatch.setenv(name, value)
    data = shards.open(bucket)
    proxy.requests.clear()

    found = [bytes(data[number].image(0)) for number in (3, 20, 4)]

    assert found == [bytes(shards.open(made)[number].image(0)) for number in (3, 20, 4)]
    assert len(gets(proxy, ".tar")) == 3
    assert len(gets(proxy, ".parquet")) == 2
    assert len(proxy.requests) == 5
