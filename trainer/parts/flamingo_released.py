"""The shapes of OpenFlamingo's released models, for trials with random weights and for counting: `recipe("openflamingo-3b")`.

Sources: the table in the README of mlfoundations/open_flamingo at 655f693, and the language models' own cards. All have OpenAI's CLIP
ViT-L/14, 64 latents, 8 heads of 64, 6 layers of resampler, and 50,280 rows: GPT-NeoX's 50,277 tokens and three new ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from schemas import RequestError
from trainer.recipe import Family, Flamingo, Freeze, LanguageModel, Recipe, TokenizerChoice, VisionTower

ROWS = 50_280


class Released(NamedTuple):
    """What differs between them."""

    language: dict[str, Any]  # transformers' configuration
    every: int  # layers of the language model a cross-attention


MODELS = {
    # anas-awadalla/mpt-1b-redpajama-200b, as MPT
    "openflamingo-3b": Released(
        {"model_type": "mpt", "d_model": 2048, "n_heads": 16, "n_layers": 24, "max_seq_len": 2048, "attn_config": {"qk_ln": True}}, 1
    ),
    # togethercomputer/RedPajama-INCITE-Base-3B-v1
    "openflamingo-4b": Released(
        {
            "model_type": "gpt_neox",
            "hidden_size": 2560,
            "intermediate_size": 10_240,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "max_position_embeddings": 2048,
            "use_parallel_residual": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        },
        2,
    ),
    # anas-awadalla/mpt-7b
    "openflamingo-9b": Released({"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "max_seq_len": 2048}, 4),
}


def recipe(name: str) -> Recipe:
    """A recipe of this shape, with new weights. Raises RequestError where no release has the name."""
    if name not in MODELS:
        raise RequestError(f"expected one of {', '.join(MODELS)}, found {name}")
    made = MODELS[name]
    return Recipe(
        template="flamingo",
        model=Family(family="flamingo"),
        tokenizer=TokenizerChoice(form="file", add=("<|endofchunk|>", "<image>", "<PAD>")),
        vision=VisionTower(open_clip="ViT-L-14", select_layer=-1),
        language=LanguageModel(config={**made.language, "vocab_size": ROWS}),
        flamingo=Flamingo(every=made.every),
        freeze=Freeze(language=True),
    )
