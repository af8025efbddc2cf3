"""The loop's overhead: seconds a step of `trainer train` from shards, beside a bare PyTorch loop on the same batches made ready beforehand.

The same model, optimizer and clipping, on one thread; ours also reads and decodes 8 pictures of 256 px a step, renders their texts, checks
the loss, writes log.jsonl and tensorboard. A fresh process a run; `python -m tests.bench.loop_overhead ours|bare PLACE STEPS` is one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench.figure import Figure
from tests.bench.readers import DEADLINE, ROOT
from tests.bench.workload import SMALL
from trainer import recipe as recipes
from trainer.recipe import Recipe
from trainer.text import vocabulary

ROUNDS, STEPS, WARM, BATCH, READY = 5, 120, 20, 8, 40
MOST = 50.0  # ms a step of the bare loop


def measure(quick: bool = False) -> Iterator[Figure]:
    """Milliseconds a step."""
    place = replace(SMALL, records=1000 if quick else SMALL.records).folder()
    found: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(1 if quick else ROUNDS):
        for kind, times in found.items():
            times.append(_once(kind, place, 30 if quick else STEPS))
    ours, bare = tuple(found["ours"]), tuple(found["bare"])
    what = f"a step of the trainer fed from shards, {BATCH} pictures of 256 px"
    yield Figure(what, "ms", ours, bare, "bare PyTorch loop, batches ready", 1.03, below=True)
    yield Figure("the step that this is measured at", "ms", bare, (MOST,), "allowed", 1.0, below=True)


def _once(kind: str, place: Path, steps: int) -> float:
    command = [sys.executable, "-m", "tests.bench.loop_overhead", kind, str(place), str(steps)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=DEADLINE)
    return json.loads(done.stdout.splitlines()[-1])


def recipe(folder: Path, place: str, steps: int) -> Recipe:
    """A small LLaVA, new."""
    vocabulary.save(vocabulary.make(["picture 0123456789"] * 3, 300), folder / "tokenizer")
    vision: dict[str, Any] = {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 32}
    text: dict[str, Any] = {"model_type": "llama", "num_key_value_heads": 4, "max_position_embeddings": 128}
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Recipe(
        out=str(folder / "run"),
        steps=steps,
        threads=1,
        tokenizer=recipes.TokenizerChoice(path=str(folder / "tokenizer")),
        vision=recipes.VisionTower(config=vision | sizes, select_layer=-1),
        language=recipes.LanguageModel(config=text | sizes),
        freeze=recipes.Freeze(vision=False),
        checkpoint=recipes.Checkpoint(every=0),
        sources=(recipes.Source(name="photos", shards=place, batch_size=BATCH),),
    )


def ours(chosen: Recipe) -> list[float]:
    """When each step was through."""
    from trainer import assembly, loop
    from trainer.log import RunFolder

    class Timed(RunFolder):
        times: list[float] = []  # noqa: RUF012 - one run a process

        def step(self, line: dict[str, Any]) -> None:
            super().step(line)
            self.times.append(time.perf_counter())

    made = assembly.assemble(chosen)
    with Timed(chosen) as folder:
        loop.train(made, folder)
    return Timed.times


def bare(chosen: Recipe) -> list[float]:
    """The same of a loop that anybody would write."""
    import torch

    from trainer import assembly, loop
    from trainer.data.loader import Loader

    made = assembly.assemble(chosen)
    with Loader(loop.feed(made), made.mixture.start(), stop=READY, workers=0) as loader:
        ready = [step.made[0].batch for step in loader]
    trained = [parameter for parameter in made.model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, lr=chosen.optimizer.lr, weight_decay=chosen.optimizer.weight_decay)
    made.model.train()
    times = []
    for number in range(chosen.steps):
        loss = made.model(ready[number % READY])
        (loss.sums_B.sum() / loss.counts_B.sum()).backward()
        torch.nn.utils.clip_grad_norm_(trained, chosen.optimizer.max_grad_norm)
        adam.step()
        adam.zero_grad()
        times.append(time.perf_counter())
    return times


def per_step(times: Sequence[float]) -> float:
    """Milliseconds, behind the steps in which caches and threads settle."""
    warm = min(WARM, len(times) // 3)
    return 1000 * (times[-1] - times[warm]) / (len(times) - 1 - warm)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(per_step((ours if sys.argv[1] == "ours" else bare)(recipe(Path(name), sys.argv[2], int(sys.argv[3]))))))
