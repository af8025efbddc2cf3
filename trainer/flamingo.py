"""Flamingo: a resampler makes a picture 64 positions; gated cross-attentions let the text of a frozen language model look at them.

Alayrac et al. 2022, https://arxiv.org/abs/2204.14198; Awadalla et al. 2023 (OpenFlamingo), https://arxiv.org/abs/2308.01390. Trained are
the resampler, the cross-attentions, and the rows of two new tokens, <image> and <|endofchunk|>.

Axes: B rows, T tokens, N pictures of the batch, I pictures of a row, P patches, R latents of a picture, M = I * R, H heads, E head width,
W the tower's width, D the language model's, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from schemas import RequestError
from trainer.data.batch import Batch
from trainer.model import Model
from trainer.parts import language as languages
from trainer.parts import lora, tower
from trainer.recipe import Flamingo, Recipe, VisionTower
from trainer.text.flamingo_text import END_OF_CHUNK, IMAGE_TOKEN
from trainer.text.positions import Positions
from trainer.weights import flamingo_names


class Attention(nn.Module):
    """Heads that look from one sequence at another. No biases."""

    def __init__(self, width: int, media_width: int, choice: Flamingo) -> None:
        super().__init__()
        inner = choice.heads * choice.head_width
        self.heads = choice.heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(media_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def look(self, x_BTD: torch.Tensor, media_BMW: torch.Tensor, mask_B1TM: torch.Tensor | None = None) -> torch.Tensor:
        """What each position finds, (B, T, D)."""
        key_BMK, value_BMK = self.to_kv(media_BMW).chunk(2, dim=-1)
        query, key, value = (self._split(tensor) for tensor in (self.to_q(x_BTD), key_BMK, value_BMK))
        found_BHTE = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B1TM)
        return self.to_out(found_BHTE.transpose(1, 2).flatten(2))

    def _split(self, tensor_BTK: torch.Tensor) -> torch.Tensor:
        return tensor_BTK.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class PerceiverAttention(Attention):
    """Latents that look at the picture and at themselves."""

    def __init__(self, width: int, choice: Flamingo) -> None:
        super().__init__(width, width, choice)
        self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, patches_NPW: torch.Tensor, latents_NRW: torch.Tensor) -> torch.Tensor:
        latents_NRW = self.norm_latents(latents_NRW)
        return self.look(latents_NRW, torch.cat([self.norm_media(patches_NPW), latents_NRW], dim=1))


class Resampler(nn.Module):
    """Patches of a picture, however many, to R latents."""

    def __init__(self, width: int, choice: Flamingo) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(choice.latents, width))
        self.layers = nn.ModuleList(nn.ModuleList([PerceiverAttention(width, choice), _feed_forward(width)]) for _ in range(choice.depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, patches_NPW: torch.Tensor) -> torch.Tensor:
        """(N, P, W) to (N, R, W)."""
        latents_NRW = self.latents.expand(len(patches_NPW), -1, -1)
        for attention, feed_forward in cast(Any, self.layers):
            latents_NRW = latents_NRW + attention(patches_NPW, latents_NRW)
            latents_NRW = latents_NRW + feed_forward(latents_NRW)
        return self.norm(latents_NRW)


class CrossAttention(Attention):
    """Text that looks at pictures."""

    def __init__(self, width: int, media_width: int, choice: Flamingo) -> None:
        super().__init__(width, media_width, choice)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden_BTD: torch.Tensor, media: Media) -> torch.Tensor:
        """Zero where a position sees no picture."""
        return self.look(self.norm(hidden_BTD), media.latents_BMW, media.mask_B1TM) * media.sees_BT1


class GatedCrossAttention(nn.Module):
    """Cross-attention and a feed-forward layer, each behind a gate that starts closed."""

    def __init__(self, width: int, media_width: int, choice: Flamingo) -> None:
        super().__init__()
        self.attn = CrossAttention(width, media_width, choice)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.ff = _feed_forward(width)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_BTD: torch.Tensor, media: Media) -> torch.Tensor:
        hidden_BTD = hidden_BTD + self.attn(hidden_BTD, media) * self.attn_gate.tanh()
        return hidden_BTD + self.ff(hidden_BTD) * self.ff_gate.tanh()


@dataclass
class Media:
    """The pictures of the batch that is in the model, and who sees which: what every cross-attention shares.

    It stays until the next batch, because activation checkpointing runs layers again in the backward pass.
    """

    latents_BMW: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    mask_B1TM: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # bool; a row that sees nothing is all True
    sees_BT1: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # 0 where nothing is seen

    def put(self, latents_BIRW: torch.Tensor, seen_BT: torch.Tensor, *, immediate: bool) -> None:
        """`seen_BT`: how many pictures stand before each token, its own included."""
        number_M = torch.arange(1, latents_BIRW.shape[1] + 1, device=seen_BT.device).repeat_interleave(latents_BIRW.shape[2])
        mask_BTM = seen_BT[..., None] == number_M if immediate else seen_BT[..., None] >= number_M
        sees_BT1 = mask_BTM.any(-1, keepdim=True)
        self.latents_BMW = latents_BIRW.flatten(1, 2)
        self.mask_B1TM, self.sees_BT1 = (mask_BTM | ~sees_BT1)[:, None], sees_BT1.to(latents_BIRW.dtype)


class FlamingoLayer(nn.Module):
    """A layer of the language model, with a cross-attention before it."""

    def __init__(self, decoder_layer: nn.Module, attention: GatedCrossAttention, media: Media) -> None:
        super().__init__()
        self.gated_cross_attn_layer, self.decoder_layer, self.media = attention, decoder_layer, media

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.decoder_layer(self.gated_cross_attn_layer(hidden_states, self.media), *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What the language model asks its layer for (attention_type, ...) is the decoder layer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("decoder_layer"), name)


class NewRows(nn.Module):
    """An embedding table and rows of their own for new tokens: these train alone, without a mask over the table's gradient."""

    def __init__(self, table: nn.Module, ids: Sequence[int]) -> None:
        super().__init__()
        self.table, self.ids = table, list(ids)
        self.rows = nn.Parameter(cast(torch.Tensor, table.weight).detach()[self.ids].clone())

    @property
    def weight(self) -> torch.Tensor:
        """The table, whose own rows for the new tokens are not used."""
        return cast(torch.Tensor, self.table.weight)

    @property
    def embedding_dim(self) -> int:
        return int(self.weight.shape[1])

    def forward(self, x_BT: torch.Tensor) -> torch.Tensor:
        """Ids (B, T) to embeddings (B, T, D)."""
        out_BTD = self.table(x_BT)
        for number, id in enumerate(self.ids):
            out_BTD = torch.where((x_BT == id)[..., None], self.rows[number].to(out_BTD.dtype), out_BTD)
        return out_BTD

    def whole(self) -> torch.Tensor:
        """The table with the new rows in it, (V, D)."""
        return self.weight.detach().index_copy(
            0, torch.tensor(self.ids, device=self.weight.device), self.rows.detach().to(self.weight.dtype)
        )

    def take(self, whole_VD: torch.Tensor) -> None:
        """The new rows out of a whole table."""
        self.rows.data.copy_(whole_VD[self.ids])


