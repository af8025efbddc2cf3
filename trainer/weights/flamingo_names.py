"""OpenFlamingo's checkpoints (checkpoint.pt, v2): a flat table of what was trained, under its names, read and written.

    ours            theirs
    perceiver.*     perceiver.*
    language.<list of layers>.I.gated_cross_attn_layer.*    lang_encoder.<list of layers>.I.gated_cross_attn_layer.*
    rows of the new tokens                                  their rows in lang_encoder.<embedding>.weight, the whole table
    rows of the new tokens in a head of its own             their rows in the head's table: embed_out.weight of GPT-NeoX

Names were not looked up in the released files but taken from OpenFlamingo's rules: open_flamingo/train/train_utils.py and
src/flamingo_lm.py at 655f693.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from schemas import RequestError
from trainer.weights import files
from trainer.weights.files import Tensors

_THEIRS, _OURS = "lang_encoder.", "language."
_BUFFERS = (".attention.bias", ".masked_bias", ".inv_freq")  # of GPT-NeoX, in files of an older transformers


def export(model: Any) -> Tensors:
    """What OpenFlamingo saves of this model, under its names, detached; the embedding whole."""
    saved: Tensors = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("perceiver."):
            saved[name] = tensor.detach()
        elif name.startswith(_OURS) and ".gated_cross_attn_layer." in name:
            saved[_THEIRS + name.removeprefix(_OURS)] = tensor.detach()
    for name, rows in _tables(model).items():
        saved[name] = rows.whole()
    return saved


def save(model: Any, path: Path) -> None:
    """Write checkpoint.pt."""
    torch.save({name: tensor.cpu().contiguous() for name, tensor in export(model).items()}, path)


def load(model: Any, path: str) -> None:
    """Read a checkpoint.pt, or ours. Raises RequestError: a name too many or missing, or another shape; both are told."""
    stored = {name: tensor for name, tensor in files.read(path).items() if not name.endswith(_BUFFERS)}
    own = model.state_dict()
    if any(name.startswith(_THEIRS) for name in stored):
        for name, rows in _tables(model).items():
            _take(rows, stored.pop(name, None), f"{path}: {name}", needed=rows is model.language.get_input_embeddings())
        stored = {_OURS + name.removeprefix(_THEIRS) if name.startswith(_THEIRS) else name: tensor for name, tensor in stored.items()}
        needed = {name for name in own if name.startswith("perceiver.") or ".gated_cross_attn_layer." in name}
    else:
        needed = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    files.load(model, stored, path, optional=own.keys() - needed)


def _take(rows: Any, whole_VD: torch.Tensor | None, where: str, *, needed: bool) -> None:
    """The new rows out of a stored table, which must be as long as the tokenizer's."""
    if whole_VD is None and needed:
        raise RequestError(f"{where}: expected the embedding, found none")
    if whole_VD is not None and whole_VD.shape != rows.weight.shape:
        raise RequestError(f"{where}: expected shape {tuple(rows.weight.shape)}, found {tuple(whole_VD.shape)}")
    if whole_VD is not None:
        rows.take(whole_VD)


def _tables(model: Any) -> dict[str, Any]:
    """The embedding, and the head where it is one of its own, by their names in a checkpoint."""
    language = model.language
    rows, head = language.get_input_embeddings(), language.get_output_embeddings()
    names = {id(module): name for name, module in language.named_modules()}
    tables = {f"{_THEIRS}{names[id(rows)]}.weight": rows}
    if head.weight is not rows.weight:
        name = "embed_out" if language.config.model_type == "gpt_neox" else names[id(head)]
        tables[f"{_THEIRS}{name}.weight"] = head
    return tables
