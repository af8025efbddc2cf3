"""Tars made elsewhere as a source, read through webdataset, in its order: `kind = "webdataset"`. https://github.com/webdataset/webdataset

    [[sources]]
    name = "laion"
    kind = "webdataset"
    shards = "/data/laion/{00000..00999}.tar"     # braces, globs, several joined by ::, also s3://
    layout = "img2dataset"                        # or openflamingo-mmc4; left out: seen from the first sample

Tars are permuted by the seed, anew each epoch, and dealt out to the ranks; records come as they lie in the tar. There is no random access,
so a draw's number says nothing but that one more record is wanted, and resuming is approximate: as many records are passed over as were
drawn, which are others where the number of ranks has changed. `python -m shards index PLACE` makes a place of the same tars that resumes
exactly.

webdataset takes a damaged header for the end of a tar. Here the headers are walked first, and what it does not give is named.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import itertools
import logging
import mmap
import re
import tarfile
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from schemas import Record, RecordError, Reject, RequestError, ShardError, validate
from shards import foreign_tar, layouts
from shards.foreign_tar import TarDamage
from shards.place import Place, at
from shards.sink import Buffer

log = logging.getLogger(__name__)
Error = RecordError | ShardError


@dataclass(frozen=True)
class WebdatasetSample:
    """A record and its pictures: what a data set's own samples have, as far as such tars have it."""

    record: Record
    files: Sequence[Buffer]

    @property
    def key(self) -> str:
        """TAR-SAMPLE, by position in the sorted list of tars and in the tar: what `python -m shards index` calls it, too."""
        return self.record.key

    def image(self, position: int) -> Buffer:
        """The bytes of the record's image at this position."""
        return self.files[position]


class Tar(NamedTuple):
    """One of the tars, and its position in the list."""

    place: Place
    name: str
    number: int


