"""What happens to files behind the writer's back, told by hashlib."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from shards import settle
from shards.settle import LANES, SMALL, Settled, Settling, sha256s

STEP = 1 << 20


def made(folder: Path, sizes: Sequence[int]) -> list[tuple[int, bytes]]:
    """Files of these sizes, each of other bytes: a descriptor, and what is in it."""
    found = []
    for number, size in enumerate(sizes):
        data = hashlib.shake_128(b"%d" % number).digest(4099) * (size // 4099 + 1)
        path = folder / f"{number}-{size}"
        path.write_bytes(data[:size])
        found.append((os.open(path, os.O_RDWR), data[:size]))
    return found


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor on which streams side by side are worth waiting for, whatever this one is."""
    monkeypatch.setattr(settle, "gain", lambda: 1000.0)
    monkeypatch.setattr(settle, "PATIENCE", 60.0)


@pytest.mark.parametrize(
    "sizes",
    [
        (0,),
        (1, 0, 63, 64, 65),
        (STEP - 1, STEP, STEP + 1, 2 * STEP + 17),
        tuple(range(5_000, 5_000 + LANES)),
        tuple(n * 40_009 for n in range(LANES + 7)),
        (5 * STEP + 3, 1),
    ],
)
@pytest.mark.parametrize("gain", [0.0, 1000.0], ids=["one by one", "side by side"])
def test_the_hashes_are_those_of_hashlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: Sequence[int], gain: float) -> None:
    monkeypatch.setattr(settle, "gain", lambda: gain)
    files = made(tmp_path, sizes)

    found = sha256s([(file, len(data)) for file, data in files])

    assert found == [hashlib.sha256(data).hexdigest() for _, data in files]


def test_what_the_processor_gains_is_a_number() -> None:
    assert 0 < settle.gain() < 100


@pytest.mark.usefixtures("fast")
def test_shards_are_hashed_together_when_there_are_enough_and_the_rest_when_nobody_else_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = []

    def watched(files: Sequence[tuple[int, int]]) -> list[str]:
        groups.append(len(files))
        return sha256s(files)

    monkeypatch.setattr(settle, "sha256s", watched)
    files = made(tmp_path, [SMALL + n for n in range(LANES + 3)])
    with Settling() as settling:
        settled = [settling.put(file, len(data)) for file, data in files]
        settling.wait()
        assert [one.wait() for one in settled] == [hashlib.sha256(data).hexdigest() for _, data in files]

    assert groups == [LANES, 3]


@pytest.mark.usefixtures("fast")
def test_a_small_shard_and_one_that_may_not_wait_are_hashed_at_once(tmp_path: Path) -> None:
    (small, data), (large, more) = made(tmp_path, [10, SMALL])
    with Settling() as settling:
        assert settling.put(small, 10).wait() == hashlib.sha256(data).hexdigest()
    with Settling(1) as settling:
        assert settling.put(large, SMALL).wait() == hashlib.sha256(more).hexdigest()


@pytest.mark.usefixtures("fast")
def test_shards_that_come_too_slowly_do_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "PATIENCE", 0.01)
    ((file, data),) = made(tmp_path, [SMALL])
    with Settling() as settling:
        assert settling.put(file, SMALL).wait() == hashlib.sha256(data).hexdigest()


@pytest.mark.usefixtures("fast")
def test_no_more_waits_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "WAITING", 3 * SMALL)
    files = made(tmp_path, [SMALL] * 10)
    with Settling() as settling:
        settled = [settling.put(file, SMALL) for file, _ in files]  # would never return, did nobody take what waits
    assert [one.wait() for one in settled] == [hashlib.sha256(data).hexdigest() for _, data in files]


def test_a_file_that_is_shorter_than_was_said_or_can_not_be_synced_is_an_error(tmp_path: Path) -> None:
    ((file, _),) = made(tmp_path, [100])
    pipe, _ = os.pipe()
    with Settling() as settling:
        short, unsynced = settling.put(file, 2 * STEP), settling.put(pipe, 0)
        with pytest.raises(OSError, match="not there"):
            short.wait()
        with pytest.raises(OSError, match="Invalid argument"):
            unsynced.wait()


@pytest.mark.usefixtures("fast")
def test_work_waits_for_its_shards_in_threads_and_what_it_raises_is_raised(tmp_path: Path) -> None:
    files, done, threads = made(tmp_path, [SMALL] * 2 * LANES), [], set()

    def work(settled: Settled, data: bytes) -> None:
        assert settled.wait() == hashlib.sha256(data).hexdigest()
        threads.add(threading.current_thread())
        done.append(settled)

    with Settling() as settling:
        for file, data in files:
            settling.then(partial(work, settling.put(file, SMALL), data))
        settling.wait()
        assert len(done) == len(files)
        assert threading.current_thread() not in threads

        settling.then(lambda: 1 // 0)  # pyright: ignore[reportArgumentType] - it gives nothing
        with pytest.raises(ZeroDivisionError):
            settling.wait()


@pytest.mark.usefixtures("fast")
def test_left_by_an_error_everything_that_was_put_is_still_done(tmp_path: Path) -> None:
    ((file, data),) = made(tmp_path, [SMALL])
    found = []

    def broken() -> None:
        with Settling() as settling:
            settled = settling.put(file, SMALL)
            settling.then(lambda: found.append(settled.wait()))
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        broken()
    assert found == [hashlib.sha256(data).hexdigest()]
