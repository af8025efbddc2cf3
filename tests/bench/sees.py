"""python -m tests.bench.sees [--folds N] [--write FILE]: does a model that is trained here see?

The recipe `smol` learns the first captions of four in five of COCO's sample photographs, converted by the pipeline; the rest is held out.

* Trained: for each photograph the likelihood of the captions of all of them; how often its own is the likeliest, and how often
  a caption is likeliest with its own photograph.
* Held out: the loss of captions with their own photograph, and with each of the other held-out ones in turn. The difference, over the
  captions of a photograph, is what it tells; the mean has a 95 % bootstrap interval over photographs. With --folds 5 each photograph is
  held out once, from a model of its own fold.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

import pipelines.__main__ as pipelines_command
import shards
import trainer.__main__ as trainer_command
from tests.conftest import folder
from trainer import log
from trainer.data.batch import Batch, Example, collate
from trainer.data.examples import example
from trainer.llava import LlavaModel
from trainer.model import Model, TokenLoss, token_loss
from trainer.text.render import renderer
from trainer.text.rendered import IGNORE, IMAGE, Rendered
from trainer.use import trained
from trainer.use.trained import Trained

FOLDS, RESAMPLES, BATCH = 5, 10_000, 16
Photograph = list[Example]  # its captions, each as the model sees it; the first is the record's own


@dataclass(frozen=True)
class Fold:
    """What one model has learned of its photographs, and of those held out."""

    trained: int
    steps: int
    own_caption: int  # photographs whose own caption is the likeliest of all
    own_photograph: int  # captions that are likeliest with their own photograph
    right_P: list[float]  # held out: loss a token, of each photograph
    shuffled_P: list[float]  # the same with each of the others

    @property
    def gains_P(self) -> list[float]:
        """What each held-out photograph tells of its captions, nats a token."""
        return [shuffled - right for right, shuffled in zip(self.right_P, self.shuffled_P, strict=True)]


def main() -> int:
    """1 where fewer than nine in ten are found."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sees", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folds", type=int, default=1, help=f"how many of the {FOLDS} (default 1)")
    parser.add_argument("--images", type=int, metavar="N", help="of the first N photographs alone: to see that it runs")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change a value of the recipe")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep what is made there; a run that was stopped goes on")
    parser.add_argument("--write", type=Path, help="keep the section for RESULTS.md in this file")
    options = parser.parse_args()
    folds = []
    with tempfile.TemporaryDirectory(prefix="shardweave-sees-") as scratch:
        for number in range(options.folds):
            folds.append(measured((options.work or Path(scratch)) / f"fold-{number}", number, options.images, options.set))
            print(told(folds), flush=True)
    if options.write:
        options.write.write_text(report(folds))
    return 0 if all(fold.own_caption >= 0.9 * fold.trained for fold in folds) else 1


def measured(work: Path, number: int, images: int | None, settings: Sequence[str]) -> Fold:
    """Convert, train, rank."""
    seen, held_out = converted(work, number, images)
    if not (work / "run" / log.WEIGHTS).is_file():
        changes = [word for setting in settings for word in ("--set", setting)]
        done("train", trainer_command.main(["train", "smol", "--source", f"captions={seen}", "--out", str(work / "run"), *changes]))
    run = trained.load(work / "run")
    first = [photograph[:1] for photograph in photographs(run, seen)]
    sums_PC, own = losses(run.model, first)[0], np.arange(len(first))
    right_P, shuffled_P = right_and_shuffled(run.model, photographs(run, held_out))
    return Fold(
        trained=len(first),
        steps=run.recipe.steps,
        own_caption=int((sums_PC.argmin(1) == own).sum()),
        own_photograph=int((sums_PC.argmin(0) == own).sum()),
        right_P=right_P.tolist(),
        shuffled_P=shuffled_P.tolist(),
    )


def converted(work: Path, number: int, images: int | None) -> list[str]:
    """Shards of the photographs to learn, and of those held out: the fold's. COCO's own file, cut in two by image."""
    data = folder("SHARDWEAVE_DATA", "../shared/data")
    if data is None:
        raise SystemExit("sees: no photographs: SHARDWEAVE_DATA names no folder")
    table = json.loads((data / "coco/annotations/captions_train2017.json").read_text())
    order = np.random.default_rng(0).permutation(len(table["images"]))[:images]
    work.mkdir(parents=True, exist_ok=True)
    places = []
    for name, chosen in (("seen", [n for n in order if n % FOLDS != number]), ("held_out", [n for n in order if n % FOLDS == number])):
        path, place = work / f"{name}.json", str(work / name)
        shown = [table["images"][n] for n in chosen]
        said = [row for row in table["annotations"] if row["image_id"] in {image["id"] for image in shown}]
        if name == "seen":
            said = list({row["image_id"]: row for row in reversed(said)}.values())  # the first of each
        path.write_text(json.dumps({**table, "images": shown, "annotations": said}))
        command = ["convert", "coco", "--captions", str(path), "--images", str(data / "coco/train2017"), "--out", place, "--workers", "1"]
        done("convert", pipelines_command.main(command))
        places.append(place)
    return places


def done(command: str, status: int) -> None:
    """Ends where a command failed; it has said why."""
    if status:
        raise SystemExit(f"sees: {command} failed")


