"""Training: a tokenizer from the shards' texts, a small model on the mixture of all six, and whether it looks at the pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.run import Command

STEPS = 200
RATE = 2e-3  # a small model learns a hundred records by heart: haste is no harm
BATCH = 4  # records of each source in a step
CLEARLY = 0.5  # the loss with the right picture is at most this share of that with a blank one
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Trained:
    """What came of it. Losses are means per trained token; `first` and `last` over the sources of a step."""

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
        size = max(1, len(means) // width)
        cells = [sum(means[at : at + size]) / len(means[at : at + size]) for at in range(0, len(means), size)]
        return "".join(BARS[min(7, int(8 * cell / max(cells)))] for cell in cells)


def tokenizer(places: dict[str, str], out: Path) -> Command:
    """A vocabulary from every text of the shards."""
    return Command("trainer", "tokenizer", "--from", *places.values(), "--vocab", "1000", "--out", out)


def tokens(source: str, place: str, vocabulary: Path) -> Command:
    """What the model sees of a source's first record, and, between ⟦ and ⟧, what it is trained on."""
    return Command("trainer", "tokens", "tiny-demo", "--source", f"{source}={place}", *_settings(vocabulary), "--records", "1")


def train(places: dict[str, str], vocabulary: Path, run: Path) -> tuple[Command, Trained]:
    """Train the shipped recipe on all the places, and compare right with blank pictures on all their records."""
    sources = [word for name, place in places.items() for word in ("--source", f"{name}={place}")]
    batches = [word for name in places for word in ("--set", f"sources.{name}.batch_size={BATCH}")]
    settings = [*_settings(vocabulary), "--set", f"steps={STEPS}", "--set", f"optimizer.lr={RATE:g}", *batches]
    command = Command("trainer", "train", "tiny-demo", *sources, *settings, "--blank", "100", "--json", "--out", run)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return command, Trained(command.json(), log, run)


def _settings(vocabulary: Path) -> list[str]:
    return ["--set", f"tokenizer.path={vocabulary}", "--set", "template=v1", "--set", "max_tokens=256"]
