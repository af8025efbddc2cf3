from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from schemas import RequestError
from trainer.parts import lora
from trainer.recipe import Lora
from trainer.weights import qwen1

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
CHOICE = Lora(rank=2, alpha=4, targets=("q_proj", "v_proj"))


def qwen2() -> transformers.Qwen2ForCausalLM:
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES)).eval()


def adapted(choice: Lora = CHOICE) -> transformers.Qwen2ForCausalLM:
    model = qwen2()
    lora.put(model, choice)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.arange(8)[None]).logits


def test_only_the_adapter_is_trained_and_all_means_every_linear_layer_but_the_head() -> None:
    model = adapted(Lora(rank=2))

    assert {name for name, p in model.named_parameters() if p.requires_grad} == {n for n, _ in model.named_parameters() if "lora_" in n}
    assert lora.targets_put(model) == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_peft_reads_what_is_written_and_gives_the_same_logits(tmp_path: Path) -> None:
    model = adapted()
    lora.save(model, CHOICE, tmp_path)

    read = peft.PeftModel.from_pretrained(qwen2(), str(tmp_path)).eval()

    torch.testing.assert_close(logits(read), logits(model))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_what_peft_writes_is_read(tmp_path: Path, suffix: str) -> None:
    theirs = peft.get_peft_model(qwen2(), peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    theirs.save_pretrained(str(tmp_path))
    if suffix == "bin":
        (tmp_path / "adapter_model.safetensors").unlink()
        torch.save(peft.get_peft_model_state_dict(theirs), tmp_path / "adapter_model.bin")

    model = adapted(Lora(rank=2, alpha=4, targets=("q_proj", "v_proj"), weights=str(tmp_path)))

    torch.testing.assert_close(logits(model), logits(theirs.eval()))


def test_a_merged_model_is_the_plain_class_with_the_same_logits() -> None:
    model = adapted()
    before = logits(model)

    lora.merge(model)

    torch.testing.assert_close(logits(model), before)
    assert model.state_dict().keys() == qwen2().state_dict().keys()


def test_qwen_s_own_names_stand_for_qwen2_s() -> None:
    assert lora.targets(qwen2(), ["c_attn", "w1", "w2"]) == ["q_proj", "k_proj", "v_proj", "up_proj", "gate_proj"]
    with pytest.raises(RequestError, match=r"lora.targets: expected of down_proj, .*, found W_pack"):
        lora.targets(qwen2(), ["W_pack"])


def test_an_adapter_of_another_scale_or_place_is_told(tmp_path: Path) -> None:
    lora.save(adapted(), CHOICE, tmp_path)
    stated = json.loads((tmp_path / "adapter_config.json").read_text())

    with pytest.raises(RequestError, match=r"expected lora.rank = 2 and lora.alpha = 4, as the adapter was trained"):
        adapted(Lora(rank=2, alpha=8, targets=("q_proj", "v_proj"), weights=str(tmp_path)))
    with pytest.raises(RequestError, match="found a name it does not have"):
        adapted(Lora(rank=2, alpha=4, targets=("q_proj",), weights=str(tmp_path)))
    with pytest.raises(RequestError, match=r"expected adapter_model.safetensors or adapter_model.bin, found neither"):
        adapted(Lora(rank=2, alpha=4, weights=str(tmp_path / "nowhere")))
    assert stated["target_modules"] == ["q_proj", "v_proj"]


def test_qwen_s_weights_go_there_and_back() -> None:
    plain = qwen2().state_dict()

    there = qwen1.from_qwen2(plain)

    assert there["transformer.h.1.attn.c_attn.weight"].shape == (48, 16)
    assert {name: tensor.shape for name, tensor in qwen1.to_qwen2(there).items()} == {name: tensor.shape for name, tensor in plain.items()}
    assert all(torch.equal(tensor, plain[name]) for name, tensor in qwen1.to_qwen2(copy.deepcopy(there)).items())
    with pytest.raises(RequestError, match=r"expected Qwen's parameters, found transformer.h.0.attn.rotary.weight"):
        qwen1.to_qwen2({"transformer.h.0.attn.rotary.weight": torch.zeros(1)})
