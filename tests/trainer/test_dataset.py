"""The torch datasets, as a user's own loop takes them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import shards
from schemas import RequestError
from schemas.record import record, text_part, turn
from trainer import assembly
from trainer.dataset import BatchDataset, RecordDataset, StepBatches
from trainer.recipe import Recipe

Tiny = Callable[..., Recipe]


@pytest.fixture(scope="session")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of a hundred one-line records, several of them."""
    place = tmp_path_factory.mktemp("hundred") / "shards"
    items = ((record("hundred", turns=[turn("text", [text_part(f"line {n}")])]), [], []) for n in range(100))
    shards.write(place, items, shard_bytes=40_000)
    return str(place)


def keys(items: Any) -> list[str]:
    return [item["key"] for item in items]


def rows(steps: Any) -> list[list[list[int]]]:
    """The token ids of every row, by step."""
    masked = [[(part.batch.ids_BT, part.batch.mask_BT) for part in step.parts] for step in steps]
    return [[row[mask].tolist() for ids, masks in parts for row, mask in zip(ids, masks, strict=True)] for parts in masked]


def test_an_epoch_has_every_record_once_whatever_the_ranks(hundred: str) -> None:
    alone = keys(RecordDataset(hundred, batch_size=10, epochs=1, rank=0, ranks=1))
    together = [keys(RecordDataset(hundred, batch_size=10, epochs=1, rank=rank, ranks=3)) for rank in range(3)]

    assert len(shards.open(hundred).shards) > 1
    assert sorted(alone) == sorted(sample.key for sample in shards.open(hundred))
    assert sorted(itertools.chain(*together)) == sorted(alone)
    assert max(map(len, together)) - min(map(len, together)) <= 10


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_dataloader_workers_do_not_change_the_order(hundred: str, workers: int) -> None:
    dataset = RecordDataset(hundred, batch_size=10, epochs=1)

    found = [keys(items) for items in DataLoader(dataset, batch_size=10, num_workers=workers, collate_fn=list)]

    alone = keys(dataset)
    assert found == [alone[at : at + 10] for at in range(0, 100, 10)]


def test_the_last_item_s_state_goes_on_behind_it_also_inside_a_step(hundred: str) -> None:
    whole = list(RecordDataset(hundred, batch_size=10, epochs=1))

    for stop in (10, 13, 20, 29):
        state = json.loads(json.dumps(whole[stop - 1]["state"]))
        going_on = RecordDataset(hundred, batch_size=10, epochs=1)
        going_on.load_state_dict(state)
        assert keys(going_on) == keys(whole[stop:])


def test_the_dataset_knows_its_state_where_it_reads_itself(hundred: str) -> None:
    dataset = RecordDataset(hundred, batch_size=10, epochs=1)
    items = iter(dataset)
    first = [next(items) for _ in range(13)]

    assert dataset.state_dict() == first[-1]["state"]


def test_inside_a_step_the_ranks_are_those_of_the_state(hundred: str) -> None:
    items = iter(RecordDataset(hundred, batch_size=10, rank=0, ranks=2))
    inside = next(items)["state"]
    between = [next(items) for _ in range(4)][-1]["state"]

    with pytest.raises(RequestError, match="state: expected 2 ranks to go on inside step 0, found 1"):
        RecordDataset(hundred, batch_size=10).load_state_dict(inside)
    RecordDataset(hundred, batch_size=10).load_state_dict(between)


def test_changed_data_is_refused(hundred: str, sums: str) -> None:
    state = next(iter(RecordDataset(hundred, batch_size=2)))["state"]

    with pytest.raises(RequestError, match="source records: expected the data that the run began with, fingerprint"):
        RecordDataset(sums, batch_size=2).load_state_dict(state)