def photographs(run: Trained, place: str) -> list[Photograph]:
    """All captions of each record of a place."""
    render = renderer(run.recipe, run.tokenizer)
    every = ((sample, [sample.record.turns, *(choice.turns for choice in sample.record.choices)]) for sample in shards.open(place))
    return [[example(sample, render, run.preprocess, turns) for turns in said] for sample, said in every]


def right_and_shuffled(model: Model, held_out: list[Photograph]) -> tuple[np.ndarray, np.ndarray]:
    """Loss a token of each photograph's captions, with it and with each of the others."""
    sums_PC, counts_C = losses(model, held_out)
    owner_C = np.repeat(np.arange(len(held_out)), [len(photograph) for photograph in held_out])
    own_PQ = np.stack([sums_PC[:, owner_C == owner].sum(1) / counts_C[owner_C == owner].sum() for owner in range(len(held_out))], 1)
    right_P = np.diagonal(own_PQ)
    return right_P, (own_PQ.sum(0) - right_P) / (len(held_out) - 1)


@torch.no_grad()
def losses(model: Model, shown: list[Photograph]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of token losses (P, C) of every caption with every photograph, and how many tokens each caption has, (C,).

    What a photograph leaves in the language model's cache is kept for all captions: it is most of the positions.
    """
    seeing = cast(LlavaModel, model)
    captions = [_without_picture(caption) for photograph in shown for caption in photograph]
    alike = sorted(range(len(captions)), key=lambda at: len(captions[at].rendered.ids))  # in length
    parts = [alike[at : at + BATCH] for at in range(0, len(alike), BATCH)]
    batches = [collate([captions[at] for at in part]) for part in parts]
    sums_PC, counts_C = np.zeros((len(shown), len(captions))), np.zeros(len(captions))
    for row, photograph in enumerate(shown):
        embeds_1PD = seeing.spliced(collate([_picture_alone(photograph[0])])).embeds_BSD
        kept = cast(Any, seeing.language)(inputs_embeds=embeds_1PD[:, :-1], use_cache=True).past_key_values
        for part, batch in zip(parts, batches, strict=True):
            found = _after(seeing, embeds_1PD, copy.deepcopy(kept), batch)
            sums_PC[row, part], counts_C[part] = found.sums_B.numpy(), found.counts_B.numpy()
    direct = seeing(collate(shown[0])).sums_B.numpy()  # as the model itself takes a row
    np.testing.assert_allclose(sums_PC[0, : len(direct)], direct, rtol=1e-3)
    return sums_PC, counts_C


def _after(model: LlavaModel, embeds_1PD: torch.Tensor, kept: Any, captions: Batch) -> TokenLoss:
    """The loss of each caption behind these positions, of which all but the last are in the cache."""
    language, count = cast(Any, model.language), len(captions.ids_BT)
    kept.batch_repeat_interleave(count)
    embeds_CTD = torch.cat([embeds_1PD[:, -1:].expand(count, 1, -1), language.get_input_embeddings()(captions.ids_BT)], 1)
    mask_CS = torch.cat([captions.mask_BT.new_ones(count, embeds_1PD.shape[1]), captions.mask_BT], 1).long()
    labels_CT = torch.cat([captions.labels_BT.new_full((count, 1), IGNORE), captions.labels_BT], 1)
    return token_loss(language(inputs_embeds=embeds_CTD, past_key_values=kept, attention_mask=mask_CS).logits, labels_CT)


def _without_picture(caption: Example) -> Example:
    ids, labels = caption.rendered.ids, caption.rendered.labels
    assert ids[0] == IMAGE
    assert IMAGE not in ids[1:]
    return Example(rendered=Rendered(ids=ids[1:], labels=labels[1:]), pixels=[])


def _picture_alone(caption: Example) -> Example:
    return Example(rendered=Rendered(ids=[IMAGE], labels=[IGNORE], images=[0]), pixels=caption.pixels)


def interval(gains_P: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of the means of photographs drawn with replacement."""
    drawn_RP = np.random.default_rng(0).choice(gains_P, (RESAMPLES, len(gains_P)))
    low, high = np.percentile(drawn_RP.mean(1), [2.5, 97.5])
    return float(low), float(high)


def told(folds: list[Fold]) -> str:
    """What is known after these folds."""
    count, captions, pictures = (sum(getattr(fold, name) for fold in folds) for name in ("trained", "own_caption", "own_photograph"))
    right, shuffled = (float(np.mean([loss for fold in folds for loss in getattr(fold, name)])) for name in ("right_P", "shuffled_P"))
    gains = [gain for fold in folds for gain in fold.gains_P]
    low, high = interval(gains)
    return "\n".join(
        [
            f"* Trained photographs: {captions} of {count} find their caption among {folds[0].trained}, "
            f"{pictures} of {count} captions find their photograph",
            f"* Held-out photographs ({len(gains)}): loss a token {right:.3f} with their own, {shuffled:.3f} with another one; "
            f"difference {np.mean(gains):.3f}, 95 % interval {low:.3f} to {high:.3f}",
        ]
    )


def report(folds: list[Fold]) -> str:
    """The section of RESULTS.md."""
    low, _ = interval([gain for fold in folds for gain in fold.gains_P])
    claim = (
        "it tells something of photographs that it has not been trained on"
        if low > 0
        else "nothing is shown about photographs that it has not been trained on"
    )
    where = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__.partition('+')[0]}"
    return (
        f"## Does it see?\n\n`python -m tests.bench.sees --folds {len(folds)}` ({where})\n\n{told(folds)}\n\nThe interval says: {claim}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