class WebdatasetSource:
    """An endless sequence of records: a rank's part of the tars, epoch after epoch."""

    def __init__(self, name: str, pattern: str, *, seed: int = 0, part: int = 0, parts: int = 1, layout: str | None = None) -> None:
        """part, parts: which share of the tars is this rank's (or this worker's of this rank).

        Raises RequestError: webdataset is not installed, no such tars, an unknown layout, fewer tars than parts.
        """
        self.name, self.seed, self.part, self.parts, self.layout = name, seed, part, parts, layout
        self._webdataset = _webdataset()
        if layout is not None and layout not in layouts.names():
            raise RequestError(f"sources.{name}.layout: expected one of {', '.join(layouts.names())}, found {layout!r}")
        self.tars = tars(pattern)
        if len(self.tars) < parts:
            raise RequestError(f"sources.{name}: expected at least a tar for each of {parts} ranks, found {len(self.tars)} in {pattern}")
        self._lock = threading.Lock()  # one sequence, whichever thread asks
        self._records = self._endless(0)

    def fetch(self, draws: Sequence[int]) -> list[WebdatasetSample | Error]:
        """The next records, as many as there are draws; an error in the place of each that could not be read."""
        with self._lock:
            return [next(self._records) for _ in draws]

    def resume(self, drawn: int) -> None:
        """Go on where this many records of all ranks have been drawn: whole tars are passed over by their headers alone."""
        if drawn:
            log.warning(
                "%s: resumes at record %d, approximately: index its tars for an exact resume (python -m shards index)", self.name, drawn
            )
            with self._lock:
                self._records = self._endless(drawn // self.parts)

    def _endless(self, skip: int) -> Iterator[WebdatasetSample | Error]:
        epoch = 0
        while True:
            served = 0
            for tar in self._order(epoch):
                with _opened(tar) as path:
                    found = _walk(path)
                    number = found.samples + (found.damage is not None)
                    if skip < number:
                        yield from self._read(tar, path, found, skip)
                    served, skip = served + found.samples, max(0, skip - number)
            if not served:
                raise RequestError(
                    f"sources.{self.name}: expected records in {len(self.tars)} tars, found none in those of part {self.part}"
                )
            epoch += 1

    def _order(self, epoch: int) -> list[Tar]:
        """This part's tars in this epoch: the permutation is the same on all ranks, and every tar is one rank's."""
        words = [self.seed, zlib.crc32(self.name.encode()), epoch]
        drawn = np.random.Philox(np.random.SeedSequence(words)).random_raw(len(self.tars))
        return [self.tars[number] for number in np.argsort(drawn, kind="stable")[self.part :: self.parts]]

    def _read(self, tar: Tar, path: Path, found: _Walk, skip: int) -> Iterator[WebdatasetSample | Error]:
        """The tar's records behind the first `skip`; last of all, what webdataset has left out."""
        given, stopped = 0, ""
        try:
            with path.open("rb") as file:
                for members in itertools.islice(self._samples(file, tar.name), found.samples):  # a cut tar gives half a sample, too
                    if given >= skip:
                        yield self._sample(tar, given, members)
                    given += 1
        except (ValueError, tarfile.TarError, EOFError, OSError) as error:
            stopped = f" ({type(error).__name__}: {error})"[:200]
        if found.damage is not None or given != found.samples:
            expected = found.damage.expected if found.damage else f"{found.samples} samples"
            yield ShardError(
                f"{tar.place.url}/{tar.name}", None, "tar damaged", expected, f"{given} whole samples through webdataset{stopped}"
            )

    def _samples(self, file: Any, name: str) -> Iterator[dict[str, Any]]:
        files = self._webdataset.tar_file_expander([{"url": name, "stream": file}])
        return iter(self._webdataset.group_by_keys(files))

    def _sample(self, tar: Tar, row: int, sample: dict[str, Any]) -> WebdatasetSample | Error:
        members = {suffix: data for suffix, data in sample.items() if not suffix.startswith("__")}
        try:
            self.layout = self.layout or self._seen(members)
            made = layouts.read(self.layout, f"{tar.number:06d}-{row:08d}", sample["__key__"], members)
            validate(made.record)
            return WebdatasetSample(made.record, made.files)
        except RecordError as error:
            return error
        except Reject as reject:
            return RecordError(reject.reason, f"{tar.name} {sample['__key__'][:100]}: {reject.detail}")

    def _seen(self, members: layouts.Members) -> str:
        for layout in layouts.names():
            if layouts.find(layout).known(members):
                return layout
        known = ", ".join(layouts.names())
        raise RequestError(f"sources.{self.name}.layout: expected {known}, found a sample of {', '.join(sorted(members))[:200]}")


def _webdataset() -> Any:
    try:
        return importlib.import_module("webdataset.tariterators")
    except ImportError as error:
        raise RequestError('kind = "webdataset": expected the package webdataset, found none: pip install webdataset') from error


def tars(pattern: str) -> list[Tar]:
    """The tars that a pattern names, sorted: braces as webdataset expands them, then globs.

    Raises RequestError where one is named that is not there, a glob matches none, or the pattern would run a command.
    """
    if pattern.startswith("pipe:"):
        raise RequestError(f"{pattern[:80]}: expected tars, found a command: give s3:// itself")
    expand = cast(Callable[[str], Iterator[str]], importlib.import_module("braceexpand").braceexpand)  # a requirement of webdataset
    urls = dict.fromkeys(url for one in pattern.split("::") for url in expand(one))
    found = [(folder, name) for url in urls for folder, name in _matching(url)]
    places = {folder: at(folder) for folder, _ in found}
    return [Tar(places[folder], name, number) for number, (folder, name) in enumerate(sorted(set(found)))]


def _matching(url: str) -> list[tuple[str, str]]:
    folder, _, name = url.rpartition("/")
    folder = folder or "."
    place = at(folder)
    try:
        if not set(name) & set("*?["):
            place.size(name)
            return [(folder, name)]
        literal = re.split(r"[*?\[]", name)[0]
        found = [(folder, other) for other, _ in place.names(literal) if "/" not in other and fnmatch.fnmatchcase(other, name)]
    except FileNotFoundError:
        found = []
    if not found:
        raise RequestError(f"{url}: expected a tar, found nothing")
    return found


@contextlib.contextmanager
def _opened(tar: Tar) -> Iterator[Path]:
    """The tar as a local file; of an object store a temporary one."""
    if tar.place.folder is not None:
        yield tar.place.folder / tar.name
        return
    with tempfile.NamedTemporaryFile(prefix="shardweave-") as file:
        for piece in tar.place.stream(tar.name):
            file.write(piece)
        file.flush()
        yield Path(file.name)


class _Walk(NamedTuple):
    """What a tar's headers say."""

    samples: int
    damage: TarDamage | None


def _walk(path: Path) -> _Walk:
    samples = 0
    try:
        with path.open("rb") as file, contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as mapped:
            for _ in foreign_tar.samples(mapped, Counter()):
                samples += 1
    except TarDamage as damage:
        return _Walk(samples, damage)
    except (OSError, ValueError) as error:
        return _Walk(samples, TarDamage(0, "a readable tar", str(error)))
    return _Walk(samples, None)
