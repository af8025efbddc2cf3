"""python -m demo: photographs to six upstream trees, to validated shards, to a small model that looks at its pictures.

With --s3 the shards are written to, checked in and trained from a real S3 service, which the demo starts and stops.

Every step is a command that a person could type, and is printed as one. What was broken on purpose is counted by hand beforehand
(`PLANTED` in demo/trees/*.py); the demo ends with status 1 where shardweave counts anything else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import account, photos, training
from demo.run import ROOT, Command, DemoError
from demo.training import Trained
from demo.trees import TREES, Tree
from tests import ceph

MARK = ".shardweave-demo"  # what is in a folder that may be deleted
REJECTS = "0.3"  # a demo plants more broken inputs than a data set has: 0.05 is the default
BEGINS = 0.8  # of the loss with a blank picture
SHOWN = {"coco": 0, "visual_genome": 1, "mmc4": 1, "laion": 0, "llava": 18, "grand": 1}  # a record worth a look


@dataclass(frozen=True)
class Source:
    """A source's way through the commands: what to print, and its manifest."""

    section: str
    manifest: dict[str, Any]


class Clock:
    """How long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=(__doc__ or "").split(": ", 1)[1].splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="FOLDER", help="made anew (default: demo-out)")
    parser.add_argument("--s3", action="store_true", help="keep the shards in an S3 service on this machine, and train from there")
    options = parser.parse_args()
    try:
        with _shelf(options.out.resolve(), options.s3) as shelf:
            tell(options.out.resolve(), shelf)
    except (DemoError, FileNotFoundError) as error:
        print(f"\nThe demo stopped: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _shelf(out: Path, s3: bool) -> Iterator[str]:
    """Where the shards go: an empty folder of `out`, or a bucket of a service that is up as long as this lasts."""
    _fresh(out)
    if not s3:
        yield str(out / "shards")
    elif reason := ceph.missing():
        raise DemoError(reason)
    else:
        with ceph.running() as service:
            os.environ.update({**service.environment, "SHARDWEAVE_CACHE": str(out / "cache")})
            yield service.bucket()


def tell(out: Path, shelf: str) -> None:
    """The story. Raises DemoError where it does not go as it has to."""
    began, clock = time.monotonic(), Clock()
    with clock.step("trees"):
        trees = plant(out / "upstream")
    places = {name: f"{shelf}/{name}" for name in trees}
    with clock.step("shards"):
        manifests = convert(trees, places)
    with clock.step("training"):
        trained = train(places, out)
    if places["coco"].startswith("s3://"):
        print(_streamed(places["coco"]))
    with clock.step("reports"):
        report(trees, places, trained, out / "reports")
    _print_summary(out, places, manifests, trained, clock, time.monotonic() - began)
    for model in trained:
        if not model.looks:
            expected = f"at most {training.CLEARLY:g} of the loss with a blank picture"
            raise DemoError(f"{model.family.name} does not look at its pictures: expected {expected}, found {_looking(model)}")


def plant(folder: Path) -> dict[str, Tree]:
    """Step 1: the upstream trees."""
    deck = photos.Deck()
    print(_heading(1, f"{len(photos.PHOTOS)} photographs, {len(deck)} views, six upstream trees"))
    trees = {}
    for name, module in TREES.items():
        trees[name] = module.write(folder / name, deck)
        sizes = [path.stat().st_size for path in trees[name].folder.rglob("*") if path.is_file()]
        print(f"  {name:<15}{len(sizes):>4} files, {sum(sizes) / 1e3:>5.0f} kB")
        broken = [f"{reason} {number}" for reason, number in module.PLANTED.rejected.items()]
        print("\n".join(_wrapped("      broken on purpose: ", broken)))
    return trees


def convert(trees: dict[str, Tree], places: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Step 2: each tree through check, convert, check, show and stats; two at a time, printed in order."""
    print(_heading(2, "from upstream files to validated shards"))
    print("  What stands behind → is --json in a sentence; the rest is printed as it came.")
    manifests = {}
    with ThreadPoolExecutor(max_workers=2) as pool:
        ways: dict[str, Future[Source]] = {name: pool.submit(_way, tree, places[name]) for name, tree in trees.items()}
        try:
            for name, way in ways.items():
                print(f"\n{way.result().section}", flush=True)
                manifests[name] = way.result().manifest
        finally:
            pool.shutdown(cancel_futures=True)
    return manifests


