"""A family whose loss has another term than its tokens: each is divided by its own count, and the loop knows neither."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch

from trainer import assembly, loop
from trainer.assembly import Assembly
from trainer.data.batch import Batch
from trainer.data.loader import Loader
from trainer.engines import start
from trainer.llava import LlavaModel
from trainer.log import RunFolder
from trainer.model import TokenLoss
from trainer.recipe import Recipe

FACTOR = 0.5


class Bright(LlavaModel):
    """Wants a picture's features small, too: a stand-in for a loss over masks, counted by pictures."""

    terms = ("tokens", "pictures")

    def counts(self, batch: Batch) -> torch.Tensor:
        """(B, 2)."""
        return torch.stack([batch.counts_B, torch.tensor(batch.pictures, device=batch.counts_B.device)], 1)

    def forward(self, batch: Batch) -> TokenLoss:
        """Sums and counts, (B, 2); the term's own factor is in its sums."""
        sums_B = super().forward(batch).sums_B
        rows = torch.arange(len(sums_B)).repeat_interleave(torch.tensor(batch.pictures))
        pictures_B = torch.zeros_like(sums_B)
        if batch.pixels_NCHW is not None:
            pictures_B = pictures_B.index_add(0, rows, FACTOR * self.features(batch.pixels_NCHW).square().mean((1, 2)))
        return TokenLoss(torch.stack([sums_B, pictures_B], 1), self.counts(batch))


@pytest.fixture
def two(tiny: Callable[..., Recipe], colours: str, sums: str) -> Callable[..., Recipe]:
    """two("a.b=c", ...): five records with pictures times 1.5, three without times 0.2."""
    base = ["steps=3", "sources.colours.batch_size=5", "sources.sums.batch_size=3", "log.tensorboard=false"]
    times = ["sources.colours.loss_multiplier=1.5", "sources.sums.loss_multiplier=0.2"]
    return lambda *settings: tiny(*base, *times, *settings, sources=[f"colours={colours}", f"sums={sums}"])


def assembled(recipe: Recipe) -> Assembly:
    made = assembly.assemble(recipe)
    made.model.__class__ = Bright
    made.model.double()
    return made


def gradient(made: Assembly) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}


def test_each_term_of_a_source_is_divided_by_its_own_count(two: Callable[..., Recipe]) -> None:
    recipe = two("sources.colours.micro_batch_size=2", "sources.sums.micro_batch_size=2")
    made, whole = assembled(recipe), assembled(two())
    engine = start.build(made.model, recipe)
    with Loader(loop.feed(made), made.mixture.start(), stop=1, workers=0) as loader:
        step = next(loader)
    with Loader(loop.feed(whole), whole.mixture.start(), stop=1, workers=0) as loader:
        colours, sums = (micro.batch for micro in next(loader).made)

    losses = loop.backward(engine, recipe, step.made, loop._exchanged(step, recipe, engine))
    of_colours, of_sums = (cast(TokenLoss, whole.model(batch)) for batch in (colours, sums))
    tokens, pictures = (of_colours.sums_B[:, at].sum() / of_colours.counts_B[:, at].sum() for at in (0, 1))
    of_texts = of_sums.sums_B[:, 0].sum() / of_sums.counts_B[:, 0].sum()
    total = 1.5 * (tokens + pictures) + 0.2 * of_texts
    total.backward()

    assert losses.by_source == pytest.approx({"colours": tokens.item(), "colours/pictures": pictures.item(), "sums": of_texts.item()})
    assert losses.total == pytest.approx(total.item())
    assert losses.tokens == int(of_colours.counts_B[:, 0].sum() + of_sums.counts_B[:, 0].sum())
    expected = gradient(whole)
    for name, found in gradient(made).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-6, atol=1e-9)


def test_the_run_tells_both(two: Callable[..., Recipe]) -> None:
    recipe = two()
    made = assembled(recipe)

    with RunFolder(recipe) as folder:
        loop.train(made, folder)

    lines = [json.loads(line) for line in Path(folder.path / "log.jsonl").read_text().splitlines()]
    assert [set(line["loss_by_source"]) for line in lines] == [{"colours", "colours/pictures", "sums"}] * 3
    assert all(line["updated"] for line in lines)
