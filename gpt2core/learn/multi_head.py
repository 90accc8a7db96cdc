"""Multi-head attention in its general form: the queries may come from another text than the keys and values.

Shapes: B batch, H heads, T queries, S keys, C channels (d_model), D = C / H head size.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from gpt2core.errors import UserError


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2): all heads by one matrix product, split by view.

    Self-attention is `attention(x, x, x, mask)`; the cross-attention of an encoder-decoder is
    `attention(decoder, encoder, encoder, mask)`.

    Args:
        d_model: C.
        num_heads: H, a divisor of C.
        dropout: dropout probability of the attention weights.
        bias: whether the four linear layers have a bias.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float = 0.0, bias: bool = True):
        super().__init__()
        if d_model % num_heads:
            raise UserError(f"num_heads: {num_heads} heads do not divide the width d_model {d_model}")
        self.num_heads, self.head_dim = num_heads, d_model // num_heads
        self.W_query = nn.Linear(d_model, d_model, bias=bias)
        self.W_key = nn.Linear(d_model, d_model, bias=bias)
        self.W_value = nn.Linear(d_model, d_model, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.weights: Tensor | None = None  # [B, H, T, S] of the last call, to look at

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the values for each query.

        Args:
            query: [B, T, C].
            key: [B, S, C].
            value: [B, S, C].
            mask: true (or 1) where a query may look, at least once; [T, S], [B, T, S], or [B, H or 1, T, S].

        Returns:
            [B, T, C].
        """
        q, k, v = self._heads(self.W_query(query)), self._heads(self.W_key(key)), self._heads(self.W_value(value))
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)  # [B, H, T, S]
        if mask is not None:
            if mask.dim() == 3:
                mask = mask[:, None]  # [B, 1, T, S]: the same for all heads
            scores = scores.masked_fill(mask == 0, float("-inf"))
        weights = scores.softmax(dim=-1)  # [B, H, T, S]
        self.weights = weights.detach()
        mixed = self.dropout(weights) @ v  # [B, H, T, D]
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # [B, T, H, D] -> [B, T, C]

    def _heads(self, x: Tensor) -> Tensor:
        """Reshape channels to heads: [B, T, C] -> [B, H, T, D]."""
        B, T, _ = x.shape
        return x.view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
