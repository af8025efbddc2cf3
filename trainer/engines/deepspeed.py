"""DeepSpeed's ZeRO, stages 1 to 3, with any configuration of the user's: trainer/engines/ds_config.py says what of it is in force.

Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054. AdamW is torch's, built from the recipe; forward, backward, clipping and step are
DeepSpeed's. What is saved is whole, float32 and by name, in the files of the other engines: no pickle is written or read.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from schemas import RequestError
from trainer.data.batch import Batch
from trainer.engines import ds_config, tensor_files
from trainer.engines import optimizer as optimizers
from trainer.engines.ddp import Ddp, peers
from trainer.engines.engine import OPTIMIZER, SCALE, WEIGHTS, DivergedError, same_shapes
from trainer.engines.precision import Scale
from trainer.engines.tensor_files import Entry
from trainer.model import Model
from trainer.recipe import Recipe

log = logging.getLogger(__name__)
MOMENTS = ("exp_avg", "exp_avg_sq")


class Deepspeed(Ddp):
    """DeepSpeed's engine, which holds this rank's part of the optimizer's state (1), of the gradients (2), of the parameters (3)."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self._place()
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.shapes = {name: parameter.shape for name, parameter in self.trained.items()}  # ZeRO-3 leaves none
        with _quiet(recipe):
            fitted = ds_config.fitted(ds_config.read(recipe.engine.deepspeed), recipe, _width(model), _zero_keys())
            self.shared = _initialised(model, fitted.table, recipe)
        for note in fitted.notes if self.rank == 0 else []:
            log.warning("deepspeed: %s", note)
        self.stage = int(fitted.table[ds_config.ZERO]["stage"])
        self.adam = cast(torch.optim.Optimizer, self.shared.optimizer.optimizer)  # over flat parts of many parameters
        self.scale = Scale(moves=self.shared.optimizer.loss_scaler.dynamic)  # DeepSpeed moves it; here it is saved
        self._begin_state()

    def accumulate(self, batch: Batch, weights_BL: torch.Tensor, *, last: bool) -> torch.Tensor:
        """DeepSpeed takes the mean over ranks: times the ranks it is the sum."""
        self.shared.set_gradient_accumulation_boundary(last)
        with peers():
            sums_BL = self._forward(self.model, batch)
            loss = (sums_BL * weights_BL.to(sums_BL.device)).sum() * self.ranks
            self.shared.backward(loss, scale_wrt_gas=False)
        return sums_BL.detach()

    def update(self, factor: float) -> float | None:
        """The norm is known behind the step alone; where it is not finite DeepSpeed makes none, and float16's scale is halved."""
        optimizers.set_lr(self.shared.optimizer, factor)
        with peers(), _scaled():
            self.shared.step()
        norm = float(self.shared.get_global_grad_norm())
        if self.shared.optimizer.overflow and self.shared.fp16_enabled():
            return None
        if not math.isfinite(norm) or norm < 0:  # -1 is what it calls NaN in bfloat16
            raise DivergedError(f"gradient: expected a finite norm, found {norm}")
        return norm

    def forget(self) -> None:
        """Frees the gradients' memory, too."""
        self.shared.optimizer.zero_grad()

    def load(self, folder: Path) -> None:
        """Into this rank's part of the float32 weights, and into the copy that the model computes with."""
        with tensor_files.opened(folder, WEIGHTS) as weights, tensor_files.opened(folder, OPTIMIZER) as held, peers():
            same_shapes(self.shapes, weights, folder / WEIGHTS)
            for name, parameter in self.trained.items():
                self._set(parameter, weights[name], None)
                for key in MOMENTS if f"{name}:step" in held else ():  # no update made, no state saved
                    self._set(parameter, held[f"{name}:{key}"], key)
            step = max((float(held[both]) for both in held if both.endswith(":step")), default=0.0)
        for own in self.adam.state.values():
            own["step"].fill_(step)
        self._load_scale(folder)

    def weights(self) -> list[Entry]:
        """Float32, whatever the model computes in."""
        return [Entry(name, torch.float32, tuple(shape), partial(self._full, name, None)) for name, shape in self.shapes.items()]

    def _forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self.shared(batch.to(self.recipe.device)).sums_BL

    def _state(self) -> list[Entry]:
        [step, *_] = [own["step"] for own in self.adam.state.values()]
        steps = [Entry(f"{name}:step", torch.float32, (), partial(self._whole, step)) for name in self.shapes]
        return steps + [
            Entry(f"{name}:{key}", torch.float32, tuple(shape), partial(self._full, name, key))
            for name, shape in self.shapes.items()
            for key in MOMENTS
        ]

    def _full(self, name: str, key: str | None) -> torch.Tensor:
        """A parameter's float32 weights, or a moment."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self.trained[name]
        with peers():
            found = safe_get_full_fp32_param(parameter) if key is None else safe_get_full_optimizer_state(parameter, key)
        return cast(torch.Tensor, found)

    def _set(self, parameter: Any, whole: torch.Tensor, key: str | None) -> None:
        """This rank's part of the float32 weights, or of a moment. DeepSpeed's own setter reads past the end of what it can not divide."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        if self.stage == 3:
            each = parameter.ds_tensor.numel()
            padded = torch.nn.functional.pad(whole.flatten(), (0, each * self.ranks - whole.numel()))
            there = padded[each * self.rank : each * (self.rank + 1)].to(self.recipe.device)
            set_weights, set_moment = safe_set_local_fp32_param, safe_set_local_optimizer_state
        else:
            there = whole.to(self.recipe.device)
            set_weights, set_moment = safe_set_full_fp32_param, safe_set_full_optimizer_state
        if key is not None:
            set_moment(parameter, there, key)
            return
        set_weights(parameter, there)
        if self.stage == 3:
            parameter.ds_tensor.data.copy_(there)
        if self.stage < 3 or parameter.shape == whole.shape:  # whole on every rank: what the model computes with
            parameter.data.copy_(whole)

    def _save_scale(self, folder: Path) -> None:
        scaler = self.shared.optimizer.loss_scaler
        if self.scale.moves:
            self.scale.value, self.scale.hysteresis = scaler.cur_scale, scaler.cur_hysteresis
            self.scale.updates = scaler.cur_iter - scaler.last_overflow_iter - 1
        super()._save_scale(folder)

    def _load_scale(self, folder: Path) -> None:
        super()._load_scale(folder)
        scaler = self.shared.optimizer.loss_scaler
        if self.scale.moves and (folder / SCALE).is_file():
            scaler.cur_scale, scaler.cur_hysteresis = self.scale.value, self.scale.hysteresis
            scaler.last_overflow_iter = scaler.cur_iter - self.scale.updates - 1

    def _begin_state(self) -> None:
        """What AdamW makes in its first step. DeepSpeed links it to the parameters behind its first group, when others have none yet."""
        owner = self.shared.optimizer
        for flat in owner.fp32_partitioned_groups_flat if self.stage == 3 else owner.single_partition_of_fp32_groups:
            self.adam.state[flat] = {"step": torch.zeros(())} | {key: torch.zeros_like(flat) for key in MOMENTS}
        if self.stage < 3:
            owner._lazy_init_hp_params_optimizer_state()


