"""`nn.MultiheadAttention` written out, so that its projections are ordinary linear maps to the surgery."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OpenAttention(nn.Module):
    """Self-contained multi-head attention with the parameters and state-dict names of `nn.MultiheadAttention`.

    Inputs query (B, L, E), key and value (B, S, E) when `batch_first`, else (L, B, E); returns (output, None): the
    attention weights are not computed. Masks are not supported.
    """

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = source.in_proj_weight, source.in_proj_bias
        self.q_proj_weight, self.k_proj_weight = source.q_proj_weight, source.k_proj_weight
        self.v_proj_weight = source.v_proj_weight
        self.out_proj = source.out_proj
        self.num_heads, self.head_dim = source.num_heads, source.head_dim
        self.batch_first, self.dropout = source.batch_first, source.dropout
        self._qkv_same_embed_dim = source._qkv_same_embed_dim  # nn.TransformerEncoderLayer asks for it
        self.supported = source.bias_k is None and source.bias_v is None and not source.add_zero_attn

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        if not self.supported or key_padding_mask is not None or attn_mask is not None or is_causal:
            raise ValueError("attention with masks or extra biases")
        if not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        if self._qkv_same_embed_dim and key is query and value is query:
            q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            q, k, v = self._apart(query, key, value)
        q, k, v = self._heads(q), self._heads(k), self._heads(v)
        out = F.scaled_dot_product_attention(q, k, v, scale=float(self.head_dim) ** -0.5)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, heads * d) -> (B, heads, L, d)"""
        heads: Tensor = torch.unflatten(x, -1, (self.num_heads, self.head_dim))
        return heads.transpose(1, 2)

    def _apart(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        return q, k, v
