from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import shards
from schemas import RequestError, ShardError
from schemas.record import image, image_part, record, text_part, turn
from trainer import assembly, blank, loop
from trainer import recipe as recipes
from trainer.assembly import Assembly
from trainer.data.loader import Loader
from trainer.engines import start
from trainer.log import RunFolder
from trainer.recipe import Recipe

Tiny = Callable[..., Recipe]


def run(recipe: Recipe) -> tuple[dict, list[dict], Assembly]:
    """The result, the lines of the log, and the trained parts."""
    made = assembly.assemble(recipe)
    with RunFolder(recipe) as folder:
        result = loop.train(made, folder)
    lines = (Path(result["out"]) / "log.jsonl").read_text().splitlines()
    return result, [json.loads(line) for line in lines], made


def gradients(recipe: Recipe) -> dict[str, torch.Tensor]:
    made = assembly.assemble(recipe)
    engine = start.build(made.model, recipe)
    with Loader(loop.feed(made), made.mixture.start(), stop=1, workers=0) as loader:
        step = next(loader)
    loop.backward(engine, recipe, step.made, loop._exchanged(step, recipe, engine))
    return {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}


def test_the_loss_falls_and_the_model_has_to_look(tiny: Tiny) -> None:
    result, lines, made = run(tiny("steps=60", "freeze.vision=false", "sources.colours.batch_size=4"))

    seen = blank.compare(made, blank.first_examples(made, 4))

    assert lines[0]["loss"] > 5
    assert result["loss"] < 0.5
    assert seen.records == 4
    assert seen.picture < 0.5
    assert seen.blank > 2 * seen.picture


def test_a_step_is_written_down(tiny: Tiny) -> None:
    result, lines, _ = run(tiny("sources.colours.batch_size=2", "schedule.warmup_steps=4"))

    assert [line["step"] for line in lines] == list(range(8))
    assert [line["lr"] for line in lines[:5]] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01])
    assert all(line["images"] == 2 and line["updated"] and line["seconds_waiting"] >= 0 for line in lines)
    assert lines[0]["loss"] == pytest.approx(lines[0]["loss_by_source"]["colours"], rel=1e-6)
    assert (result["steps"], result["skipped_updates"], result["bad_records"]) == (8, 0, {})


def test_the_run_folder_holds_the_recipe_and_the_trained_parts(tiny: Tiny) -> None:
    recipe = tiny("steps=1")

    result, _, made = run(recipe)

    folder = Path(result["out"])
    saved = safetensors.torch.load_file(folder / "trained.safetensors")
    assert recipes.load(str(folder / "recipe.toml")) == recipe
    assert {name.split(".")[0] for name in saved} == {"projector", "language"}
    assert torch.equal(saved["projector.0.weight"], made.model.get_parameter("projector.0.weight"))


