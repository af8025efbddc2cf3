"""The loop's overhead: seconds a step of `trainer train` from shards, beside a bare PyTorch loop on the same batches made ready beforehand.

The same model, optimizer and clipping, on one thread; ours also reads and decodes pictures of 256 px, renders their texts, checks the loss,
writes log.jsonl and tensorboard. Both take turns of ten steps in one process, because the machine is not as fast in every second; the first
steps of a turn, which find batches ready or the loader's threads at work, do not count.

`python -m tests.bench.loop_overhead PLACE PICTURES TURNS` is one process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench.figure import Figure
from tests.bench.readers import DEADLINE, ROOT
from tests.bench.workload import SMALL
from trainer import recipe as recipes
from trainer.recipe import Recipe
from trainer.text import vocabulary

TURN, LEFT_OUT, TURNS, READY = 10, 3, 60, 40  # steps, and turns of each
PICTURES = {1: "20 pictures a second, more than a 7B model takes on one GPU", 8: "the second core decodes most of the time"}  # a step
MOST = 50.0  # ms a step of the bare loop


def measure(quick: bool = False) -> Iterator[Figure]:
    """Milliseconds a step."""
    place = replace(SMALL, records=1000 if quick else SMALL.records).folder()
    for pictures, note in PICTURES.items():
        ours, bare = _process(place, pictures, 2 if quick else TURNS)
        what = f"a step of the trainer fed from shards, pictures of 256 px in it: {pictures} ({note})"
        yield Figure(what, "ms", ours, bare, "bare PyTorch loop, batches ready", 1.03, below=True, in_turns=True)
        yield Figure(f"the step that this is measured at, {pictures} in it", "ms", bare, (MOST,), "allowed", 1.0, below=True)


def _process(place: Path, pictures: int, turns: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    command = [sys.executable, "-m", "tests.bench.loop_overhead", str(place), str(pictures), str(turns)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=DEADLINE)
    found = json.loads(done.stdout.splitlines()[-1])
    return tuple(found["ours"]), tuple(found["bare"])


def recipe(folder: Path, place: str, pictures: int, steps: int) -> Recipe:
    """A small LLaVA, new: the fewer pictures, the larger."""
    vocabulary.save(vocabulary.make(["picture 0123456789"] * 3, 300), folder / "tokenizer")
    width, layers = (96, 1) if pictures > 1 else (192, 2)
    vision: dict[str, Any] = {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 32}
    text: dict[str, Any] = {"model_type": "llama", "num_key_value_heads": 4, "max_position_embeddings": 128}
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers, "num_attention_heads": 4}
    return Recipe(
        out=str(folder / "run"),
        steps=steps,
        threads=1,
        tokenizer=recipes.TokenizerChoice(path=str(folder / "tokenizer")),
        vision=recipes.VisionTower(config=vision | sizes, select_layer=-1),
        language=recipes.LanguageModel(config=text | sizes),
        freeze=recipes.Freeze(vision=False),
        checkpoint=recipes.Checkpoint(every=0),
        loader=recipes.Loader(process=True),
        sources=(recipes.Source(name="photos", shards=place, batch_size=pictures),),
    )


def turns(folder: Path, place: str, pictures: int, number: int) -> dict[str, list[float]]:
    """Milliseconds a step of each turn: of ours, and of the bare loop that has its turn between them."""
    from trainer import assembly, loop
    from trainer.log import RunFolder

    chosen = recipe(folder, place, pictures, number * TURN)
    step = bare(chosen)
    found: dict[str, list[float]] = {"ours": [], "bare": []}
    ended: list[float] = []

    class Turns(RunFolder):
        def step(self, line: dict[str, Any]) -> None:
            super().step(line)
            ended.append(time.perf_counter())
            if len(ended) == TURN:
                found["ours"].append(per_step(ended))
                found["bare"].append(per_step([_ended(step) for _ in range(TURN)]))
                ended.clear()

    made = assembly.assemble(chosen)
    with Turns(chosen) as run:
        loop.train(made, run)
    return {kind: times[2:] or times for kind, times in found.items()}  # caches and threads settle


def _ended(step: Callable[[], None]) -> float:
    step()
    return time.perf_counter()


def bare(chosen: Recipe) -> Callable[[], None]:
    """A step of the loop that anybody would write, on its own copy of the model."""
    import torch

    from trainer import assembly, loop
    from trainer.data.loader import Loader

    made = assembly.assemble(chosen)
    with Loader(loop.feed(made), made.mixture.start(), stop=READY, workers=0) as loader:
        ready = [step.made[0].batch for step in loader]
    trained = [parameter for parameter in made.model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, lr=chosen.optimizer.lr, weight_decay=chosen.optimizer.weight_decay)
    made.model.train()

    def step() -> None:
        ready.append(ready.pop(0))
        loss = made.model(ready[-1])
        (loss.sums_B.sum() / loss.counts_B.sum()).backward()
        torch.nn.utils.clip_grad_norm_(trained, chosen.optimizer.max_grad_norm)
        adam.step()
        adam.zero_grad()

    return step


def per_step(ended: list[float]) -> float:
    """Milliseconds, of the times at which a turn's steps were through."""
    return 1000 * (ended[-1] - ended[LEFT_OUT - 1]) / (len(ended) - LEFT_OUT)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(turns(Path(name), sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
