from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, processors

from schemas import Record, RequestError
from trainer.recipe import TokenizerChoice
from trainer.text import template, tokenizer, vocabulary
from trainer.text.rendered import IMAGE, tokenise

SPECIAL_LOOKING = ["</s>", "<s>", "<unk>", "<pad>", "<image>", "[SEG]", "<|im_end|>", "<think>", "a</s>b", " </s> "]


@pytest.fixture
def crowded(tmp_path: Path) -> tokenizer.Tokenizer:
    """A byte-level tokenizer with many added tokens, one of them not flagged special, and a run of spaces that is ordinary text."""
    made = vocabulary.make(["a b c"], 300)
    made.add_special_tokens(["<unk>", "<image>", "[SEG]", "<|im_end|>"])
    made.add_tokens([AddedToken("<think>"), AddedToken("    ", normalized=False)])
    vocabulary.save(made, tmp_path)
    return tokenizer.load(TokenizerChoice(path=str(tmp_path)))


@pytest.fixture
def metaspace(tmp_path: Path) -> Path:
    """A folder with a LLaMA-like tokenizer: byte fallback, a space put in front."""
    letters = ["▁", "a", "b", "s", "/", "<", ">", "▁a", "▁b"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{letter: 3 + n for n, letter in enumerate(letters)}}
    vocab |= {f"<0x{byte:02X}>": 20 + byte for byte in range(256)}
    bpe = models.BPE(vocab=vocab, merges=[("▁", "a"), ("▁", "b")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    made = tokenizers.Tokenizer(bpe)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore[assignment]
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # type: ignore[assignment]
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}')
    return tmp_path


@pytest.mark.parametrize("text", SPECIAL_LOOKING)
def test_text_is_data_and_never_a_special_token(crowded: tokenizer.Tokenizer, text: str) -> None:
    ids, spans = crowded.encode(text, first=True)

    assert not set(ids) & set(crowded.specials.values())
    assert "".join(text[start:end] for start, end in spans) == text


@pytest.mark.parametrize("text", SPECIAL_LOOKING)
def test_a_record_of_special_looking_text_has_only_the_special_tokens_of_its_template(
    crowded: tokenizer.Tokenizer, told: Callable[..., Record], text: str
) -> None:
    stored = told(("user", f"<0>{text}"), ("assistant", text))

    out = tokenise(template.pieces(stored, stored.turns, "v1"), crowded)

    assert [id for id in out.ids if id in crowded.specials.values() or id == IMAGE] == [crowded.bos, IMAGE, crowded.eos]


def test_runs_of_spaces_stay_one_token(crowded: tokenizer.Tokenizer) -> None:
    assert len(crowded.encode("a    b", first=True)[0]) == 3
    assert "    " not in crowded.specials


def test_specials_are_found_only_when_asked_for(crowded: tokenizer.Tokenizer) -> None:
    assert crowded.split("a</s>b<s>") == ["a", "</s>", "b", "<s>"]


def test_a_llama_chunk_gets_one_space_in_front_and_what_follows_an_end_token_none(metaspace: Path) -> None:
    llama = tokenizer.load(TokenizerChoice(path=str(metaspace)))

    assert llama.encode("a b", first=True) == ([10, 11], [(0, 1), (1, 3)])
    assert llama.encode("a b", first=False) == ([4, 11], [(0, 1), (1, 3)])
    assert llama.encode(" a", first=True) == ([3, 10], [(0, 0), (0, 2)])
    assert llama.encode("", first=True) == ([], [])
    assert llama.encode("</s>", first=False)[0] == [8, 7, 6, 9]
    assert (llama.bos, llama.eos, llama.unk) == (1, 2, 0)


def test_the_form_of_the_file_can_be_asked_for(metaspace: Path) -> None:
    as_saved = tokenizer.load(TokenizerChoice(path=str(metaspace), form="file"))

    assert as_saved.encode("a b", first=False)[0] == [10, 11]


def test_a_character_outside_the_vocabulary_is_bytes(metaspace: Path) -> None:
    llama = tokenizer.load(TokenizerChoice(path=str(metaspace)))

    assert llama.encode("é", first=False)[0] == [20 + 0xC3, 20 + 0xA9]


def test_a_sentencepiece_file_is_read_without_its_library(tmp_path: Path) -> None:
    pieces = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("▁a", -1.0, 1),
        ("▁ab", -2.0, 1),
        ("▁", -3.0, 1),
        ("a", -4.0, 1),
        ("b", -5.0, 1),
    ]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(pieces))

    llama = tokenizer.load(TokenizerChoice(path=str(tmp_path)))

    assert llama.encode("ab a", first=True)[0] == [4, 3]
    assert llama.encode("ab", first=False)[0] == [6, 7]
    assert (llama.bos, llama.eos, llama.unk, llama.size) == (1, 2, 0, 8)


def test_a_sentencepiece_file_that_normalises_its_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece([("<unk>", 0.0, 2)], normalizer=b"\x0a\x08nmt_nfkc\x12\x01x"))

    with pytest.raises(RequestError, match="expected a sentencepiece model that leaves its text as it is"):
        tokenizer.load(TokenizerChoice(path=str(tmp_path)))


def sentencepiece(pieces: list[tuple[str, float, int]], normalizer: bytes = b"\x20\x00") -> bytes:
    """The bytes of a BPE model with these (text, score, kind) pieces."""
    body = b""
    for text, score, kind in pieces:
        body += field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))
    return body + field(2, b"\x18\x02") + field(3, normalizer)


def field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2, len(value)]) + value


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("other.json", b"{}", "expected tokenizer.json, tokenizer.model or a .tiktoken file, found none"),
        ("tokenizer.json", b"{", "expected JSON"),
        ("tokenizer.json", b"[]", "expected a JSON object, found list"),
        ("tokenizer.json", b'{"a": 1}', "expected a tokenizer"),
        ("tokenizer.model", b"\xff\xff\xff", "expected a sentencepiece model"),
    ],
)
def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path, file: str, content: bytes, told: str) -> None:
    (tmp_path / file).write_bytes(content)

    with pytest.raises(RequestError, match=told):
        tokenizer.load(TokenizerChoice(path=str(tmp_path)))


def test_a_tokenizer_that_does_not_say_its_end_token_is_asked_for_it(tmp_path: Path) -> None:
    vocabulary.make(["a"], 300).save(str(tmp_path / "tokenizer.json"))

    with pytest.raises(RequestError, match=r"expected an eos_token in tokenizer_config.json, found None; give --set tokenizer.eos=TEXT"):
        tokenizer.load(TokenizerChoice(path=str(tmp_path)))
    assert tokenizer.load(TokenizerChoice(path=str(tmp_path), eos="</s>")).eos == 2


def test_the_same_texts_make_the_same_tokenizer() -> None:
    texts = ["the cat sat on the mat", "the dog sat on the log"] * 5

    assert vocabulary.make(texts, 280).to_str() == vocabulary.make(texts, 280).to_str()
    assert vocabulary.make(texts, 270).get_vocab_size() == 270
    with pytest.raises(RequestError, match="--vocab: expected at least 259, found 258"):
        vocabulary.make(texts, 258)


def test_transformers_reads_the_made_tokenizer(words: str) -> None:
    transformers = pytest.importorskip("transformers")

    made = transformers.PreTrainedTokenizerFast.from_pretrained(words)

    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id) == (1, 2, 0)
    assert json.loads((Path(words) / "tokenizer_config.json").read_text())["eos_token"] == "</s>"
