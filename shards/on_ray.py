"""Ray: an executor whose workers are tasks on the nodes of a cluster. https://docs.ray.io/en/latest/ray-core/walkthrough.html

The cluster is the one that RAY_ADDRESS names, or that `ray start` has started on this machine, or one of this machine alone, started here
and stopped afterwards. Nodes need what this machine has: the same Python, shardweave, pyarrow and Pillow, because bytes depend on them, and
the same paths, or object storage. A worker goes on in the driver's working directory and with its settings for object storage; these travel
as an argument of the task, not as its runtime_env, which Ray logs.

A task that is lost with its node is begun again by Ray. Of a `share`, who has which item is kept by one actor on the driver's node: items
that a lost worker had, and had not done, go to whoever begins in its place; the lost one, should it live, is told that it is not wanted.
"""

from __future__ import annotations

import contextlib
import heapq
import importlib
import logging
import os
import platform
import re
import socket
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from schemas import RequestError
from shards.executor import AHEAD, DIED, KEPT, WATCHED, Counts, Watch, Work
from shards.write import versions

T = TypeVar("T")
R = TypeVar("R")
MEMORY = 512 << 20  # bytes that a worker is given; on the cluster as many work as it has room for
STORE = 100 << 20  # bytes of the object store of a cluster that is started here: a job's plan goes through it, no picture does
ANSWER = 10.0  # seconds for an address to answer
ROOM = 60.0  # seconds without a node that could work
PATIENCE = 60.0  # seconds without an answer from another process of ours
GRACE = 5.0  # seconds for workers to end by themselves
TRIES = 4  # workers that may die with an item
RETRIES = 3  # of a task that gives one result
CLIENT = "ray://"
NO_IMPORT = "failed to import on the worker"
PASSED = ("AWS_", "AZURE_", "GOOGLE_", "SHARDWEAVE_")  # variables


@contextlib.contextmanager
def connected(workers: int | None) -> Iterator[OnRay]:
    """The executor of a cluster. workers: None: one a core. Raises RequestError where there is no cluster, or one of another version."""
    if ray.is_initialized():  # by who calls, and who will end it
        with contextlib.closing(OnRay(workers or _cores())) as found:
            yield found
        return
    _connect(_address(), workers)
    try:
        yield OnRay(workers or _cores())
    finally:
        ray.shutdown()


def _cores() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _address() -> str | None:
    """Of the cluster to work on; None where one is to be started."""
    given = os.environ.get("RAY_ADDRESS", "")
    if given not in ("", "auto", "local"):
        return given
    found = _started() if given != "local" else None
    if given == "auto" and found is None:
        raise RequestError("RAY_ADDRESS auto: expected a cluster that `ray start --head` has started on this machine, found none")
    return found


def _started() -> str | None:
    """The address of the cluster that `ray start` has started on this machine last, if it answers."""
    try:
        found = Path(_home(), "ray_current_cluster").read_text().strip()
    except OSError:
        return None
    return found if found and _answers(found) is None else None


def _home() -> Path:
    """Where Ray keeps what belongs to this machine's clusters."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")  # noqa: S108


def _answers(address: str) -> str | None:
    """Why no cluster is found there; None where one is. `ray.init` itself would ask for ever."""
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if not host or not port.isdecimal():
        return "no HOST:PORT"
    try:
        _greets(host.strip("[]"), int(port))
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error) or "no answer"
    if address.startswith(CLIENT):
        return None
    found: list[str | None] = []
    asking = threading.Thread(target=lambda: found.append(_asks(address)), name="ask", daemon=True)
    asking.start()
    asking.join(3 * ANSWER)
    return found[0] if found else "another service"


def _greets(host: str, port: int) -> None:
    """Raise OSError where no gRPC service listens: one begins with HTTP/2's SETTINGS. https://www.rfc-editor.org/rfc/rfc9113#section-3.4"""
    with socket.create_connection((host, port), ANSWER) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        if os.environ.get("RAY_USE_TLS", "0") == "0" and connection.recv(4)[3:] != b"\x04":
            raise OSError("another service")


def _asks(address: str) -> str | None:
    raylet: Any = importlib.import_module("ray._raylet")
    with contextlib.suppress(ImportError, AttributeError):  # as `ray.init` does, where this user has a token
        tokens: Any = importlib.import_module("ray._private.authentication.authentication_token_setup")
        logging.getLogger(tokens.__name__).setLevel(logging.ERROR)
        tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        raylet.GcsClient(address=address)
    except RayError as error:
        return _said(error)
    return None


