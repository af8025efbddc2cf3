"""MPT whose attention normalises queries and keys (attn_config.qk_ln), which transformers' MPT leaves as they are.

Henry et al. 2020, https://arxiv.org/abs/2010.04245; over the whole width, before heads are split, as in Dehghani et al. 2023,
https://arxiv.org/abs/2302.05442. Axes: B rows, T tokens, K tokens with those of the cache, H heads, E head width, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers.models.mpt.modeling_mpt import MptAttention


class Attention(MptAttention):
    """Causal attention with ALiBi. Parameters are named as in LLM Foundry: Wqkv, q_ln, k_ln, out_proj."""

    def __init__(self, config: transformers.MptConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_ln = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon, bias=False)
        self.k_ln = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, D), and the weights (B, H, T, K); the bias is (H, 1, at least K), the mask True where nothing is seen."""
        fused_BTD3 = self.Wqkv(hidden_states)
        if self.clip_qkv:
            fused_BTD3 = fused_BTD3.clamp(-self.clip_qkv, self.clip_qkv)
        query, key, value = fused_BTD3.chunk(3, dim=-1)
        normal = (self.q_ln(query).to(value.dtype), self.k_ln(key).to(value.dtype), value)
        query, key, value = (tensor_BTD.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for tensor_BTD in normal)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        scores_BHTK = query @ key.transpose(-1, -2) * self.softmax_scale + position_bias[..., -key.shape[-2] :]
        if attention_mask is not None:
            scores_BHTK = scores_BHTK.masked_fill(attention_mask, torch.finfo(scores_BHTK.dtype).min)
        weights_BHTK = scores_BHTK.softmax(-1, dtype=torch.float32).to(value.dtype)
        found_BHTE = F.dropout(weights_BHTK, self.attn_dropout_p, self.training) @ value
        return self.out_proj(found_BHTE.transpose(1, 2).flatten(2)), weights_BHTK


class NormalisedMpt(transformers.MptForCausalLM):
    """MPT with these attentions."""

    def __init__(self, config: transformers.MptConfig) -> None:
        super().__init__(config)
        for number, block in enumerate(self.transformer.blocks):
            block.attn = Attention(config, number)

    @classmethod
    def from_config(cls, config: transformers.MptConfig) -> NormalisedMpt:
        """A new one, as transformers' Auto classes make theirs."""
        return cls(config)


def kind(config: Any) -> Any:
    """The class of a causal language model, by its configuration: transformers' own but for an MPT with qk_ln."""
    normalised = config.model_type == "mpt" and config.attn_config.qk_ln
    return NormalisedMpt if normalised else transformers.AutoModelForCausalLM
