"""torch's DistributedDataParallel, and how every engine of several ranks waits for the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from trainer.data.batch import Batch
from trainer.engines.engine import PeerError
from trainer.engines.single import Single
from trainer.model import Model
from trainer.recipe import Recipe


class Ddp(Single):
    """torch's DistributedDataParallel: the whole model on every rank, gradients added up while the last backward runs."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__(model, recipe)
        self._place()
        # Every trained parameter gets a gradient from every batch (trainer/model.py), so nobody has to look for unused ones.
        devices = [torch.device(recipe.device)] if "cuda" in recipe.device else None
        self.wrapped = DistributedDataParallel(model, device_ids=devices)
        self.wrapped.register_comm_hook(None, lambda _, bucket: _added_up(bucket.buffer()))  # it reads annotations, and knows no string

    def accumulate(self, batch: Batch, weights_BL: torch.Tensor, *, last: bool) -> torch.Tensor:
        """Ranks meet in the last backward of a step alone."""
        with peers(), contextlib.nullcontext() if last else self.wrapped.no_sync():
            return self._backward(self.wrapped, batch, weights_BL)

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Ranks that share the model out meet."""
        with peers():
            return super().evaluate(batch)

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """One collective of a few numbers."""
        mine = torch.tensor(list(numbers), dtype=torch.float64, device=self.recipe.device)
        found = [torch.empty_like(mine) for _ in range(self.ranks)]
        with peers():
            dist.all_gather(found, mine)
        return torch.stack(found).tolist()

    def barrier(self) -> None:
        """A gather of nothing much, because a barrier of gloo has no timeout of its own."""
        self.gather([0.0])

    def _place(self) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()


def _added_up(gradient: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """The sum over ranks where DDP takes a mean: what a step divides by is global already."""
    work = dist.all_reduce(gradient, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """What a collective raises where another rank has gone, or keeps everybody waiting: as PeerError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistBackendError | dist.DistNetworkError) and not any(word in str(error) for word in _GONE):
            raise
        told = " ".join(str(error).split())[:200]
        raise PeerError(f"rank {dist.get_rank()}: expected the other ranks' part, found that one has ended or hangs: {told}") from error


_GONE = ("Connection closed by peer", "Connection reset by peer", "Timed out", "timed out", "gloo", "NCCL", "Broken pipe")
