"""Where the weights that recipes name are to be had: told where they are missing. Nothing is downloaded from here."""

from __future__ import annotations

from pathlib import Path

HUB = {  # a folder's name: its repository on huggingface.co
    "clip-vit-large-patch14": "openai/clip-vit-large-patch14",
    "clip-vit-large-patch14-336": "openai/clip-vit-large-patch14-336",
    "siglip-so400m-patch14-384": "google/siglip-so400m-patch14-384",
    "vicuna-7b-v1.5": "lmsys/vicuna-7b-v1.5",
    "vicuna-13b-v1.5": "lmsys/vicuna-13b-v1.5",
    "llava-v1.5-7b": "liuhaotian/llava-v1.5-7b",
    "llava-v1.5-13b": "liuhaotian/llava-v1.5-13b",
    "llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5": "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5",
    "Qwen-7B-Chat": "Qwen/Qwen-7B-Chat",
    "mpt-1b-redpajama-200b": "anas-awadalla/mpt-1b-redpajama-200b",
    "mpt-1b-redpajama-200b-dolly": "anas-awadalla/mpt-1b-redpajama-200b-dolly",
    "mpt-7b": "anas-awadalla/mpt-7b",
    "RedPajama-INCITE-Base-3B-v1": "togethercomputer/RedPajama-INCITE-Base-3B-v1",
    "RedPajama-INCITE-Instruct-3B-v1": "togethercomputer/RedPajama-INCITE-Instruct-3B-v1",
    "OpenFlamingo-3B-vitl-mpt1b": "openflamingo/OpenFlamingo-3B-vitl-mpt1b",
    "OpenFlamingo-4B-vitl-rpj3b": "openflamingo/OpenFlamingo-4B-vitl-rpj3b",
    "OpenFlamingo-9B-vitl-mpt7b": "openflamingo/OpenFlamingo-9B-vitl-mpt7b",
}


def told(path: str | Path) -> str:
    """The end of a message about a missing file or folder: where to get it."""
    for folder in (Path(path), *Path(path).parents):
        if folder.name in HUB:
            return f"; get it with: hf download {HUB[folder.name]} --local-dir {folder}"
    return "; download it there first"
