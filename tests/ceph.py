"""A real S3 service for tests: one Ceph monitor, one in-memory OSD, the RADOS gateway, on free ports of the loopback address.

The daemons are children of this process and die with it, however it ends; what a killed run leaves is a folder in the temporary
directory. The gateway hangs without cephx keys; no manager daemon is needed; a bucket's name has at least 3 characters.
https://docs.ceph.com/en/latest/install/manual-deployment/
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import hmac
import http.client
import itertools
import os
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool", "setpriv")
PACKAGES = "ceph-mon ceph-osd radosgw ceph-common"
KEY, SECRET = "testkey", "testsecret-9f2c"
START = 90  # seconds
_numbers = itertools.count()


@dataclass
class S3:
    """A running service. Buckets are new ones, so tests do not meet."""

    endpoint: str
    key: str = KEY
    secret: str = SECRET
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": "us-east-1"}
        self.environment["AWS_ENDPOINT_URL"] = self.endpoint

    def bucket(self) -> str:
        """The URL of a new, empty bucket."""
        name = f"test-{os.getpid()}-{next(_numbers)}"
        status, said = self.request("PUT", f"/{name}")
        assert status == 200, said
        return f"s3://{name}"

    def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the answer to a request signed by hand: no client of the project has a part in it.

        https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
        """
        host = self.endpoint.removeprefix("http://")
        path, _, query = path.partition("?")
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        headers = {"host": host, "x-amz-content-sha256": hashlib.sha256(body).hexdigest(), "x-amz-date": now}
        signed = ";".join(sorted(headers))
        lines = [method, path, query, *(f"{name}:{headers[name]}" for name in sorted(headers)), "", signed, headers["x-amz-content-sha256"]]
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256("\n".join(lines).encode()).hexdigest()])
        key = b"AWS4" + self.secret.encode()
        for part in (*scope.split("/"), text):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders={signed}, Signature={key.hex()}"
        connection = http.client.HTTPConnection(host, timeout=60)
        try:
            connection.request(method, path + (f"?{query}" if query else ""), body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def missing() -> str:
    """Why there can be no service here; nothing where there can."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"no S3 service: {', '.join(lacking)} not installed (Debian: {PACKAGES})" if lacking else ""


@contextlib.contextmanager
def running() -> Iterator[S3]:
    """A service, up when this begins and gone when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="shardweave-ceph-"))
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        yield _started(folder, daemons)
    finally:
        for daemon in daemons:
            daemon.kill()
        for daemon in daemons:
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _started(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> S3:
    ports = _free_ports(3)
    cluster, osd = str(uuid.uuid4()), str(uuid.uuid4())
    _configure(folder, cluster, *ports)
    tools = _Tools(folder, daemons)
    address = f"[v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]"
    tools.run("monmaptool", "--create", "--clobber", "--fsid", cluster, "--addv", "a", address, f"{folder}/monmap")
    tools.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", f"{folder}/monmap", "--mon-data", f"{folder}/mon")
    tools.start("ceph-mon", "-f", "-i", "a")
    tools.run("ceph", "osd", "new", osd)
    tools.run("ceph", "auth", "import", "-i", f"{folder}/keyring")
    tools.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    tools.start("ceph-osd", "-f", "-i", "0")
    tools.start("radosgw", "-f", "-n", "client.rgw")
    tools.run(
        *("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=test", "--display-name=test", "--max-buckets=100000"),
        *(f"--access-key={KEY}", f"--secret-key={SECRET}"),
    )
    tools.wait_for(ports[2])
    return S3(f"http://127.0.0.1:{ports[2]}")


def _configure(folder: Path, cluster: str, v2: int, v1: int, gateway: int) -> None:
    for name in ("mon", "osd0", "log", "run"):
        (folder / name).mkdir()
    low = 20000 + secrets.randbelow(10000)  # each daemon takes some ports of this range
    (folder / "ceph.conf").write_text(f"""[global]
fsid = {cluster}
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind port min = {low}
ms bind port max = {low + 500}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
osd objectstore = memstore
memstore device bytes = 4294967296
admin socket = {folder}/run/$name.$pid.asok
pid file = {folder}/run/$name.pid
log file = {folder}/log/$name.log
mon data = {folder}/mon
osd data = {folder}/osd0
keyring = {folder}/keyring
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1
rgw thread pool size = 64
""")
    everything = {"mon": "allow *", "osd": "allow *", "mgr": "allow *"}
    caps = {
        "mon.": {"mon": "allow *"},
        "client.admin": everything,
        "client.rgw": everything,
        "osd.0": {"mon": "allow profile osd", "osd": "allow *", "mgr": "allow profile osd"},
    }
    sections = (
        f"[{name}]\n\tkey = {_cephx_key()}\n" + "".join(f'\tcaps {daemon} = "{text}"\n' for daemon, text in granted.items())
        for name, granted in caps.items()
    )
    (folder / "keyring").write_text("".join(sections))


def _cephx_key() -> str:
    """A key as ceph-authtool makes it: type 1 (AES), time of creation, length, 16 bytes."""
    return base64.b64encode(struct.pack("<HIIH", 1, int(time.time()), 0, 16) + secrets.token_bytes(16)).decode()


class _Tools:
    """Runs Ceph's programs, and tells of those that fail."""

    def __init__(self, folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
        self.folder, self.daemons = folder, daemons
        self.environment = {**os.environ, "CEPH_CONF": str(folder / "ceph.conf")}

    def run(self, *command: str) -> None:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=START, cwd=self.folder)
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"

    def start(self, *command: str) -> None:
        with (self.folder / "log" / "output").open("ab") as log:
            mortal = ("setpriv", "--pdeathsig", "KILL", *command)
            daemon = subprocess.Popen(mortal, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)
        self.daemons.append(daemon)

    def wait_for(self, port: int) -> None:
        """Until the gateway answers. Fails where a daemon has ended, or it takes too long."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline and all(daemon.poll() is None for daemon in self.daemons):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.05)
        raise AssertionError(f"the S3 service did not come up:\n{(self.folder / 'log' / 'output').read_text()[-4000:]}")


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
