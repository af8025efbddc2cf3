"""What an engine is: how the ranks work together. The loop knows an `Engine` and nothing of processes.

One process: single.py. DDP: ddp.py. FSDP2: fsdp.py. DeepSpeed: deepspeed.py. All write the same tensors, so a run may go on under another.

Ranks meet in all but `forget`, the same number of times on each. A rank that ends without the others is told within the timeout, as
PeerError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from schemas import RequestError, ShardweaveError
from trainer.data.batch import Batch
from trainer.engines.tensor_files import Entry
from trainer.model import Model

WEIGHTS, OPTIMIZER, SCALE = "weights", "optimizer", "scale.json"  # the first two: trainer/engines/tensor_files.py


class PeerError(ShardweaveError):
    """Another rank has ended, or does not answer."""


class DivergedError(ShardweaveError):
    """The loss or its gradient is no longer a finite number."""


class Engine(Protocol):
    """One rank's part of the model and the optimizer."""

    rank: int
    ranks: int
    model: Model

    def accumulate(self, batch: Batch, weights_BL: torch.Tensor, *, last: bool) -> torch.Tensor:
        """Add the gradient of sums_BL, of each row and term (Model.terms), times weights_BL. After the `last` of a step: over all ranks.

        sums_BL, float32 (B, L), detached.
        """
        ...

    def update(self, factor: float) -> float | None:
        """Clip, make the optimizer's step at the schedule's factor, forget the gradient: its norm before it was clipped.

        None where float16's loss scale was too large and has been halved: there was no step. Raises DivergedError where the norm is not
        finite, before a weight is touched. All ranks alike.
        """
        ...

    def forget(self) -> None:
        """Forget the gradient."""
        ...

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """Each row's sum of token losses, float32 (B,), in evaluation mode and without a gradient."""
        ...

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """Every rank's numbers, on every rank. Plain ones: a tensor of a few takes longer to make than to send."""
        ...

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        ...

    def save(self, folder: Path) -> None:
        """Write what is trained, and the optimizer's state, into a folder that is there. Called by all ranks; each writes a share."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, under any engine and by any number of ranks. Raises RequestError where it does not fit the model."""
        ...

    def weights(self) -> list[Entry]:
        """The trained parameters by name, float32, to be put together in turn and before the next update. The same on all ranks."""
        ...


def same_shapes(shapes: Mapping[str, torch.Size], weights: Mapping[str, torch.Tensor], where: Path) -> None:
    """Raises RequestError where a saved tensor is not the model's."""
    expected = {name: tuple(shape) for name, shape in shapes.items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise RequestError(f"{where}: {name}: expected shape {expected.get(name, 'none')}, found {found.get(name, 'none')}")
