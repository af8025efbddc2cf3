"""Trials: what is harmed, what is then done with it by the real commands, and what may come of that.

A trial has a ground, made once: files, and what an undisturbed run makes of them. Each case harms one file, runs the commands, judges, and
puts the file back. `wrong` is what must never be; a verdict says what the commands made of it:

    refused     exit status 2, or a damaged part named: nothing was made of it
    rejects     converted, what could not be in the ledger
    unharmed    the same result as without the harm
    taken       another result, which what is there allows: it has no checksum for what changed
"""

from __future__ import annotations

import json
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

import shards
from pipelines.__main__ import main as pipelines_main
from schemas import RecordError, RequestError, ShardError
from shards.__main__ import main as shards_main
from shards.sample import Sample
from tests.shards.foreign_tars import document, img2dataset, openflamingo
from tests.shards.records import everything, picture, several
from tests.storm import inputs
from tests.storm.accounts import account, items, samples
from tests.storm.mutate import mutated
from tests.storm.told import Told, told

pipelines = partial(told, pipelines_main)
shard = partial(told, shards_main)


class Judged(NamedTuple):
    """What became of a case."""

    row: str  # of the table: what was harmed
    verdict: str
    wrong: list[str]
    detail: str = ""  # the line that was said


class Trial(ABC):
    """A ground in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clean, self.work = root / "clean", root / "work"
        self.clean.mkdir(parents=True)
        self.make()
        self.files = sorted(path.relative_to(self.clean) for path in self.clean.rglob("*") if path.is_file())
        self.there = {path.name for path in [*root.iterdir(), self.work]}

    def case(self, seed: int) -> Judged:
        """Harm one file, by this seed alone, and see."""
        chance = random.Random(seed)
        name = self.chosen(chance)
        data = (self.clean / name).read_bytes()
        harmed = mutated(data, name.suffix, chance)
        shutil.copytree(self.clean, self.work)
        try:
            (self.work / name).write_bytes(harmed)
            found = self.judged(name, chance, changed=harmed != data)
            escaped = {path.name for path in self.root.iterdir()} - self.there
            wrong = [*found.wrong, *(f"escaped: {one}" for one in sorted(escaped))]
            return found._replace(wrong=wrong)
        finally:
            shutil.rmtree(self.work, ignore_errors=True)

    def chosen(self, chance: random.Random) -> Path:
        """Which file is harmed."""
        return chance.choice(self.files)

    @abstractmethod
    def make(self) -> None:
        """Fill `clean`."""

    @abstractmethod
    def judged(self, name: Path, chance: random.Random, *, changed: bool) -> Judged:
        """Run the commands over `work`, where this file is harmed."""


class Conversion(Trial):
    """An input of a source: checked, converted, and what was written is verified."""

    def __init__(self, input: inputs.Input, root: Path) -> None:
        self.input, self.source = input, inputs.source(input)
        super().__init__(root)

    def make(self) -> None:
        self.flags = [flag.replace(str(self.clean), str(self.work)) for flag in self.input(self.clean)]
        shutil.copytree(self.clean, self.work)
        said = pipelines("convert", self.source, *self.flags, "--out", self.root / "undisturbed", "--workers", 1)
        assert said.status in (0, 1), said.err
        self.undisturbed = account(self.root / "undisturbed")
        assert items(self.source, self.flags) == self.undisturbed.totals["read"]
        shutil.rmtree(self.work)
        shutil.rmtree(self.root / "undisturbed")

    def chosen(self, chance: random.Random) -> Path:
        """Annotations twice as often as pictures."""
        annotations = [name for name in self.files if not self._is_picture(name)]
        return chance.choice(annotations if chance.random() < 0.67 else self.files)

    def _is_picture(self, name: Path) -> bool:
        return (
            name.suffix in (".jpg", ".png", ".webp", ".gif", ".tif", ".bmp", ".zip", ".tar")
            and "shard" not in name.name
            and self.source != "laion"
        )

    def judged(self, name: Path, chance: random.Random, *, changed: bool) -> Judged:
        row = f"{self.source}: {'pictures' if self._is_picture(name) else 'annotations'} ({name.suffix[1:]})"
        out = self.root / "out"
        self.there.add("out")
        more = ["--verify", "decode"] if chance.random() < 0.5 else []
        try:
            check = pipelines("check", self.source, *self.flags, "--json")
            convert = pipelines("convert", self.source, *self.flags, *more, "--out", out, "--workers", 1, "--json")
            wrong = [*check.wrong(), *convert.wrong()]
            if wrong or convert.status == 2:
                return Judged(row, "refused", wrong, convert.line())
            return self._accounted(row, name, out, convert, decoded=bool(more))
        finally:
            shutil.rmtree(out, ignore_errors=True)

    @staticmethod
    def _allowed(problem: dict[str, Any], decoded: bool) -> bool:
        """Without --verify decode a picture whose middle is broken is written as it is, and found by `check --deep`."""
        return not decoded and problem["expected"] in ("a picture that decodes", "a map that decodes")

    def _accounted(self, row: str, name: Path, out: Path, convert: Told, *, decoded: bool) -> Judged:
        found = account(out)
        wrong = list(found.wrong())
        expected = items(self.source, self.flags)
        if expected not in (None, found.totals["read"]):
            wrong.append(f"lost: the input has {expected} items, read {found.totals['read']}")
        verdict = shard("check", out, "--deep", "--json", "--workers", 1)
        if verdict.status == 2 or any(not self._allowed(problem, decoded) for problem in json.loads(verdict.out)["problems"]):
            wrong.append(f"what was written is not sound: {verdict.out[:1000]}{verdict.err}")
        if self._is_picture(name) and name.suffix not in (".zip", ".tar"):  # whose names may be what was harmed
            origin = f"{name.stem}."
            for key, record in self.undisturbed.records.items():
                if origin not in record.decode() and found.records.get(key) != record:
                    wrong.append(f"lost: {key}, which has nothing to do with {name}, is {found.rejects.get(key, 'another')}")
        if found.totals["rejected"] > self.undisturbed.totals["rejected"]:
            return Judged(row, "rejects", wrong, convert.line())
        return Judged(row, "unharmed" if found.records == self.undisturbed.records else "taken", wrong)


Served = dict[str, tuple[bytes, ...]]  # key to the hashes of JSON, pictures and maps


def served(sample: Sample) -> tuple[bytes, ...]:
    """All of a record's bytes."""
    record = sample.record
    files = [sample.image(at) for at in range(len(record.images))] + [sample.map(at) for at in range(len(record.maps))]
    return tuple(xxhash.xxh3_128_digest(data) for data in (msgspec.json.encode(record), *files))


