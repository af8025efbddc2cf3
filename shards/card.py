"""The dataset card, README.md: with it, HF datasets reads every record and every picture of the tars.

Without `configs` the parquet files win; without `dataset_info.features` HF infers the columns from five records, and drops what the
others have besides. The features are made from the record's structs, so they can not fall behind.
https://huggingface.co/docs/hub/datasets-cards
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Any

import msgspec

from schemas import Record

_DTYPES = {str: "string", int: "int64", float: "float64", bool: "bool"}


def card(source: str, suffixes: Iterable[str], totals: dict[str, int]) -> str:
    """The text of README.md. suffixes: what follows the key in every member name, `0.jpg`, `json`."""
    pictures = sorted(set(suffixes) - {"json"})
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: '*.tar'",
        "dataset_info:",
        "  features:",
        "  - name: __key__",
        "    dtype: string",
        "  - name: __url__",
        "    dtype: string",
        "  - name: json",
        "    struct:",
        *_fields(Record, "    "),
        *(line for suffix in pictures for line in _picture(suffix)),
        "---",
        f"# {source}",
        "",
        f"{totals['written']} records with {totals['images']} pictures: WebDataset tars of interleaved image-text records (format 1).",
        f"{totals['read']} inputs were read, {totals['rejected']} rejected: `rejects.parquet` names each, `manifest.json` counts them.",
        "",
    ]
    return "\n".join(lines)


def _picture(suffix: str) -> list[str]:
    return [f"  - name: {suffix}", "    dtype:", "      image:", "        decode: false"]


def _fields(struct: type[msgspec.Struct], indent: str) -> list[str]:
    hints = typing.get_type_hints(struct)
    return [line for name in struct.__struct_fields__ for line in _field(name, hints[name], indent)]


def _field(name: str, hint: Any, indent: str) -> list[str]:
    return [f"{indent}- name: {name}", *_type(_not_null(hint), indent + "  ")]


def _type(hint: Any, indent: str) -> list[str]:
    if hint in _DTYPES:
        return [f"{indent}dtype: {_DTYPES[hint]}"]
    if typing.get_origin(hint) is list:
        return _list(_not_null(typing.get_args(hint)[0]), indent)
    return [f"{indent}struct:", *_fields(hint, indent)]


def _list(item: Any, indent: str) -> list[str]:
    if item in _DTYPES:
        return [f"{indent}list: {_DTYPES[item]}"]
    if typing.get_origin(item) is list:
        return [f"{indent}list:", *_list(_not_null(typing.get_args(item)[0]), indent + "  ")]
    return [f"{indent}list:", *_fields(item, indent)]


def _not_null(hint: Any) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint
