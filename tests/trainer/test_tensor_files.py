"""What ranks write together is the safetensors of everybody, each tensor once, and no rank needs memory for all."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas import RequestError
from trainer.engines import tensor_files
from trainer.engines.tensor_files import Entry

MADE = {
    "count": torch.tensor(3.0),
    "matrix": torch.arange(15.0).reshape(3, 5).to(torch.bfloat16),
    "wide": torch.arange(7.0).double() / 3,
    "nothing": torch.zeros(0, 4),
    "half": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).half().T,
}


def entries(tensors: dict[str, torch.Tensor]) -> list[Entry]:
    return [Entry(name, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor) for name, tensor in tensors.items()]


def saved(folder: Path, ranks: int, tensors: dict[str, torch.Tensor] = MADE) -> list[Path]:
    for rank in range(ranks):
        tensor_files.save(folder, "weights", entries(tensors), rank, ranks)
    return tensor_files.listed(folder, "weights")


def test_a_file_is_its_header_s_length_the_header_and_the_numbers(tmp_path: Path) -> None:
    [file] = saved(tmp_path, 1, {"a": torch.tensor([1.0, -2.0])})

    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    assert file.name == "weights.safetensors"
    assert file.read_bytes() == b"\x38" + bytes(7) + header + b"  " + b"\x00\x00\x80\x3f" + b"\x00\x00\x00\xc0"


def test_a_file_is_the_one_that_safetensors_writes(tmp_path: Path) -> None:
    same = {name: torch.randn(5, 7) for name in ("language.b", "language.a", "projector.0.weight", "count:step")}
    [file] = saved(tmp_path, 1, same)

    safetensors.torch.save_file(same, tmp_path / "theirs.safetensors")

    assert file.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize("ranks", [1, 2, 9])
def test_each_tensor_is_whole_and_in_one_file_whatever_the_ranks(tmp_path: Path, ranks: int) -> None:
    files = saved(tmp_path, ranks)

    held = [safetensors.torch.load_file(file) for file in files]
    assert len(files) == ranks
    assert sorted(name for tensors in held for name in tensors) == sorted(MADE)
    with tensor_files.opened(tmp_path, "weights") as found:
        assert len(found) == len(MADE)
        for name, tensor in MADE.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def test_the_files_of_two_ranks_have_names_that_others_know(tmp_path: Path) -> None:
    assert [file.name for file in saved(tmp_path, 2)] == ["weights-00001-of-00002.safetensors", "weights-00002-of-00002.safetensors"]


@given(st.lists(st.integers(0, 1000)), st.integers(1, 9))
def test_no_rank_has_more_than_its_share_and_one_tensor(sizes: list[int], ranks: int) -> None:
    planned = [Entry(str(at), torch.float32, (size,), lambda: torch.zeros(0)) for at, size in enumerate(sizes)]

    owners = tensor_files.owners(planned, ranks)

    held = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(ranks)]
    assert sum(held) == sum(sizes)
    assert max(held) <= sum(sizes) / ranks + max(sizes, default=0)


def test_a_rank_holds_two_tensors_at_a_time_and_keeps_none_of_others(tmp_path: Path) -> None:
    living: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most: list[int] = []

    def put_together() -> torch.Tensor:
        tensor = torch.ones(1 << 16)
        living.add(tensor)
        most.append(len(living))
        return tensor

    planned = [Entry(f"{number}", torch.float32, (1 << 16,), put_together) for number in range(40)]

    tensor_files.write(tmp_path / "all.safetensors", planned, {entry.name for entry in planned})
    assert len(most) == 40
    assert max(most) <= 3  # one that is written, one that waits for it, the new one

    tensor_files.join(planned)
    assert len(most) == 80
    assert len(living) == 0


def test_what_is_not_kept_is_not_in_memory_after_reading(tmp_path: Path) -> None:
    saved(tmp_path, 2)

    with tensor_files.opened(tmp_path, "weights") as found:
        copies = {name: tensor.clone() for name, tensor in found.items()}

    assert copies.keys() == MADE.keys()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_rank_whose_file_is_missing_is_told(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 2)
    second.unlink()

    with pytest.raises(RequestError, match=f"expected weights of every rank, found {first.name}; all ranks need to see this folder"):
        tensor_files.listed(tmp_path, "weights")
    first.unlink()
    with pytest.raises(RequestError, match="expected weights of every rank, found none"):
        tensor_files.listed(tmp_path, "weights")


def test_a_full_disk_is_told() -> None:
    with pytest.raises(OSError, match="No space left"):
        tensor_files.write(Path("/dev/full"), entries({"large": torch.zeros(1 << 20), "more": torch.zeros(1 << 20)}), {"large", "more"})


def test_a_header_is_json_whatever_the_names(tmp_path: Path) -> None:
    [file] = saved(tmp_path, 1, {'a "b"\nä': torch.zeros(1)})

    assert list(safetensors.torch.load_file(file)) == ['a "b"\nä']
    assert json.loads(file.read_bytes()[8:-4])['a "b"\nä']["shape"] == [1]