class Reading(Trial):
    """A finished place: verified, read through the Python interface, and shown to another command. Records are as written, or named."""

    def make(self) -> None:
        self.place(self.clean)
        self.expected: Served = {sample.key: served(sample) for sample in shards.open(self.clean)}

    def place(self, where: Path) -> None:
        """Make it."""
        shards.write(where, [everything(), *several(13)], shard_bytes=16 << 10)

    def judged(self, name: Path, chance: random.Random, *, changed: bool) -> Judged:
        row = f"{self.what}: {self.kind(name)}"
        deep = ["--deep"] if chance.random() < 0.5 else []
        check = shard("check", self.work, *deep, "--json", "--workers", 1)
        wrong = [*check.wrong(), *self.read()]
        if changed and check.status == 0 and self.covered(name):
            wrong.append(f"check calls it sound though {name} was harmed")
        other = self.other(chance)
        wrong += other.wrong()
        verdict = "refused" if check.status or self.verdict == "refused" else "unharmed"
        return Judged(row, verdict, wrong, other.line() or check.out[:300])

    what = "finished place"
    verdict = "unharmed"  # of the last reading

    def kind(self, name: Path) -> str:
        """What kind of file it is."""
        if name.parts[0] == "_units":
            return "_units/*.json"
        if name.name in ("manifest.json", "run.json", "rejects.parquet", "README.md"):
            return name.name
        return {".tar": "tar", ".parquet": "index"}.get(name.suffix, name.suffix)

    def covered(self, name: Path) -> bool:
        """Whether a hash in the manifest covers it."""
        return self.kind(name) in ("tar", "index", "manifest.json", "rejects.parquet")

    def read(self) -> Iterator[str]:
        """What was wrong with reading all of it, row by row."""
        self.verdict = "unharmed"
        try:
            data = shards.open(self.work)
        except (ShardError, RequestError):
            self.verdict = "refused"
            return
        found: Served = {}
        named = doubled = 0
        with data:
            for part in data.shards:
                for row in range(len(part)):
                    try:
                        sample = part[row]
                        key, content = sample.key, served(sample)
                    except (ShardError, RecordError):
                        named += 1
                        continue
                    doubled += key in found
                    found[key] = content
        altered = [key for key, content in found.items() if self.expected.get(key) != content]
        if altered or doubled or len(found) + named != len(self.expected):
            yield f"lost: {len(self.expected)} written, {len(found)} served ({len(altered)} altered, {doubled} doubled), {named} named"
        if named:
            self.verdict = "refused"

    def other(self, chance: random.Random) -> Told:
        """Some other command that reads the place."""
        key = chance.choice(sorted(self.expected))
        commands: list[tuple[Any, ...]] = [
            ("show", self.work, "--at", chance.randrange(len(self.expected))),
            ("show", self.work, "--key", key, "--json"),
            ("stats", self.work, "--json"),
            ("stats", self.work),
            ("sidecars", self.work, "--for", "energon,wids,dali"),
            ("stream", self.work, "--seconds", "0.01", "--batch-size", 4, "--workers", chance.randrange(3), "--json"),
            ("view", self.work, "--export", self.work / "report.html", "--records", 3),
        ]
        return shard(*chance.choice(commands))


