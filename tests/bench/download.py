"""Downloading: our step beside img2dataset alone, same options, from a server on loopback; and asking again for 1 % that failed.

Both as commands, from process start to end. The server (`web`) is one process of asyncio that answers with JPEGs of 20 kB, and with 503
where a hundredth URL of the second list is first asked for. img2dataset makes a TLS context for every picture and imports torch, which ours
does not; robots.txt, limits per host and the ledger are what ours has more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.figure import Figure
from tests.bench.readers import ROOT, NotThere, empty_folder

ROUNDS, URLS, MANY, SHARD = 3, 4_000, 100_000, 10_000
PROCESSES, THREADS = 2, 64


def measure(quick: bool = False) -> Iterator[Figure]:
    """Seconds."""
    if find_spec("img2dataset") is None:
        raise NotThere("no img2dataset: pip install -e .[download]")
    with empty_folder("download") as folder, serving() as origin:
        yield from beside(folder, origin, 200 if quick else URLS, 1 if quick else ROUNDS)
        yield from again(folder, origin, 1_000 if quick else MANY)


def beside(folder: Path, origin: str, urls: int, rounds: int) -> Iterator[Figure]:
    """In turns."""
    listed = made(folder / "beside.parquet", origin, "good", urls)
    seconds: dict[str, list[float]] = {"ours": [], "img2dataset": []}
    for number in range(rounds):
        for who, times in seconds.items():
            times.append(timed("tests.bench.download", who, listed, folder / f"{who}-{number}", max(1, urls // 4)))
    ours, peer = tuple(seconds["ours"]), tuple(seconds["img2dataset"])
    yield Figure(f"{urls:,} URLs downloaded, {PROCESSES} processes", "s", ours, peer, "img2dataset alone", 1.05, below=True)


def again(folder: Path, origin: str, urls: int) -> Iterator[Figure]:
    """A command in which 1 % fails, and is asked for again behind the others: seconds of the two passes."""
    listed = made(folder / "again.parquet", origin, "flaky", urls)
    said = ran("tests.bench.download", "ours", listed, folder / "again", SHARD)
    seconds = {what: float(found) for what, found in re.findall(r"^(\w+): \d+ shards in ([\d.]+) s", said, re.MULTILINE)}
    if json.loads((folder / "again/_download/summary.json").read_text())["downloaded"] != urls:
        raise RuntimeError(f"expected {urls} pictures, found {said}")
    what = f"{urls:,} URLs, of which 1 % is asked for again"
    yield Figure(what, "s", (seconds["retry"],), (seconds["download"],), "the first pass", 0.03, below=True)


def timed(*command: object) -> float:
    """Seconds of a process."""
    began = time.perf_counter()
    ran(*command)
    return time.perf_counter() - began


def ran(*command: object) -> str:
    """What a process says on stderr."""
    given = [sys.executable, "-m", *map(str, command)]
    return subprocess.run(given, cwd=ROOT, check=True, capture_output=True, text=True, timeout=1800).stderr


def made(path: Path, origin: str, kind: str, urls: int) -> Path:
    """A URL list."""
    columns = {"url": [f"{origin}/{kind}/{n}" for n in range(urls)], "caption": [f"picture {n}" for n in range(urls)]}
    pq.write_table(pa.table(columns), path)
    return path


def ours(listed: Path, folder: Path, shard: int) -> None:
    """Our step, without the conversion behind it."""
    from pipelines.download.options import Download
    from pipelines.download.run import download
    from pipelines.download.urls import UrlList

    given = {"processes_count": PROCESSES, "thread_count": THREADS, "number_sample_per_shard": shard}
    texts = tuple(f"{name}={value}" for name, value in given.items())
    options = Download(img2dataset=texts, allow_private=True, host_requests=1000, host_rate=10**6)
    download(UrlList([listed], "url", "caption", shard), folder, options)


def theirs(listed: Path, folder: Path, shard: int) -> None:
    """img2dataset as its own documentation has it."""
    from img2dataset import download  # pyright: ignore[reportMissingImports]

    download(
        url_list=str(listed),
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_format="webdataset",
        output_folder=str(folder),
        processes_count=PROCESSES,
        thread_count=THREADS,
        number_sample_per_shard=shard,
        disable_all_reencoding=True,
        extract_exif=False,
    )


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The origin of the server, in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.download", "web"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def web() -> None:
    """/good/N is picture N % 50; /flaky/N, too, but 503 the first time where N % 100 is 0."""
    from tests.shards.records import picture  # no other process needs it

    bodies = [picture(160, 160, seed) for seed in range(50)]
    head = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\nContent-Length: "
    answers = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    busy = b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    none = busy.replace(b"503 Busy", b"404 Not Found")
    asked: set[str] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode()
            kind, _, number = path.strip("/").partition("/")
            failing = kind == "flaky" and int(number) % 100 == 0 and number not in asked
            asked.add(number)
            writer.write(busy if failing else answers[int(number) % 50] if number else none)
            await writer.drain()
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    who, *given = sys.argv[1:]
    if who == "web":
        web()
    elif who == "img2dataset":
        theirs(Path(given[0]), Path(given[1]), int(given[2]))
    else:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        ours(Path(given[0]), Path(given[1]), int(given[2]))