def _connect(address: str | None, workers: int | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None and (why := _answers(address)):
        raise RequestError(f"RAY_ADDRESS {address}: expected a Ray cluster that answers within {ANSWER:g} s, found: {why}")
    try:
        if address is None:
            cores = workers or os.cpu_count() or 1
            ray.init("local", num_cpus=cores, object_store_memory=STORE, include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        where = f"RAY_ADDRESS {address}" if address else "ray"
        raise RequestError(f"{where}: expected a cluster of Ray {ray.__version__} and Python {_python()}, found: {_said(error)}") from error


def _said(error: BaseException) -> str:
    """The line of Ray's words that says what it is: of a failed import the last, else the first."""
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if NO_IMPORT in str(error) else 0][:300]


_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


class OnRay:
    """Tasks of one core each."""

    def __init__(self, workers: int) -> None:
        self.workers, self._driver = workers, _driver()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._desk: Any = _Desk.options(scheduling_strategy=here, enable_task_events=False).remote()
        self._desk.seen.remote()  # before its first answer Ray imports what may take half a second: meanwhile others plan

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """See Executor."""
        waiting: deque[Any] = deque()
        room, called = _Room(), ray.put(function)
        try:
            for item in items:
                waiting.append(_call.remote(self._driver, called, item))
                if len(waiting) >= AHEAD * self.workers:
                    yield _result(waiting.popleft(), room)
            while waiting:
                yield _result(waiting.popleft(), room)
        finally:
            for task in waiting:
                ray.cancel(task, force=True)

    def share(self, work: Work, items: int, watch: Watch) -> None:
        """See Executor."""
        desk = self._desk
        _asked(desk.open.remote(items))
        room, called = _Room(), ray.put(work)
        left = [_share.remote(self._driver, desk, worker, called) for worker in range(min(self.workers, items))]
        try:
            while left:
                done, left = ray.wait(left, timeout=WATCHED)
                for task in done:
                    _result(task, room)
                room.check()
                watch(_asked(desk.seen.remote()))
        finally:
            _end(desk, left)

    def close(self) -> None:
        """End what it has begun."""
        ray.kill(self._desk)


def _end(desk: Any, tasks: list[Any]) -> None:
    """Tell workers that nothing is wanted any more, and end those that do not hear it."""
    with contextlib.suppress(RayError, TimeoutError):
        ray.get(desk.close.remote(), timeout=GRACE)
    if tasks:
        _, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=GRACE)
    for task in tasks:
        ray.cancel(task, force=True)


def _result(task: Any, room: _Room) -> Any:
    """What a task gives, as soon as it does. Raises what it raised."""
    while not ray.wait([task], timeout=WATCHED)[0]:
        room.check()
    return _asked(task)


def _asked(task: Any) -> Any:
    try:
        return ray.get(task, timeout=PATIENCE)
    except RayError as error:
        raise _cause(error) from None


def _cause(error: RayError) -> BaseException:
    """What was raised on the node, as it would have been raised here; else what became of the node."""
    if NO_IMPORT in str(error):
        return RequestError(f"a Ray node: expected shardweave {versions()['shardweave']} installed there, found {_said(error)}")
    cause = error.cause if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, Exception) and not isinstance(cause, RayError) else RequestError(f"{DIED}: {_said(error)}")


class _Room:
    """Whether the cluster has a node that could work, now or when others are done."""

    def __init__(self) -> None:
        self._seen = self._looked = time.monotonic()

    def check(self) -> None:
        """Raise RequestError where for ROOM there was none."""
        now = time.monotonic()
        if now - self._looked < 1:
            return
        self._looked = now
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(node.get("CPU", 0) >= 1 and node.get("memory", 0) >= MEMORY for node in nodes):
            self._seen = now
        if now - self._seen > ROOM:
            found = "; ".join(f"{node.get('CPU', 0):g} and {node.get('memory', 0) / 2**20:,.0f} MiB" for node in nodes) or "no node"
            raise RequestError(f"ray: expected within {ROOM:g} s a node of 1 CPU and {MEMORY >> 20} MiB, found {found}")


class _Driver(NamedTuple):
    """What a worker takes over from the driver."""

    versions: dict[str, str]
    folder: str
    variables: dict[str, str]


def _driver() -> _Driver:
    variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    return _Driver(_versions(), os.getcwd(), variables)


def _versions() -> dict[str, str]:
    return {**versions(), "python": _python(), "ray": ray.__version__}


def _begin(driver: _Driver) -> None:
    """A task's first act. Raises RequestError where its bytes could be others than the driver's."""
    for name, expected in driver.versions.items():
        if (found := _versions()[name]) != expected:
            where = f"Ray node {socket.gethostname()}"
            raise RequestError(f"{where}: expected {name} {expected}, as the driver has, found {found}: bytes would differ")
    os.environ.update(driver.variables)
    with contextlib.suppress(OSError):  # then relative paths are missing, by name
        os.chdir(driver.folder)


@ray.remote(num_cpus=1, memory=MEMORY, max_retries=RETRIES)
def _call(driver: _Driver, function: Callable[[T], R], item: T) -> R:
    _begin(driver)
    return function(item)