def some_rows(root: Path) -> list[str]:
    """Twelve LLaVA rows, three of which are rejects, and the flags that name them."""
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A picture."}]
    rows: list[Any] = [{"id": n, "image": f"{n}.jpg", "conversations": said} for n in range(12)]
    rows[3]["image"], rows[7], rows[9]["conversations"] = "gone.jpg", {"id": 7}, []
    (root / "images").mkdir(parents=True)
    for n in range(12):
        (root / f"images/{n}.jpg").write_bytes(picture(24, 16, n))
    (root / "rows.json").write_text(json.dumps(rows))
    return ["llava", "--annotations", str(root / "rows.json"), "--images", str(root / "images"), "--max-reject-rate", "1"]


class ReadingConverted(Reading):
    """A place that a conversion has made, with rejects, run.json and commits."""

    what = "converted place"

    def place(self, where: Path) -> None:
        self.flags = some_rows(self.root / "upstream")
        said = pipelines("convert", *self.flags, "--out", where, "--workers", 1)
        assert said.status == 0, said.err

    def other(self, chance: random.Random) -> Told:
        """The conversion again, now and then."""
        if chance.random() < 0.3:
            return pipelines("convert", *self.flags, "--out", self.work, "--workers", 1)
        return super().other(chance)


class GoingOn(ReadingConverted):
    """What a kill in the middle leaves: the same command goes on to the same bytes, says what is wrong, or leaves it to `check` to name."""

    what = "stopped conversion"

    def make(self) -> None:
        super().make()
        self.finished = files(self.clean)
        for name in (
            "manifest.json",
            "README.md",
            "rejects.parquet",
            *(f"_units/{n:06d}.json" for n in (1, 6, 11)),
            "000006-000.tar",
            "000011-000.parquet",
        ):
            (self.clean / name).unlink()
        (self.clean / ".000011-000.tar.4711.part").write_bytes(b"half")

    def judged(self, name: Path, chance: random.Random, *, changed: bool) -> Judged:
        convert = pipelines("convert", *self.flags, "--out", self.work, "--workers", 1)
        wrong, row = list(convert.wrong()), f"{self.what}: {self.kind(name)}"
        if wrong or convert.status != 0:
            return Judged(row, "refused", wrong, convert.line())
        if files(self.work) == self.finished:
            return Judged(row, "unharmed", wrong)
        check = shard("check", self.work, "--json", "--workers", 1)
        if check.status == 0 and files(self.work)["manifest.json"] != self.finished["manifest.json"]:
            wrong.append(f"going on behind a harmed {name} gave another data set, which check calls sound")
        return Judged(row, "refused", [*wrong, *check.wrong()], check.out[:300])