def test_what_make_makes_of_a_sample_is_the_item(hundred: str) -> None:
    dataset = RecordDataset(hundred, batch_size=4, make=lambda source, draw, sample: (source, draw, sample.record.turns[0].text()))

    values = [item["value"] for item in itertools.islice(dataset, 4)]

    assert sorted(draw for _, draw, _ in values) == [0, 1, 2, 3]
    assert all(source == "records" and text.startswith("line ") for source, _, text in values)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_that_the_trainer_would_make(tiny: Tiny, colours: str, sums: str, workers: int) -> None:
    recipe = tiny("steps=6", "sources.colours.batch_size=3", sources=[f"colours={colours}", f"sums={sums}"])
    dataset = BatchDataset(recipe)

    found = list(DataLoader(dataset, batch_size=None, num_workers=workers))

    assert len(dataset) == 6
    assert [step.step for step in found] == list(range(6))
    assert [set(part.sources) for part in found[0].parts] == [{"colours"}, {"sums"}]
    assert found[0].parts[0].batch.pixels_NCHW.shape == (3, 3, 16, 16)
    assert rows(found) == rows(BatchDataset(recipe))


def test_batches_go_on_behind_the_last_one_used(tiny: Tiny) -> None:
    recipe = tiny("steps=6", "sources.colours.batch_size=3")
    whole = list(BatchDataset(recipe))
    loader = iter(DataLoader(BatchDataset(recipe), batch_size=None, num_workers=2))
    used = [next(loader) for _ in range(4)]

    going_on = BatchDataset(recipe)
    going_on.load_state_dict(used[-1].state)

    assert len(going_on) == 2
    assert rows(DataLoader(going_on, batch_size=None, num_workers=1)) == rows(whole[4:])


def test_ranks_share_the_batches_of_one(tiny: Tiny) -> None:
    recipe = tiny("steps=4", "sources.colours.batch_size=5")
    alone, both = rows(BatchDataset(recipe, rank=0, ranks=1)), [rows(BatchDataset(recipe, rank=rank, ranks=2)) for rank in range(2)]

    for step, whole in enumerate(alone):
        assert sorted(map(tuple, whole)) == sorted(tuple(row) for rank in both for row in rank[step])
        assert {len(rank[step]) for rank in both} == {2, 3}


def test_the_rank_is_the_launcher_s_where_none_is_given(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")

    assert (BatchDataset(tiny()).rank, BatchDataset(tiny()).ranks) == (1, 3)
    with pytest.raises(RequestError, match="rank: expected one from 0 to 1, found 2"):
        BatchDataset(tiny(), rank=2, ranks=2)
    with pytest.raises(RequestError, match="rank and ranks: expected both or neither"):
        BatchDataset(tiny(), rank=2)


def test_leaving_the_loop_early_leaves_no_thread(tiny: Tiny) -> None:
    import threading

    for _ in BatchDataset(tiny("steps=50")):
        break

    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("loader", "planner"))]


def losses(made: assembly.Assembly, steps: Iterator[StepBatches]) -> Iterator[torch.Tensor]:
    for step in steps:
        for batch, _ in step.parts:
            loss = made.model(batch)
            yield loss.sums_B.sum() / loss.counts_B.sum()


def test_accelerate_trains_on_it(tiny: Tiny) -> None:
    accelerate = pytest.importorskip("accelerate")
    recipe = tiny("steps=20", "freeze.vision=false", "sources.colours.batch_size=4", "optimizer.lr=1e-2")
    made, accelerator = assembly.assemble(recipe), accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(made.model.parameters(), lr=1e-2)
    _, optimizer = accelerator.prepare(made.model, optimizer)
    dataset = BatchDataset(recipe, rank=accelerator.process_index, ranks=accelerator.num_processes)

    found = []
    for loss in losses(made, iter(DataLoader(dataset, batch_size=None, num_workers=1))):
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))

    assert found[-1] < 0.5 * found[0]


def test_lightning_trains_on_it(tiny: Tiny, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    recipe = tiny("steps=20", "freeze.vision=false", "sources.colours.batch_size=4")
    made, found = assembly.assemble(recipe), []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = made.model

        def training_step(self, step: StepBatches) -> torch.Tensor:
            loss = sum(losses(made, iter([step])), torch.zeros(()))
            found.append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    how = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "use_distributed_sampler": False, "default_root_dir": tmp_path}
    trainer = lightning.Trainer(**how, **quiet)
    trainer.fit(Module(), DataLoader(BatchDataset(recipe), batch_size=None))

    assert len(found) == 20
    assert found[-1] < 0.5 * found[0]
