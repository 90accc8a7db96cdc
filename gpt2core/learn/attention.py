"""Attention in six steps: dot products, raw weights, linear layers, the causal mask with dropout, heads, one product.

All are softmax(q kᵀ / √D) v (Vaswani et al. 2017, section 3.2.1). Shapes: B batch (optional in the first three), T
tokens, d_in and d_out channels, H heads, D = d_out / H head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gpt2core.errors import UserError


def simple_attention(x: Tensor) -> Tensor:
    """Mix each token from those that it resembles, without trained weights: [T, C] -> [T, C]."""
    scores = x @ x.transpose(-2, -1)  # [T, T]
    weights = scores.softmax(dim=-1)  # [T, T], each row sums to 1
    return weights @ x  # [T, C]


class SelfAttention_v1(nn.Module):
    """Self-attention with queries, keys, and values by three matrices."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the values of all tokens for each token: [T, d_in] -> [T, d_out]."""
        queries, keys, values = x @ self.W_query, x @ self.W_key, x @ self.W_value  # [T, d_out] each
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(keys.size(-1))  # [T, T]
        return scores.softmax(dim=-1) @ values  # [T, d_out]


class SelfAttention_v2(nn.Module):
    """The same with linear layers, which are initialized at a better scale. They hold the matrices transposed."""

    def __init__(self, d_in: int, d_out: int, qkv_bias: bool = False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the values of all tokens for each token: [T, d_in] -> [T, d_out]."""
        queries, keys, values = self.W_query(x), self.W_key(x), self.W_value(x)  # [T, d_out] each
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(keys.size(-1))  # [T, T]
        return scores.softmax(dim=-1) @ values  # [T, d_out]


class CausalAttention(nn.Module):
    """Attention where token t sees tokens up to t only, so that every position can predict the next token.

    Args:
        d_in: channels of the input.
        d_out: channels of the output.
        context_length: maximum number of tokens of a text.
        dropout: dropout probability of the attention weights.
        qkv_bias: whether the three linear layers have a bias.
    """

    def __init__(self, d_in: int, d_out: int, context_length: int, dropout: float, qkv_bias: bool = False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        future = torch.ones(context_length, context_length, dtype=torch.bool).triu(diagonal=1)
        self.mask = nn.Buffer(future, persistent=False)  # not a parameter: not saved

    def forward(self, x: Tensor) -> Tensor:
        """Mix the values of the tokens so far for each token: [B, T, d_in] -> [B, T, d_out]."""
        T = x.size(-2)
        queries, keys, values = self.W_query(x), self.W_key(x), self.W_value(x)  # [B, T, d_out] each
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(keys.size(-1))  # [B, T, T]
        scores = scores.masked_fill(self.mask[:T, :T], float("-inf"))  # e^-inf is 0: the future has no weight
        weights = self.dropout(scores.softmax(dim=-1))  # [B, T, T]
        return weights @ values  # [B, T, d_out]


class MultiHeadAttentionWrapper(nn.Module):
    """Several causal attentions in parallel, each with weights of its own."""

    def __init__(
        self, d_in: int, d_out: int, context_length: int, dropout: float, num_heads: int, qkv_bias: bool = False
    ):
        super().__init__()
        self.heads = nn.ModuleList(
            CausalAttention(d_in, d_out, context_length, dropout, qkv_bias) for _ in range(num_heads)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the heads' outputs: [B, T, d_in] -> [B, T, num_heads · d_out]."""
        return torch.cat([head(x) for head in self.heads], dim=-1)


class MultiHeadAttention(CausalAttention):
    """All heads by one matrix product: a view splits the channels into heads, and an output layer mixes them.

    `gpt2core.learn.MultiHeadAttention` is the general form with queries, keys, and values from different texts.

    Args:
        d_in: channels of the input.
        d_out: channels of the output.
        context_length: maximum number of tokens of a text.
        dropout: dropout probability of the attention weights.
        num_heads: H, a divisor of `d_out`.
        qkv_bias: whether queries, keys, and values have a bias.
    """

    def __init__(
        self, d_in: int, d_out: int, context_length: int, dropout: float, num_heads: int, qkv_bias: bool = False
    ):
        if d_out % num_heads:
            raise UserError(f"num_heads: {num_heads} heads do not divide the width d_out {d_out}")
        super().__init__(d_in, d_out, context_length, dropout, qkv_bias)
        self.num_heads = num_heads
        self.out_proj = nn.Linear(d_out, d_out)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the values of the tokens so far for each token and head: [B, T, d_in] -> [B, T, d_out]."""
        T = x.size(1)
        q, k, v = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, T, D]
            for linear in (self.W_query, self.W_key, self.W_value)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))  # [B, H, T, T]
        weights = scores.masked_fill(self.mask[:T, :T], float("-inf")).softmax(dim=-1)  # [B, H, T, T]
        mixed = self.dropout(weights) @ v  # [B, H, T, D]
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # [B, T, H, D] -> [B, T, d_out]