@ray.remote(num_cpus=1, memory=MEMORY, max_retries=-1)
def _share(driver: _Driver, desk: Any, worker: int, work: Work) -> None:
    _begin(driver)
    with contextlib.closing(_Queue(desk, worker)) as queue:
        work(queue)
        queue.tell()


class Unwanted(Exception):
    """This worker's items were given to another, or the driver is gone."""


class _Queue:
    """The desk, as a worker sees it. When an item is taken, and twice a second, it is told what was done, and says who is still wanted."""

    def __init__(self, desk: Any, worker: int) -> None:
        self._desk, self._name = desk, uuid.uuid4().hex
        self._lock, self._counts, self._done = threading.Lock(), Counter[tuple[int, int]](), list[int]()
        self._stop = threading.Event()
        self._wanted = self._ask(desk.begin.remote(worker, self._name))
        self._beat = threading.Thread(target=self._beats, name="heartbeat", daemon=True)
        self._beat.start()

    def take(self) -> int | None:
        """See Queue. Raises Unwanted."""
        self._check()
        return self._told(self._desk.take)

    def count(self, position: int, read: int, rejected: int, size: int) -> None:
        """See Queue. Raises Unwanted."""
        self._check()
        with self._lock:
            self._counts.update({(position, 0): read, (position, 1): rejected, (position, 2): size})

    def done(self, position: int) -> None:
        """See Queue."""
        with self._lock:
            self._done.append(position)

    def tell(self) -> None:
        """Have the desk know what is done. Raises Unwanted."""
        self._wanted = self._told(self._desk.tell)

    def close(self) -> None:
        """No more beats."""
        self._stop.set()

    def _check(self) -> None:
        if not self._wanted:
            raise Unwanted

    def _beats(self) -> None:
        while self._wanted and not self._stop.wait(WATCHED):
            try:
                self.tell()
            except Unwanted:
                self._wanted = False

    def _told(self, method: Any) -> Any:
        with self._lock:  # calls arrive in the order in which they are made: an item's counts before that it is done
            counts, self._counts = self._counts, Counter()
            done, self._done = self._done, []
            answer = method.remote(self._name, dict(counts), done)
        return self._ask(answer)

    def _ask(self, answer: Any) -> Any:
        try:
            return ray.get(answer, timeout=PATIENCE)
        except RayTaskError as error:
            raise _cause(error) from None
        except RayError as error:
            raise Unwanted("the driver's node does not answer") from error


@ray.remote(num_cpus=0)
class _Desk:
    """Who has which item. A worker goes by the name of its present start, so that one that was given up is known."""

    def __init__(self) -> None:
        self.open(0)

    def open(self, items: int) -> None:
        """Begin with so many items. Whoever worked on others is not wanted any more."""
        self._items, self._next = items, 0
        self._back: list[int] = []  # positions that lost workers had; a heap
        self._taken: dict[int, str] = {}  # position to name
        self._names: dict[int, str] = {}  # of each worker
        self._lost = Counter[int]()  # how often an item's worker was
        self._total, self._counts = Counter[int](), dict[int, Counter[int]]()  # of what is done, of what is taken; by place in Counts
        self._closed = False

    def begin(self, worker: int, name: str) -> bool:
        """A worker begins, maybe in the place of one that was lost. Raises RequestError where too many were, over one item."""
        before, self._names[worker] = self._names.get(worker), name
        for position in [position for position, owner in self._taken.items() if owner == before]:
            del self._taken[position]
            self._counts.pop(position, None)
            self._lost[position] += 1
            if self._lost[position] >= TRIES:
                raise RequestError(f"{DIED} {TRIES} times over item {position}{KEPT}")
            heapq.heappush(self._back, position)
        return not self._closed

    def take(self, name: str, counts: dict[tuple[int, int], int], done: list[int]) -> int | None:
        """A position that nobody has, for this worker, who tells what it did."""
        if not self.tell(name, counts, done):
            return None
        if self._back:
            position = heapq.heappop(self._back)
        elif self._next < self._items:
            position, self._next = self._next, self._next + 1
        else:
            return None
        self._taken[position] = name
        return position

    def tell(self, name: str, counts: dict[tuple[int, int], int], done: list[int]) -> bool:
        """So much more was done by this worker; whether it is wanted. What one that was given up has done is done again."""
        for (position, place), number in counts.items():
            if self._taken.get(position) == name:
                self._counts.setdefault(position, Counter())[place] += number
        for position in done:
            if self._taken.get(position) == name:
                del self._taken[position]
                self._total.update(self._counts.pop(position, Counter()))
                self._total[3] += 1
        return not self._closed and name in self._names.values()

    def seen(self) -> Counts:
        """What is done."""
        total = self._total.copy()
        for counts in self._counts.values():
            total.update(counts)
        return Counts(*(total[place] for place in range(4)))

    def close(self) -> None:
        """Nobody is wanted any more."""
        self._closed = True
