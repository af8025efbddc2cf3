"""A DeepSpeed configuration as users have them, made fit for a run: `auto` is filled from the recipe, what has no effect is reported.

A key that DeepSpeed does not look for where it stands it passes over without a word; here that costs a line. What the file states is in
force, but for what the recipe alone says: batch, AdamW, schedule. Names: https://www.deepspeed.ai/docs/config-json/
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from schemas import RequestError
from trainer.recipe import Recipe, nearest

ZERO = "zero_optimization"
_TOP = """
train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps optimizer scheduler gradient_clipping prescale_gradients
gradient_predivide_factor sparse_gradients communication_data_type seq_parallel_communication_data_type sequence_parallel_size fp16 bf16
bfloat16 amp data_types torch_autocast zero_optimization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer aio
activation_checkpointing steps_per_print wall_clock_breakdown memory_breakdown dump_state flops_profiler comms_logger tensorboard wandb
comet csv_monitor monitor_config autotuning compile compression_training checkpoint nebula elasticity data_efficiency curriculum_learning
progressive_layer_drop eigenvalue quantize_training sparse_attention hybrid_engine tensor_parallel pipeline disable_allgather
graph_harvesting load_universal_checkpoint dataloader_drop_last timers
"""
TOP = frozenset(_TOP.split())
INSTEAD = {  # of keys that are known and have no effect in a run of ours: what has
    "train_batch_size": "the sources' batch_size",
    "train_micro_batch_size_per_gpu": "the sources' micro_batch_size",
    "gradient_accumulation_steps": "the sources' micro_batch_size",
    "optimizer": "the recipe's [optimizer]",
    "scheduler": "the recipe's [schedule]",
    "activation_checkpointing": "engine.activation_checkpointing",
}


class Fitted(NamedTuple):
    """A configuration that DeepSpeed takes, and what is worth a line each."""

    table: dict[str, Any]
    notes: list[str]


def read(choice: str | dict[str, Any] | None) -> dict[str, Any]:
    """The user's table; ZeRO-2 where there is none. Raises RequestError: no such file, neither JSON nor YAML, no table."""
    if choice is None:
        return {ZERO: {"stage": 2}}
    table = choice if isinstance(choice, dict) else _parsed(Path(choice))
    if not isinstance(table, dict):
        raise RequestError(f"engine.deepspeed {choice}: expected a table, found {type(table).__name__}")
    return _numbers(table)


def fitted(table: Mapping[str, Any], recipe: Recipe, width: int, zero: Iterable[str]) -> Fitted:
    """`width`: of the language model, by which buckets are measured; `zero`: the keys of zero_optimization that DeepSpeed knows.

    Raises RequestError where float16 and bfloat16 are both asked for.
    """
    notes: list[str] = []
    zero = set(zero)
    made = {key: value for key, value in table.items() if _known(key, value, zero, notes)}
    section = made.get(ZERO) or {}
    made[ZERO] = {key: value for key, value in section.items() if _known_in_zero(key, zero, notes)}
    if not made[ZERO].get("stage"):
        made[ZERO]["stage"] = 1
        notes.append(f"{ZERO}.stage: 1 is in force, where weights are saved by name; 0 has the same numbers and more memory")
    _fill(made, recipe, width, notes)
    made |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}  # a rank's share and calls are the loop's business
    made |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}  # AdamW is torch's: no kernel is compiled
    return Fitted({"steps_per_print": 2**31} | made, notes)


def dtype(table: Mapping[str, Any]) -> str:
    """fp32, bf16 or fp16: what a fitted configuration computes in."""
    return next((name for name in ("bf16", "fp16") if table.get(name, {}).get("enabled")), "fp32")


def _parsed(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() not in (".yaml", ".yml"):
            return json.loads(text)
        import yaml

        return yaml.safe_load(text)
    except OSError as error:
        raise RequestError(f"engine.deepspeed {path}: expected a file, found {error.strerror}") from error
    except Exception as error:  # whatever either parser raises, it is no configuration
        raise RequestError(f"engine.deepspeed {path}: expected JSON or YAML, found {' '.join(str(error).split())[:200]}") from error


def _numbers(value: Any) -> Any:
    """YAML takes 5e8 for a text; JSON takes it for 500000000.0 where DeepSpeed wants a whole number."""
    if isinstance(value, dict):
        return {str(key): _numbers(item) for key, item in value.items()}
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value


def _known(key: str, value: Any, zero: set[str], notes: list[str]) -> bool:
    if key in INSTEAD:
        if value != "auto":
            notes.append(f"{key}: without effect; {INSTEAD[key]} says it")
        return False
    if key in TOP:
        return True
    if key in zero:
        notes.append(f"{key}: without effect where it stands; DeepSpeed looks for it in {ZERO}")
    else:
        notes.append(f"{key}: without effect; DeepSpeed knows no such key{nearest(key, sorted(TOP))}")
    return False


def _known_in_zero(key: str, zero: set[str], notes: list[str]) -> bool:
    if key in zero:
        return True
    where = "; DeepSpeed looks for it outside" if key in TOP else f"; DeepSpeed knows no such key{nearest(key, sorted(zero))}"
    notes.append(f"{ZERO}.{key}: without effect where it stands{where}")
    return False


def _fill(made: dict[str, Any], recipe: Recipe, width: int, notes: list[str]) -> None:
    """`auto`, and what the file leaves to the recipe. Buckets are as transformers measures them."""
    section = made[ZERO]
    sizes = {
        "reduce_bucket_size": width**2,
        "stage3_prefetch_bucket_size": 9 * width**2 // 10,
        "stage3_param_persistence_threshold": 10 * width,
    }
    for key, size in sizes.items():
        if section.get(key) == "auto":
            section[key] = size
    asked = made.get("gradient_clipping", "auto")
    made["gradient_clipping"] = recipe.optimizer.max_grad_norm if asked == "auto" else asked
    if made["gradient_clipping"] != recipe.optimizer.max_grad_norm:
        notes.append(f"gradient_clipping: {asked} is in force, not the recipe's optimizer.max_grad_norm {recipe.optimizer.max_grad_norm}")
    _fill_dtype(made, recipe.precision.dtype, notes)
    for where in (made, *(value for value in made.values() if isinstance(value, dict))):
        for key in [key for key, value in where.items() if value == "auto"]:
            del where[key]
            notes.append(f"{key}: auto is DeepSpeed's default here")


def _fill_dtype(made: dict[str, Any], wanted: str, notes: list[str]) -> None:
    if "bfloat16" in made:  # its old name
        made["bf16"] = made.pop("bfloat16")
    stated = {name: made.get(name, {}).get("enabled", "auto" if name not in made else True) for name in ("bf16", "fp16")}
    on = [name for name, value in stated.items() if value is True]
    if len(on) > 1:
        raise RequestError("engine.deepspeed: expected bf16 or fp16, found both enabled")
    if on and on[0] != wanted:
        notes.append(f"{on[0]}.enabled: true is in force, not the recipe's precision.dtype {wanted}")
    chosen = on[0] if on else wanted
    if stated.get(chosen) is False:
        notes.append(f"{chosen}.enabled: false is in force, not the recipe's precision.dtype {chosen}")
        chosen = "fp32"
    for name in ("bf16", "fp16"):
        made[name] = made.get(name, {}) | {"enabled": name == chosen}