class NewColumns(NewRows):
    """The language model's head, with the new tokens' logits from rows of their own: those of the embedding where the two are tied."""

    def __init__(self, head: nn.Module, ids: Sequence[int], tied: NewRows | None) -> None:
        super().__init__(head, ids)
        if tied is not None:
            self.rows = tied.rows

    def forward(self, x_BT: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, T, D) to logits (B, T, V)."""
        logits_BTV = self.table(x_BT)
        new_BTN = F.linear(x_BT, self.rows.to(x_BT.dtype))
        return logits_BTV.index_copy(-1, torch.tensor(self.ids, device=logits_BTV.device), new_BTN)


class FlamingoModel(Model):
    """Three parts, called vision, perceiver and language; the cross-attentions are in the language model's list of layers."""

    def __init__(
        self, vision: nn.Module, perceiver: Resampler, language: Any, media: Media, choice: VisionTower, flamingo: Flamingo
    ) -> None:
        super().__init__()
        self.vision, self.perceiver, self.language = vision, perceiver, language
        self.media, self.choice, self.flamingo = media, choice, flamingo
        self.image_id, self.end_id = language.get_input_embeddings().ids

    @property
    def fit(self) -> Positions:
        """A picture takes the position of its token."""
        return Positions(longest=languages.positions(self.language), picture=self.image_id)

    def logits(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, T, V) and labels (B, T), not shifted."""
        self._put(self.resampled(batch), (batch.ids_BT == self.image_id).cumsum(1))
        out = self.language(input_ids=batch.ids_BT, attention_mask=batch.mask_BT.long(), use_cache=False)
        return out.logits, batch.labels_BT

    def resampled(self, batch: Batch) -> torch.Tensor:
        """(B, I, R, W); rows with fewer pictures are filled with zeros, which nothing sees."""
        pixels_NCHW, counts = batch.pixels_NCHW, list(batch.pictures)
        if pixels_NCHW is None:  # a blank picture that no text sees: the parts that are trained get a gradient, of zeros
            size = tower.image_size(self.vision)
            pixels_NCHW, counts[0] = torch.zeros(1, 3, size, size, device=batch.ids_BT.device), 1
        return self.arranged(tower.patches(self.vision, pixels_NCHW, self.choice), counts)

    def arranged(self, patches_NPW: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """The patches of all pictures, resampled and given to their rows: (B, I, R, W)."""
        return pad_sequence(list(self.perceiver(patches_NPW).split(list(counts))), batch_first=True)

    @torch.no_grad()
    def generate(self, batch: Batch, **options: Any) -> torch.Tensor:
        """Ids (B, T) that go on from each row, ended by <|endofchunk|> unless told otherwise. What is generated sees the last picture."""
        resampled_BIRW = self.resampled(batch)
        lengths = batch.mask_BT.sum(1).tolist()
        rows = [row[:length].flip(0) for row, length in zip(batch.ids_BT, lengths, strict=True)]
        ids_BT = pad_sequence(rows, batch_first=True, padding_value=self.end_id).flip(1)  # padded in front
        mask_BT = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).flip(1)
        seen_BT = (ids_BT == self.image_id).cumsum(1)

        def put(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            asked = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
            beams, steps = len(asked) // len(seen_BT), asked.shape[1]  # beams of a row stand together, and see the same
            grown_BT = torch.cat([seen_BT, seen_BT[:, -1:].expand(-1, steps)], dim=1)
            begin = 0 if steps >= seen_BT.shape[1] else seen_BT.shape[1]  # all from the start, or what is new to the cache
            self._put(resampled_BIRW.repeat_interleave(beams, 0), grown_BT[:, begin : begin + steps].repeat_interleave(beams, 0))

        language = cast(Any, self.language)
        stop = {"eos_token_id": self.end_id, "pad_token_id": self.end_id} | options
        hook = language.register_forward_pre_hook(put, with_kwargs=True)
        try:
            return language.generate(input_ids=ids_BT, attention_mask=mask_BT, **stop)[:, ids_BT.shape[1] :]
        finally:
            hook.remove()

    def layers(self) -> list[nn.Module]:
        """The layers of the language model, each with its cross-attention."""
        return list(languages.layers(self.language)[1])

    def _put(self, resampled_BIRW: torch.Tensor, seen_BT: torch.Tensor) -> None:
        self.media.put(resampled_BIRW, seen_BT, immediate=self.flamingo.attend == "immediate")


def build(recipe: Recipe, vocabulary: int, specials: Mapping[str, int]) -> FlamingoModel:
    """The model of a recipe, its frozen parts without gradients; the language model's table gets `vocabulary` rows, as OpenFlamingo's.

    Raises RequestError, also where the tokenizer has not the two tokens.
    """
    if missing := [token for token in (IMAGE_TOKEN, END_OF_CHUNK) if token not in specials]:
        added = f'tokenizer.add = ["{END_OF_CHUNK}", "{IMAGE_TOKEN}", "<PAD>"]'
        raise RequestError(f"tokenizer: expected a token {missing[0]}, found none; OpenFlamingo has {added}")
    ids = [specials[IMAGE_TOKEN], specials[END_OF_CHUNK]]
    vision = tower.build(recipe.vision)
    language = languages.build(recipe.language, vocabulary)
    if language.get_input_embeddings().weight.shape[0] != vocabulary:
        language.resize_token_embeddings(vocabulary, mean_resizing=False)
    vision.requires_grad_(not recipe.freeze.vision)
    language.requires_grad_(not recipe.freeze.language)
    if recipe.lora.rank:
        lora.put(language, recipe.lora)
    media, wide = Media(), tower.width(vision)
    _put_rows(language, ids, train_head=recipe.compat != "openflamingo")
    _put_layers(language, wide, recipe.flamingo, media)
    perceiver = Resampler(wide, recipe.flamingo).requires_grad_(not recipe.freeze.projector)
    model = FlamingoModel(vision, perceiver, language, media, recipe.vision, recipe.flamingo)
    if recipe.flamingo.weights is not None:
        flamingo_names.load(model, recipe.flamingo.weights)
    return model


def _put_rows(language: Any, ids: Sequence[int], *, train_head: bool) -> None:
    """Rows for the new tokens, in the embedding and in the head. OpenFlamingo leaves the rows of a head of its own as they began."""
    head, rows = language.get_output_embeddings(), NewRows(language.get_input_embeddings(), ids)
    tied = head.weight is rows.weight
    language.set_input_embeddings(rows)
    columns = NewColumns(head, ids, rows if tied else None)
    columns.rows.requires_grad_(tied or train_head)
    language.set_output_embeddings(columns)


def _put_layers(language: Any, media_width: int, choice: Flamingo, media: Media) -> None:
    width, (_, layers) = language.get_input_embeddings().embedding_dim, languages.layers(language)
    for number, layer in enumerate(layers):
        if (number + 1) % choice.every == 0:
            layers[number] = FlamingoLayer(layer, GatedCrossAttention(width, media_width, choice), media)


def _feed_forward(width: int) -> nn.Sequential:
    wide = 4 * width
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, wide, bias=False), nn.GELU(), nn.Linear(wide, width, bias=False))