def _way(tree: Tree, place: str) -> Source:
    """One source. Raises DemoError where a command fails or counts anything but what was planted."""
    name, planted = tree.source, TREES[tree.source].PLANTED
    rate = ("--max-reject-rate", REJECTS)
    before = Command("pipelines", "check", name, *tree.flags(), *rate, "--json")
    account.checked(name, before.json(), planted)
    made = Command("pipelines", "convert", name, *tree.flags(), *rate, "--workers", "1", "--out", place)
    manifest = account.converted(name, place, planted)
    deep = Command("shards", "check", place, "--deep", "--workers", "1", "--json")
    account.verified(name, deep.json(), planted)
    record = Command("shards", "show", place, "--at", str(SHOWN[name]))
    numbers = Command("shards", "stats", place)
    shown = [
        f"  {name}: {(TREES[name].__doc__ or '').splitlines()[0].split(': ', 1)[1]}",
        before.shown(text=_counted(before.json())),
        made.shown(lines=14),
        deep.shown(text=_sound(deep.json())),
        record.shown(lines=14),
        numbers.shown(lines=14, text=_spreads(numbers.stdout)),
    ]
    return Source("\n".join(shown), manifest)


def train(places: dict[str, str], out: Path) -> list[Trained]:
    """Step 3: a tokenizer, what is trained on, and a model of each family, both at once."""
    print(_heading(3, "from shards to models that look"))
    made = training.tokenizer(places, out / "tokenizer")
    print(made.shown())
    print("  What a model sees of a record; what it is trained on stands between ⟦ and ⟧:")
    for family in training.FAMILIES:
        print(training.tokens(family, places, out / "tokenizer").shown(lines=7), flush=True)
    with ThreadPoolExecutor(max_workers=len(training.FAMILIES)) as pool:
        runs = [pool.submit(training.train, family, places, out / "tokenizer", out / family.run) for family in training.FAMILIES]
        done = [run.result() for run in runs]
    for command, trained in done:
        told = trained.told
        print(command.shown(text=f"→ {told['steps']} steps in {told['seconds']:.0f} s; {_looking(trained)}"))
    return [trained for _, trained in done]


def report(trees: dict[str, Tree], places: dict[str, str], trained: list[Trained], folder: Path) -> None:
    """A page of each source that stands alone: its records, its rejects and what stood there, its numbers, the run."""
    folder.mkdir()

    def write(name: str) -> None:
        run = next(model.run for model in trained if name in model.family.sources)
        options = ("--export", folder / f"{name}.html", "--run", run, "--upstream", trees[name].folder)
        Command("shards", "view", places[name], *options)

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(write, places))


def _fresh(out: Path) -> None:
    """An empty folder. Raises DemoError rather than delete what no demo made."""
    if out.exists() and not (out.is_dir() and ((out / MARK).exists() or not any(out.iterdir()))):
        raise DemoError(f"--out {out}: expected a new or empty folder, or one that a demo made, found other files")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()


def _counted(found: dict[str, Any]) -> str:
    images = found["images"]
    there = f"{images['present']} there, {images['missing']} missing, {images['other_suffix']} under another suffix"
    return f"""→ {found["records"]} records refer to {images["distinct"]} images, {found["image_references"]} times: {there};
  {found["unreferenced_files"]} file that nobody refers to. All as planted"""


def _sound(found: dict[str, Any]) -> str:
    return f"→ sound: {found['records']} records, {found['images']} pictures, every byte hashed, every picture decoded"


def _spreads(printed: str) -> str:
    """The statistics without what `convert` said just before."""
    first, size, *rest = printed.splitlines()
    kept = [line for line in rest if not line.startswith(("  rejected ", "  images dropped ", "  regions dropped "))]
    return "\n".join([f"{first}; {size}", *kept])


def _looking(trained: Trained) -> str:
    return f"loss {trained.picture:.3f} with the right picture, {trained.blank:.3f} with a blank one"


def _streamed(place: str) -> str:
    """How fast the store gives records, the cache empty."""
    shutil.rmtree(os.environ["SHARDWEAVE_CACHE"], ignore_errors=True)
    return Command("shards", "stream", place, "--batch-size", "8", "--workers", "2", "--seconds", "2").shown()


