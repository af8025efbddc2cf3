"""Commits and manifests as several threads read them."""

from __future__ import annotations

import subprocess
import sys

# Forked while nothing has been decoded yet: whatever is made by the first decoding is made by sixteen threads at once.
FIRST = """
import os, sys, threading
import msgspec
from shards import manifest

shard = {"name": "000001-000.tar", "records": 1, "images": 0, "bytes": 1, "sha256": "", "index_sha256": ""}
unit = {"unit": 1, "run": "x", "read": 1, "written": 1, "images": 0, "rejects": [], "dropped": {}, "shards": [shard], "suffixes": []}
data = msgspec.json.encode(unit)
sys.setswitchinterval(1e-6)

def decode(all_there):
    all_there.wait()
    manifest.decode_unit("_units/000001.json", data)

ended = set()
for _ in range(40):
    child = os.fork()
    if child == 0:
        all_there = threading.Barrier(16)
        threads = [threading.Thread(target=decode, args=(all_there,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os._exit(0)
    ended.add(os.waitpid(child, 0)[1])
print(ended)
"""


def test_sixteen_threads_may_be_the_first_to_read_a_commit() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (0, "{0}\n"), done.stderr
