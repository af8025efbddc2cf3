"""The storm's short form: some hundred harmed files and some kills, of fixed seeds and of one that nobody knows before."""

from __future__ import annotations

import itertools
import json
import random
import secrets
from pathlib import Path

import pytest

from tests.bench.part import rewrite
from tests.storm.__main__ import TRIALS, cases, harm, kill
from tests.storm.mutate import BLIND, BY_SUFFIX, mutated
from tests.storm.table import Rows, harmed, killed

CASES, KILLS = 10, 8  # of each seed


@pytest.mark.parametrize("seed", [1, None], ids=["fixed", "random"])
def test_whatever_is_harmed_the_commands_say_so_in_a_line_or_lose_nothing(seed: int | None) -> None:
    seed = secrets.randbelow(10**9) if seed is None else seed
    print(f"seed {seed}: python -m tests.storm --kills 0 --mutations {CASES * len(TRIALS)} --seed {seed}")
    rows = Rows()

    harm(itertools.islice(cases(TRIALS, seed), CASES * len(TRIALS)), rows, jobs=2)

    assert rows.wrong == []
    assert rows.cases == CASES * len(TRIALS)
    assert max(row.peak for row in rows.harmed.values()) < 1 << 30
    verdicts = {verdict for row in rows.harmed.values() for verdict in row.verdicts}
    assert verdicts <= {"refused", "rejects", "unharmed", "taken"}


def test_whatever_is_killed_the_same_command_again_loses_and_doubles_nothing() -> None:
    rows, seed = Rows(), secrets.randbelow(10**9)
    print(f"seed {seed}: python -m tests.storm.kills --kills {KILLS} --seed {seed}")

    kill(KILLS, seed, rows, s3=False)

    assert rows.wrong == []
    assert sum(row["kills"] for row in rows.killed) >= KILLS
    assert all(row["finished"] and not row["lost"] and not row["doubled"] and not row["altered"] for row in rows.killed)


def test_a_case_is_the_same_whenever_its_seed_is() -> None:
    data = json.dumps({"images": [{"id": 1}], "annotations": [1.5, "x", None]}).encode() * 20
    for suffix in (".json", ".jpg"):
        harmed = [mutated(data, suffix, random.Random(seed)) for seed in range(50)]
        assert harmed == [mutated(data, suffix, random.Random(seed)) for seed in range(50)]
        assert len(set(harmed)) > 40
    assert all(ways for ways in [BLIND, *BY_SUFFIX.values()])


def test_a_part_of_a_page_is_rewritten_and_the_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "PAGE.md"
    page.write_text("# Faults\n\nold\n")

    rewrite(page, "# Storm\n\none\n")
    rewrite(page, "# Faults\n\nnew\n\n## Details\n")
    rewrite(page, "# Storm\n\ntwo\n\n")

    assert page.read_text() == "# Faults\n\nnew\n\n## Details\n\n# Storm\n\ntwo\n"


def test_the_tables_add_up() -> None:
    rows = Rows()
    for verdict, wrong in (("refused", []), ("rejects", ["lost: 3 of 4"]), ("died", ["hang: no answer"])):
        rows.add("llava:1", {"row": "llava: annotations", "verdict": verdict, "wrong": wrong, "peak": 5_000_000})
    rows.struck({"row": "shards index", "kills": 3, "finished": 1, "records": 20, "lost": 0, "doubled": 0, "altered": 0, "wrong": []})

    assert "| llava: annotations | 3 | 1 | 1 | 0 | 0 | 0 | 1 | 0 | 1 | 0 | 5 |" in harmed(rows, 7, 12.0)
    assert "| **all** | 3 | 1 | 20 | 0 | 0 | 0 |" in killed(rows, 7, 12.0)
    assert len(rows.wrong) == 2
