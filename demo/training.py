"""Training: a tokenizer from the texts of the shards, a small model of each family, and whether it looks at its pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.run import Command

RATE = 2e-3  # a small model learns a hundred records by heart: haste is no harm
CLEARLY = 0.5  # the loss with the right picture is at most this share of that with a blank one
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Family:
    """What is trained of it, and on what."""

    name: str
    recipe: str
    run: str  # the folder
    sources: tuple[str, ...]
    shown: tuple[str, ...]  # of these the first record
    settings: tuple[str, ...] = ()


LLAVA = Family(
    "LLaVA",
    "tiny-demo",
    "llava",
    ("llava", "visual_genome", "coco", "grand"),
    ("llava",),
    ("template=v1", "max_tokens=256", "steps=200", f"optimizer.lr={RATE:g}"),
)
FLAMINGO = Family("Flamingo", "demo/flamingo.toml", "flamingo", ("mmc4", "laion"), ("mmc4", "laion"))
FAMILIES = (LLAVA, FLAMINGO)
BATCH = 4  # records of each source in a step


@dataclass(frozen=True)
class Trained:
    """What came of it. Losses are means per trained token; `first` and `last` over the sources of a step."""

    family: Family
    told: dict[str, Any]  # by `trainer train --json`
    log: list[dict[str, Any]]
    run: Path

    @property
    def picture(self) -> float:
        """The loss of the trained pairs with their own pictures."""
        return self.told["blank"]["picture"]

    @property
    def blank(self) -> float:
        """The loss of the same texts with a blank picture."""
        return self.told["blank"]["blank"]

    @property
    def looks(self) -> bool:
        """Whether the model looks."""
        return self.picture <= CLEARLY * self.blank

    def by_source(self, step: int) -> dict[str, float]:
        """Each source's loss in a step."""
        return self.log[step]["loss_by_source"]

    def mean(self, step: int) -> float:
        """Over the sources."""
        losses = self.by_source(step).values()
        return sum(losses) / len(losses)

    def curve(self, width: int = 40) -> str:
        """The loss over the run, as a row of bars."""
        means = [self.mean(step) for step in range(len(self.log))]
        size = -(-len(means) // width)
        cells = [sum(means[at : at + size]) / len(means[at : at + size]) for at in range(0, len(means), size)]
        return "".join(BARS[min(7, int(8 * cell / max(cells)))] for cell in cells)


def tokenizer(places: dict[str, str], out: Path) -> Command:
    """A vocabulary from every text of the shards."""
    return Command("trainer", "tokenizer", "--from", *places.values(), "--vocab", "1000", "--out", out)


def tokens(family: Family, places: dict[str, str], vocabulary: Path) -> Command:
    """What the model sees of the first record of a source or two, and, between ⟦ and ⟧, what it is trained on."""
    sources = [word for name in family.shown for word in ("--source", f"{name}={places[name]}")]
    return Command("trainer", "tokens", family.recipe, *sources, *_settings(family, vocabulary), "--records", "1")


def train(family: Family, places: dict[str, str], vocabulary: Path, run: Path) -> tuple[Command, Trained]:
    """Train the family's recipe on its sources, and compare right with blank pictures on all their records."""
    sources = [word for name in family.sources for word in ("--source", f"{name}={places[name]}")]
    batches = [word for name in family.sources for word in ("--set", f"sources.{name}.batch_size={BATCH}")]
    settings = [*_settings(family, vocabulary), *batches]
    command = Command("trainer", "train", family.recipe, *sources, *settings, "--blank", "100", "--json", "--out", run)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return command, Trained(family, command.json(), log, run)


def _settings(family: Family, vocabulary: Path) -> list[str]:
    return [word for setting in (f"tokenizer.path={vocabulary}", *family.settings) for word in ("--set", setting)]
