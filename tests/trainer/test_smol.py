"""The two models that come in packages: what they say and see before anything is trained, and that the recipe trains."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pillow

import shards
from schemas import RequestError
from schemas.record import image, image_part, record, text_part, turn
from tests.bench import sees
from trainer import log
from trainer import recipe as recipes
from trainer.__main__ import main
from trainer.parts import efficientnet, language, tower
from trainer.recipe import Recipe, VisionTower
from trainer.text import tokenizer
from trainer.use import trained
from trainer.weights import files, packaged

NEW = VisionTower(config={"model_type": efficientnet.KIND}, select_layer=-1)


@pytest.fixture(scope="module")
def smol() -> Recipe:
    """The recipe; skips where a package is not installed."""
    recipe = recipes.load("smol")
    try:
        for place in (recipe.language.weights, recipe.vision.weights):
            packaged.path(str(place))
    except RequestError as error:
        pytest.skip(str(error))
    return recipe


@pytest.fixture(scope="module")
def spoken(smol: Recipe) -> tuple[tokenizer.Tokenizer, Any]:
    """SmolLM2's tokenizer and itself."""
    words = tokenizer.load(smol.tokenizer)
    return words, language.build(smol.language, words.size).eval()


@torch.no_grad()
def loss(spoken: tuple[tokenizer.Tokenizer, Any], text: str) -> float:
    """Nats a token."""
    words, model = spoken
    ids_BT = torch.tensor([[0, *words.encode(text, first=True)[0]]])
    return float(model(ids_BT, labels=ids_BT).loss)


def test_english_is_likelier_than_its_words_in_disorder(spoken: tuple[tokenizer.Tokenizer, Any]) -> None:
    sense = loss(spoken, "The cat sat on the mat and looked out of the window at the rain.")
    disorder = loss(spoken, "Mat the on window cat looked the rain and the sat out at of the.")

    assert sense < 4
    assert disorder > sense + 2


def test_it_goes_on_in_english(spoken: tuple[tokenizer.Tokenizer, Any]) -> None:
    words, model = spoken
    ids = words.encode("The capital of France is", first=True)[0]

    out = model.generate(torch.tensor([ids]), max_new_tokens=2, do_sample=False, pad_token_id=words.eos)

    assert words.backend.decode(out[0].tolist()).startswith("The capital of France is Paris")


def test_its_tokens_are_those_that_smollm_writes(spoken: tuple[tokenizer.Tokenizer, Any]) -> None:
    words, _ = spoken

    assert words.size == 49152
    assert {name: words.specials[name] for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")} == {
        "<|endoftext|>": 0,
        "<|im_start|>": 1,
        "<|im_end|>": 2,
    }
    assert len(words.encode("2024", first=True)[0]) == 4  # digits stand alone


# Of ImageNet's 1,000 classes, those that say what is on a photograph of scikit-image.
@pytest.mark.parametrize(
    ("name", "classes"), [("chelsea.png", {281, 282, 285}), ("coffee.png", {504, 967, 968}), ("rocket.jpg", {657, 744})]
)
def test_the_tower_sees_what_is_on_a_photograph(smol: Recipe, name: str, classes: set[int]) -> None:
    data = pytest.importorskip("skimage.data", reason="no photographs: scikit-image is not installed")
    photo = (Path(data.__file__).parent / name).read_bytes()
    made, stored = tower.build(smol.vision), files.read(packaged.path(str(smol.vision.weights)))

    patches_NPW = tower.patches(made, torch.from_numpy(tower.preprocess(smol).pixels(photo))[None], smol.vision)

    map_NPW = torch.nn.functional.relu6(patches_NPW * stored["_bn1.weight"] + stored["_bn1.bias"])  # what the tower leaves to others
    logits = map_NPW.mean(1)[0] @ stored["_fc.weight"].T + stored["_fc.bias"]
    assert int(logits.argmax()) in classes
    assert patches_NPW.shape == (1, 49, 1280) == (1, tower.patch_count(made, smol.vision), tower.width(made))


def test_patches_stand_row_by_row() -> None:
    torch.manual_seed(0)
    made, pixels_NCHW = tower.build(NEW), torch.randn(1, 3, 224, 224)

    patches_NPW = tower.patches(made, pixels_NCHW, NEW)

    assert torch.equal(patches_NPW[0, 7 * 2 + 3], made(pixels_NCHW)[0, :, 2, 3])


def test_a_picture_has_the_same_patches_in_any_company_also_while_training() -> None:
    torch.manual_seed(0)
    made, pixels_NCHW = tower.build(NEW), torch.randn(3, 3, 224, 224)
    alone = tower.patches(made, pixels_NCHW[:1], NEW)
    statistics = {name: tensor.clone() for name, tensor in made.named_buffers()}

    made.train()
    together = tower.patches(made, pixels_NCHW, NEW)[:1]

    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, statistics[name]) for name, tensor in made.named_buffers())


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ({"select_layer": -2}, "vision.select_layer: expected -1 for efficientnet_lite0, found -2"),
        ({"config": {"model_type": efficientnet.KIND, "width": 2}}, "vision.config: expected model_type alone, found model_type, width"),
        ({"weights": "/nowhere.pth"}, "/nowhere.pth: expected weights, found no such file or folder"),
    ],
)
def test_what_the_tower_can_not_be_is_refused(choice: dict[str, Any], found: str) -> None:
    with pytest.raises(RequestError, match=found):
        tower.build(VisionTower(**{"config": NEW.config, "select_layer": -1, **choice}))


@pytest.fixture
def two(tmp_path: Path) -> str:
    """Shards of two flat pictures and a caption each."""
    items = []
    for colour in ("red", "blue"):
        stream = io.BytesIO()
        Pillow.new("RGB", (64, 48), colour).save(stream, "PNG")
        shown = [image(width=64, height=48, format="png", bytes=len(stream.getvalue()))]
        spoken = [turn("text", [image_part(0), text_part(f"All of it is {colour}.")])]
        items.append((record("smol", images=shown, turns=spoken), [stream.getvalue()], []))
    shards.write(tmp_path / "two", iter(items))
    return str(tmp_path / "two")


def test_a_few_steps_lower_the_loss_and_train_the_projector_and_lora_alone(smol: Recipe, two: str, tmp_path: Path) -> None:
    changes = ["steps=5", "threads=1", "sources.captions.batch_size=2", "schedule.warmup_steps=0", "checkpoint.every=0"]
    settings = [word for change in changes for word in ("--set", change)]

    assert main(["train", "smol", "--source", f"captions={two}", "--out", str(tmp_path / "run"), *settings]) == 0

    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / log.LINES).read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert {name.split(".")[0] for name in files.read(tmp_path / "run") if "lora_" not in name} == {"projector"}
    run = trained.load(tmp_path / "run")
    sums_PC, counts_C = sees.losses(run.model, sees.photographs(run, two))  # holds itself against the model's own loss
    assert sums_PC.shape == (2, 2)
    assert sums_PC.mean() / counts_C.mean() < losses[0]


def test_the_interval_holds_the_mean_and_shrinks_with_more_photographs() -> None:
    gains = [0.1, 0.5, -0.2, 0.4, 0.3, 0.0]
    few, many = sees.interval(gains), sees.interval(gains * 20)

    assert few[0] < 0.18 < few[1]
    assert few[0] < many[0] < 0.18 < many[1] < few[1]