def _initialised(model: Model, table: dict[str, Any], recipe: Recipe) -> Any:
    import deepspeed

    if "cuda" not in recipe.device:
        deepspeed.ops.__compatible_ops__ = {}  # type: ignore[attr-defined] # else it compiles collectives of its own for the CPU
    adam = optimizers.build(model, recipe.optimizer)
    try:
        return deepspeed.initialize(model=model, optimizer=adam, config=table, dist_init_required=False)[0]
    except (AssertionError, ValueError, TypeError, KeyError) as error:
        told = " ".join(str(error).split())[:300]
        raise RequestError(
            f"engine.deepspeed: expected a configuration that DeepSpeed takes, found {type(error).__name__}: {told}"
        ) from error


@contextlib.contextmanager
def _scaled() -> Iterator[None]:
    """DeepSpeed ends a run whose loss scale can not be halved with a bare Exception: as DivergedError."""
    try:
        yield
    except Exception as error:
        if "loss scale already at minimum" not in str(error):
            raise
        raise DivergedError("gradient: expected a finite norm, found none at the smallest loss scale") from error


def _zero_keys() -> set[str]:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {key for name, field in DeepSpeedZeroConfig.model_fields.items() for key in (name, field.alias) if key}


def _width(model: Model) -> int:
    return int(cast(Any, model.language).get_input_embeddings().embedding_dim)


@contextlib.contextmanager
def _quiet(recipe: Recipe) -> Iterator[None]:
    """stdout carries the run's result alone; DeepSpeed tells of every step of its start there."""
    if "cuda" not in recipe.device:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with contextlib.redirect_stdout(sys.stderr):
        try:
            from deepspeed.utils import logger
        except ModuleNotFoundError as error:
            raise RequestError(
                "engine.kind deepspeed: expected DeepSpeed, found it not installed: pip install 'shardweave[deepspeed]'"
            ) from error
        logger.setLevel(logging.WARNING)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stderr)
        yield