class Indexing(Trial):
    """Tars made elsewhere: indexed, verified, read. A tar is indexed whole, or named."""

    def make(self) -> None:
        self.tars(self.clean)
        self.layout = ["--layout", "auto"]
        shutil.copytree(self.clean, self.work)
        said = shard("index", self.work, "--json", "--workers", 1)
        assert said.status == 0, said.err
        assert samples(self.work) == json.loads((self.work / "manifest.json").read_bytes())["totals"]["read"]
        shutil.rmtree(self.work)

    def tars(self, where: Path) -> None:
        """Make them."""
        img2dataset(where, [3, 2])
        statuses = ["success", "failed_to_download", "success", "success", "failed_to_resize"]
        pq.write_table(pa.table({"key": [str(n) for n in range(5)], "status": statuses}), where / "00000.parquet")

    what = "img2dataset's tars"

    def judged(self, name: Path, chance: random.Random, *, changed: bool) -> Judged:
        row = f"{self.what}: {name.suffix[1:]}"
        index = shard("index", self.work, *self.layout, "--json", "--workers", 1)
        wrong = list(index.wrong())
        if wrong or index.status == 2:
            return Judged(row, "refused", wrong, index.line())
        found = json.loads(index.out)
        totals = json.loads((self.work / "manifest.json").read_bytes())["totals"]
        if totals["read"] != totals["written"] + totals["rejected"]:
            wrong.append(f"lost: {totals}")
        expected = samples(self.work)
        if index.status == 0 and expected is not None and totals["read"] < expected:  # tarfile takes some damage for the end
            wrong.append(f"lost: {expected} samples, {totals['read']} read, and not a word")
        check = shard("check", self.work, "--deep", "--json", "--workers", 1)
        named = {problem["shard"] for problem in found["problems"]}  # what is not indexed is a stranger in the place
        problems = json.loads(check.out)["problems"] if check.status != 2 else [{}]
        if not all(one.get("shard") in named or one.get("expected") == "a picture that decodes" for one in problems):
            wrong.append(f"what was indexed is not sound: {check.out[:1000]}{check.err}")
        number = sum(1 for sample in shards.open(self.work) if served(sample))
        if number != totals["written"]:
            wrong.append(f"lost: {totals['written']} indexed, {number} served")
        if index.status:
            return Judged(row, "refused", wrong, str(found["problems"])[:300])
        return Judged(row, "rejects" if found["rejected"] else "taken", wrong)


class IndexingDocuments(Indexing):
    """OpenFlamingo's MMC4 tars."""

    what = "OpenFlamingo's tars"

    def tars(self, where: Path) -> None:
        openflamingo(
            where / "000.tar", [document(picture(seed=1), picture(seed=2)), document(picture(seed=3)), document(picture(seed=4), None)]
        )
        openflamingo(where / "001.tar", [document(picture(seed=5), matched=[None])])


class ReadingIndexed(Reading):
    """Tars made elsewhere and indexed: harmed afterwards."""

    what = "indexed place"

    def place(self, where: Path) -> None:
        img2dataset(where, [4, 3])
        said = shard("index", where, "--workers", 1)
        assert said.status == 0, said.err

    def kind(self, name: Path) -> str:
        return "rejects.parquet" if name.name == "rejects.parquet" else super().kind(name)


class Recipe(Trial):
    """A recipe is read, or refused in one line."""

    def make(self) -> None:
        from trainer import recipe

        for name in recipe.shipped():
            shutil.copy(recipe.SHIPPED / f"{name}.toml", self.clean)

    def judged(self, name: Path, chance: random.Random, *, changed: bool) -> Judged:
        from trainer import recipe

        try:
            recipe.load(str(self.work / name))
        except RequestError as error:
            wrong = [f"more than a line: {error}"] if len(str(error).splitlines()) > 1 else []
            return Judged("recipe", "refused", wrong, str(error))
        return Judged("recipe", "taken", [])


def files(place: Path) -> dict[str, bytes]:
    """Every file of a place, hidden ones too."""
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


TRIALS = {
    **{input.__name__: partial(Conversion, input) for input in inputs.INPUTS},
    "place": Reading,
    "converted": ReadingConverted,
    "stopped": GoingOn,
    "img2dataset": Indexing,
    "openflamingo": IndexingDocuments,
    "indexed": ReadingIndexed,
    "recipe": Recipe,
}
