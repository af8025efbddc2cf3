"""Values out of range."""

from __future__ import annotations

from schemas import RequestError
from trainer.recipe import typed
from trainer.recipe.keys import Recipe


def check(recipe: Recipe, path: str) -> None:
    """Raises RequestError for a value out of range; `path` is what the message begins with."""
    _at_least(path, 1, steps=recipe.steps, max_tokens=recipe.max_tokens)
    _at_least(path, 0, seed=recipe.seed, threads=recipe.threads)
    _check_reading(recipe, path)
    schedule, optimizer = recipe.schedule, recipe.optimizer
    _at_least(f"{path}: schedule", 0, warmup_steps=schedule.warmup_steps, warmup_ratio=schedule.warmup_ratio)
    _at_least(f"{path}: optimizer", 0, lr=optimizer.lr, weight_decay=optimizer.weight_decay, max_grad_norm=optimizer.max_grad_norm)
    for number, group in enumerate(optimizer.groups):
        own = {"lr": group.lr, "weight_decay": group.weight_decay}
        _at_least(f"{path}: optimizer.groups.{number}", 0, **{key: value for key, value in own.items() if value is not None})
    _numbers(path, "optimizer.betas", optimizer.betas, 2)
    flamingo, lora = recipe.flamingo, recipe.lora
    sizes = {"depth": flamingo.depth, "latents": flamingo.latents, "heads": flamingo.heads, "head_width": flamingo.head_width}
    _at_least(f"{path}: flamingo", 1, every=flamingo.every, **sizes)
    _at_least(f"{path}: lora", 0, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
    for name, numbers in (("pictures.mean", recipe.pictures.mean), ("pictures.std", recipe.pictures.std)):
        _numbers(path, name, numbers, 3)
    names = [source.name for source in recipe.sources]
    for source in recipe.sources:
        sizes = {"batch_size": source.batch_size, "window": source.window}
        given = {"micro_batch_size": source.micro_batch_size, "epoch_samples": source.epoch_samples}
        _at_least(f"{path}: sources.{source.name}", 1, **sizes, **{key: value for key, value in given.items() if value is not None})
        _at_least(f"{path}: sources.{source.name}", 0, loss_multiplier=source.loss_multiplier, flip=source.flip)
        if source.flip > 1:
            raise RequestError(f"{path}: sources.{source.name}: flip: expected at most 1, found {source.flip}")
        if names.count(source.name) > 1:
            raise RequestError(f"{path}: sources: expected different names, found {source.name} twice")


def _check_reading(recipe: Recipe, path: str) -> None:
    mixture, loader = recipe.mixture, recipe.loader
    sizes = {"batch_size": mixture.batch_size, "micro_batch_size": mixture.micro_batch_size, "group_steps": mixture.group_steps}
    _at_least(f"{path}: mixture", 1, **{key: value for key, value in sizes.items() if value is not None})
    if mixture.draw == "every" and (mixture.batch_size or mixture.micro_batch_size):
        raise RequestError(f"{path}: mixture: expected batch sizes of the sources where draw is every, found one of the mixture")
    for name, weight in mixture.groups.items():
        typed.read(float, weight, f"{path}: mixture.groups.{name}")
    _at_least(f"{path}: loader", 0, workers=loader.workers)
    _at_least(f"{path}: loader", 1, prefetch=loader.prefetch, cache_bytes=loader.cache_bytes)
    _at_least(f"{path}: loader", 0.001, timeout=loader.timeout)
    _at_least(f"{path}: engine", 0.001, timeout=recipe.engine.timeout)
    _at_least(f"{path}: log", 1, every=recipe.log.every)
    _at_least(f"{path}: checkpoint", 0, every=recipe.checkpoint.every)
    _at_least(f"{path}: checkpoint", 1, keep=recipe.checkpoint.keep)
    _at_least(f"{path}: bad_records", 0, rate=recipe.bad_records.rate)
    _at_least(f"{path}: bad_records", 1, run=recipe.bad_records.run)
    held_out = recipe.held_out
    _at_least(f"{path}: held_out", 0, every=held_out.every, records=held_out.records)
    _at_least(f"{path}: held_out", 1, batch_size=held_out.batch_size)


def _at_least(where: str, least: float, **values: float) -> None:
    for name, value in values.items():
        if not least <= value < float("inf"):  # refuses nan too
            raise RequestError(f"{where}: {name}: expected at least {least}, found {value}")


def _numbers(path: str, name: str, numbers: tuple[float, ...] | None, count: int) -> None:
    if numbers is not None and len(numbers) != count:
        raise RequestError(f"{path}: {name}: expected {count} numbers, found {len(numbers)}")
