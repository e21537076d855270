"""`nn.MultiheadAttention` written out, so that its projections are ordinary linear maps to the surgery."""

from __future__ import annotations

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def can_be_opened(source: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether it is `nn.MultiheadAttention` whose keys and values are those it is given, with none added."""
    if type(source) is not nn.MultiheadAttention:
        return False
    return source.bias_k is None and source.bias_v is None and not source.add_zero_attn


class OpenAttention(nn.Module):
    """Self-contained multi-head attention with the parameters and state-dict names of `nn.MultiheadAttention`.

    Takes and returns what that does in eval mode: query (B, L, E), key and value (B, S, E) when `batch_first`, else
    (L, B, E), or (L, E) for one image; masks that are bool (True: not looked at) or added to the scores.
    """

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = source.in_proj_weight, source.in_proj_bias
        self.q_proj_weight, self.k_proj_weight = source.q_proj_weight, source.k_proj_weight
        self.v_proj_weight = source.v_proj_weight
        self.out_proj = source.out_proj
        self.embed_dim, self.kdim, self.vdim = source.embed_dim, source.kdim, source.vdim
        self.num_heads, self.head_dim = source.num_heads, source.head_dim
        self.batch_first, self.dropout = source.batch_first, source.dropout
        self._qkv_same_embed_dim = source._qkv_same_embed_dim  # nn.TransformerEncoderLayer asks for it

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # a hint about `attn_mask`, which must be given all the same
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, which is not given")
        alone = query.dim() == 2
        if self._qkv_same_embed_dim and key is query and value is query:
            q, k, v = F.linear(self._batch(query), self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            q, k, v = self._apart(self._batch(query), self._batch(key), self._batch(value))
        q, k, v = self._heads(q), self._heads(k), self._heads(v)
        mask, scale = self._mask(attn_mask, key_padding_mask), float(self.head_dim) ** -0.5
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        out = out.squeeze(0) if alone else out if self.batch_first else out.transpose(0, 1)
        if not need_weights:
            return out, None
        scores = (q * scale) @ k.transpose(2, 3)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        weights = weights.mean(1) if average_attn_weights else weights
        return out, weights.squeeze(0) if alone else weights

    merge_masks = nn.MultiheadAttention.merge_masks  # nn.TransformerEncoderLayer calls it

    def _batch(self, x: Tensor) -> Tensor:
        """(L, E), (L, B, E) or (B, L, E) -> (B, L, E)"""
        return x.unsqueeze(0) if x.dim() == 2 else x if self.batch_first else x.transpose(0, 1)

    def _mask(self, scores: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """What is added to the scores (B, heads, L, S), from masks (L, S) or (B * heads, L, S) and (B, S) or (S,)."""
        if scores is not None:
            scores = _added(scores)
            scores = torch.unflatten(scores, 0, (-1, self.num_heads)) if scores.dim() == 3 else scores
        if padding is None:
            return scores
        padding = _added(padding)
        padding = padding[:, None, None] if padding.dim() == 2 else padding[None, None, None]
        return padding if scores is None else scores + padding

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


def _added(mask: Tensor) -> Tensor:
    return torch.where(mask, float("-inf"), 0.0) if mask.dtype == torch.bool else mask