def test_the_same_recipe_gives_the_same_weights(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(tiny("steps=3", f"out={tmp_path}/{name}"))

    one, two = ((tmp_path / name / "trained.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_run_never_writes_over_another(tiny: Tiny) -> None:
    run(tiny("steps=1"))

    with pytest.raises(RequestError, match="expected a new or empty folder"):
        run(tiny("steps=1"))


def test_text_only_rows_train_beside_rows_with_pictures(tiny: Tiny, colours: str, sums: str) -> None:
    recipe = tiny("steps=2", sources=[f"colours={colours}", f"sums={sums}"])

    _, lines, _ = run(recipe)

    assert set(lines[0]["loss_by_source"]) == {"colours", "sums"}
    assert lines[0]["loss"] == pytest.approx(sum(lines[0]["loss_by_source"].values()), rel=1e-6)


def test_a_source_without_pictures_trains_a_projector_not_at_all(tiny: Tiny, sums: str) -> None:
    _, lines, _ = run(tiny("steps=2", "freeze.language=true", sources=[f"sums={sums}"]))

    assert lines[1]["grad_norm"] == 0


def test_a_source_s_loss_is_per_token_and_its_multiplier_scales_its_gradient(tiny: Tiny, colours: str, sums: str) -> None:
    both = [f"colours={colours}", f"sums={sums}"]
    first, second = gradients(tiny(sources=both[:1])), gradients(tiny(sources=both[1:]))

    mixed = gradients(tiny("sources.sums.loss_multiplier=0.25", sources=both))

    for name in ("language.lm_head.weight", "language.model.layers.0.mlp.up_proj.weight"):
        torch.testing.assert_close(mixed[name], first[name] + 0.25 * second[name], rtol=1e-4, atol=1e-6)


def test_multiplier_zero_gives_no_gradient_from_that_source(tiny: Tiny, colours: str, sums: str) -> None:
    alone = gradients(tiny(sources=[f"sums={sums}"]))

    muted = gradients(tiny("sources.colours.loss_multiplier=0", sources=[f"colours={colours}", f"sums={sums}"]))

    assert muted["projector.0.weight"].abs().max() == 0
    torch.testing.assert_close(muted["language.lm_head.weight"], alone["language.lm_head.weight"])


def test_a_step_with_nothing_to_train_on_skips_the_update_and_counts_it(tiny: Tiny, tmp_path: Path) -> None:
    silent = [turn("user", [text_part("a")]), turn("assistant", [text_part("b")], train=False)]
    shards.write(tmp_path / "silent", [(record("silent", turns=silent), [], [])])
    recipe = tiny("steps=2", sources=[f"silent={tmp_path}/silent"])
    before = {name: p.clone() for name, p in assembly.assemble(recipe).model.named_parameters()}

    result, lines, made = run(recipe)

    assert result["skipped_updates"] == 2
    assert result["loss"] is None
    assert [(line["updated"], line["loss"], line["tokens_supervised"]) for line in lines] == [(False, None, 0)] * 2
    assert all(torch.equal(before[name], p) for name, p in made.model.named_parameters())


@pytest.fixture
def half_bad(tmp_path: Path, photo: Callable[..., bytes]) -> str:
    """Shards of a record that trains, and one whose picture has a header and no pixels."""
    whole = photo(16, 16)
    cut = whole[: len(whole) // 2]
    items = []
    for data in (whole, cut):
        shown = [image(width=16, height=16, format="jpg", bytes=len(data))]
        turns = [turn("user", [image_part(0)]), turn("assistant", [text_part("noise")])]
        items.append((record("half", images=shown, turns=turns), [data], []))
    shards.write(tmp_path / "half", items)
    return str(tmp_path / "half")


def test_a_bad_record_leaves_a_hole_and_is_counted(tiny: Tiny, half_bad: str) -> None:
    result, lines, _ = run(tiny("steps=3", "sources.half.batch_size=2", sources=[f"half={half_bad}"]))

    assert result["bad_records"] == {"half": 3}
    assert [line["images"] for line in lines] == [1, 1, 1]


def test_too_many_bad_records_end_the_run(tiny: Tiny, half_bad: str) -> None:
    with pytest.raises(ShardError, match=r"half 00000\S+: bad records: expected at most 1 of 10,000 \(0.010%\), found 2 of \d"):
        run(tiny("steps=9", "bad_records.rate=0.0001", "sources.half.batch_size=2", sources=[f"half={half_bad}"]))


def test_a_loss_that_is_no_number_ends_the_run(tiny: Tiny) -> None:
    with pytest.raises(loop.DivergedError, match="expected a finite n"):
        run(tiny("steps=20", "optimizer.lr=1e30", "optimizer.max_grad_norm=0"))


def test_weight_decay_is_for_matrices_alone(tiny: Tiny) -> None:
    from trainer.engines import optimizer

    recipe = tiny("optimizer.weight_decay=0.1")
    made = optimizer.build(assembly.assemble(recipe).model, recipe.optimizer)

    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in made.param_groups] == [(0.1, {2}), (0.0, {1})]