def _print_summary(
    out: Path, places: dict[str, str], manifests: dict[str, dict[str, Any]], trained: list[Trained], clock: Clock, seconds: float
) -> None:
    print(_heading(4, "what happened"))
    print("\n".join(_table(manifests)))
    models = "\n".join(_model(model) for model in trained)
    print(f"""
  Every count above is what was planted, for every reason; every picture in the shards was decoded again.

  Two models learned them by heart. The loss per trained token, from the first step to the last; and does it look?
  The records with pictures again, once with their own and once with a blank one:
{models}
  {", ".join(f"{name} {spent:.0f} s" for name, spent in clock.seconds.items())}; {seconds:.0f} s in all.

  Look next at
    {_short(out / "reports")}/             a page of each source for the browser: records, rejects, numbers, the run
    {_short(out / "upstream")}/            six data sets as their makers lay them out; the broken files are among them
    {_short(out / "llava")}/ {_short(out / "flamingo")}/     log.jsonl, the recipe as it was run, the trained weights
{_shards_to_look_at(places)}
""")


def _model(trained: Trained) -> str:
    last, told = len(trained.log) - 1, trained.told["blank"]
    return f"""
    {trained.family.name}, {len(trained.log)} steps over {", ".join(trained.family.sources)}
      {trained.mean(0):.2f} {trained.curve()} {trained.mean(last):.2f}
      right picture  {_bar(trained.picture, trained.blank)} {trained.picture:.3f}
      blank picture  {_bar(trained.blank, trained.blank)} {trained.blank:.3f}   {_verdict(trained)} ({told["records"]} records)
"""


def _shards_to_look_at(places: dict[str, str]) -> str:
    if places["coco"].startswith("s3://"):
        return "  The shards were in a bucket, which went with the demo; python -m demo leaves them in a folder."
    return f"""    {_short(places["coco"])}/         tars, indexes, rejects.parquet, manifest.json and a dataset card
    {_short(Path(sys.executable))} -m shards show {_short(places["grand"])}"""


def _table(manifests: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield f"  {'source':<15}{'read':>6} = {'written':>7} + {'rejected':>8}{'pictures':>10}{'dropped or mended in kept records':>37}"
    names = ("read", "written", "rejected", "images")
    for name, manifest in manifests.items():
        yield _line(name, [*(manifest["totals"][what] for what in names), sum(_inside(manifest).values())])
    totals = [sum(manifest["totals"][what] for manifest in manifests.values()) for what in names]
    inside = sum(map(_inside, manifests.values()), Counter())
    yield _line("together", [*totals, inside.total()])
    yield ""
    yield from _wrapped("  rejected: ", _counts(sum((Counter(manifest["rejected"]) for manifest in manifests.values()), Counter())))
    yield from _wrapped("  in kept records: ", _counts(inside))


def _line(name: str, numbers: list[int]) -> str:
    read, written, rejected, images, inside = numbers
    return f"  {name:<15}{read:>6} = {written:>7} + {rejected:>8}{images:>10}{inside:>37}"


def _inside(manifest: dict[str, Any]) -> Counter[str]:
    """What happened inside kept records, by family; notes are none of it."""
    families = {name: value for name, value in manifest.items() if isinstance(value, dict) and name not in {*account.OTHER, "notes"}}
    return Counter({name.replace("_", " "): sum(reasons.values()) for name, reasons in families.items() if reasons})


def _counts(counter: Counter[str]) -> list[str]:
    return [f"{reason} {number}" for reason, number in sorted(counter.items(), key=lambda item: (-item[1], item[0]))]


def _wrapped(title: str, words: list[str], wide: int = 110) -> Iterator[str]:
    line = title
    for number, word in enumerate(words, 1):
        if len(line) + len(word) > wide:
            yield line.rstrip()
            line = " " * len(title)
        line += word + (", " if number < len(words) else "")
    yield line


def _bar(value: float, most: float, width: int = 40) -> str:
    return ("█" * max(1, round(width * value / most))).ljust(width)


def _verdict(trained: Trained) -> str:
    if trained.looks:
        return "It looks."
    return "It begins to look." if trained.picture <= BEGINS * trained.blank else "It hardly looks."


def _heading(number: int, title: str) -> str:
    return f"\n{number}. {title[:1].upper()}{title[1:]}\n{'─' * 118}"


def _short(path: Path | str) -> str:
    """As it can be typed in the repository."""
    return str(path).removeprefix(f"{ROOT}{os.sep}")


if __name__ == "__main__":
    sys.exit(main())
