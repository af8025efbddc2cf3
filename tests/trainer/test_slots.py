"""Objects through memory that two processes share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from trainer.data.slots import Slot


@pytest.fixture
def ends() -> Iterator[tuple[Slot, Slot]]:
    """The writer's and the reader's end of one slot."""
    writer = Slot.new()
    reader = Slot(os.dup(writer.file))
    yield writer, reader
    writer.close()
    reader.close()


def test_what_is_read_is_what_was_written(ends: tuple[Slot, Slot]) -> None:
    writer, reader = ends
    words = {"ids": torch.tensor([[3, 1], [4, 1]]), "mask": torch.tensor([True, False]), "none": torch.empty(0), "text": "pi"}

    found = reader.read(*writer.write(words))

    assert found["ids"].tolist() == [[3, 1], [4, 1]]
    assert found["mask"].tolist() == [True, False]
    assert found["none"].shape == (0,)
    assert found["text"] == "pi"
    assert [found[name].dtype for name in ("ids", "mask", "none")] == [torch.int64, torch.bool, torch.float32]


def test_tensors_are_not_copied_and_stay_until_the_slot_is_written_to_again(ends: tuple[Slot, Slot]) -> None:
    writer, reader = ends
    first = reader.read(*writer.write(torch.ones(100)))

    writer.write(torch.full((100,), 2.0))

    assert first.tolist() == [2.0] * 100


def test_a_slot_grows_and_what_was_read_before_does_not_move(ends: tuple[Slot, Slot]) -> None:
    writer, reader = ends
    small = reader.read(*writer.write(torch.arange(10)))

    large = reader.read(*writer.write((torch.zeros(300_000), torch.arange(5))))

    assert small.data_ptr() % 8 == 0
    assert (len(large[0]), large[1].tolist()) == (300_000, [0, 1, 2, 3, 4])


def test_a_part_of_a_tensor_travels_alone(ends: tuple[Slot, Slot]) -> None:
    writer, reader = ends
    rows = torch.arange(12).reshape(3, 4)

    assert reader.read(*writer.write(rows[:, 1])).tolist() == [1, 5, 9]
    assert os.fstat(writer.file).st_size <= 64
