"""The table: what was harmed or killed, how often, and what came of it."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

HARMS = {"traceback": "tracebacks", "hang": "hangs", "crash": "crashes", "lost": "lost", "doubled": "lost"}  # how what is wrong begins


@dataclass
class Row:
    """What became of the files of one kind."""

    verdicts: Counter[str] = field(default_factory=Counter)
    harms: Counter[str] = field(default_factory=Counter)
    peak: int = 0  # bytes


@dataclass
class Rows:
    """Everything so far. wrong: a text for each thing that must not be."""

    harmed: dict[str, Row] = field(default_factory=dict)
    killed: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, case: str, found: dict[str, Any]) -> None:
        """Count a case; what was wrong with it is printed."""
        row = self.harmed.setdefault(found["row"], Row())
        row.verdicts[found["verdict"]] += 1
        row.peak = max(row.peak, found["peak"])
        for text in found["wrong"]:
            row.harms[HARMS.get(text.partition(":")[0], "otherwise wrong")] += 1
            self.wrong.append(f"{case} ({found['row']}): {text}")
            print(self.wrong[-1], file=sys.stderr, flush=True)

    def struck(self, found: dict[str, Any]) -> None:
        """Count a victim's kills."""
        self.killed.append(found)
        self.wrong += [f"{found['row']}: {text}" for text in found["wrong"]]
        print(f"{found['row']}: {found['kills']} kills, {found['wrong'] or 'nothing lost'}", file=sys.stderr, flush=True)

    @property
    def cases(self) -> int:
        """Files that were harmed."""
        return sum(row.verdicts.total() for row in self.harmed.values())


HEAD = """# Storm

`make storm`: {cases:,} harmed files (seed {seed}, {seconds:.0f} s, Python {python}). A case harms one file of a small
whole input or place at random, gives it to the real commands (`pipelines check`, `convert`, `shards check --deep`, `show`, `stats`,
`stream`, `sidecars`, `view --export`, `index`) and to the Python reader, and adds up what came of it by other code.

* **refused**: exit status 2 with one line, or a part that is damaged was named. **rejects**: converted; what could not be is in the ledger
  by reason. **unharmed**: the result of the undisturbed run. **taken**: another result: there is no checksum for what changed.
* **lost**: read is not written + rejected, an item of the input is neither, a record is served twice, altered or not at all, and nobody
  said so. **peak**: megabytes that a case took at most above what the process had before it.

| what was harmed | cases | refused | rejects | unharmed | taken | tracebacks | hangs | crashes | lost | otherwise wrong | peak |
|---|---|---|---|---|---|---|---|---|---|---|---|"""
KILLED = """# Storm: kills

`make storm`: {kills} kills (seed {seed}, {seconds:.0f} s, Python {python}). Killed at random moments, then the same command again until it
is done; its result is compared, byte by byte, with an undisturbed run's.

| what was killed | kills | results compared | records in them | lost | doubled | altered |
|---|---|---|---|---|---|---|"""
VERDICTS = ("refused", "rejects", "unharmed", "taken")
COUNTED = ("tracebacks", "hangs", "crashes", "lost", "otherwise wrong")


def harmed(rows: Rows, seed: int, seconds: float) -> str:
    """The part of FAULTS.md on files that were harmed."""
    lines = [HEAD.format(cases=rows.cases, seed=seed, seconds=seconds, python=platform.python_version())]
    lines += [_line(name, row) for name, row in sorted(rows.harmed.items())]
    return "\n".join([*lines, _line("**all**", _sum(rows)), ""])


def killed(rows: Rows, seed: int, seconds: float) -> str:
    """The part of FAULTS.md on commands that were killed."""
    kills = sum(row["kills"] for row in rows.killed)
    lines = [KILLED.format(kills=kills, seed=seed, seconds=seconds, python=platform.python_version())]
    columns = ("kills", "finished", "records", "lost", "doubled", "altered")
    lines += [f"| {row['row']} | {' | '.join(f'{row[name]:,}' for name in columns)} |" for row in rows.killed]
    total = " | ".join(f"{sum(row[name] for row in rows.killed):,}" for name in columns)
    return "\n".join([*lines, f"| **all** | {total} |", ""])


def _line(name: str, row: Row) -> str:
    numbers = [row.verdicts.total(), *(row.verdicts[verdict] for verdict in VERDICTS), *(row.harms[harm] for harm in COUNTED)]
    return f"| {name} | {' | '.join(f'{number:,}' for number in numbers)} | {row.peak / 1e6:,.0f} |"


def _sum(rows: Rows) -> Row:
    total = Row()
    for row in rows.harmed.values():
        total.verdicts += row.verdicts
        total.harms += row.harms
        total.peak = max(total.peak, row.peak)
    return total
