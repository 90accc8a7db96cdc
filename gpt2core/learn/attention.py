"""Attention in five steps: dot products, raw weights, linear layers, the causal mask with dropout, several heads.

All are softmax(q kᵀ / √D) v (Vaswani et al. 2017, section 3.2.1). Shapes: B batch (may be absent in the first three),
T tokens, d_in and d_out channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def simple_attention(x: Tensor) -> Tensor:
    """Attention without any weights to train: each token is mixed from those that it resembles. [T, C] -> [T, C]"""
    scores = x @ x.transpose(-2, -1)  # [T, T]
    weights = scores.softmax(dim=-1)  # [T, T], each row sums to 1
    return weights @ x  # [T, C]


class SelfAttention_v1(nn.Module):
    """Queries, keys and values by three matrices."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x: Tensor) -> Tensor:
        """[T, d_in] -> [T, d_out]"""
        queries, keys, values = x @ self.W_query, x @ self.W_key, x @ self.W_value  # [T, d_out] each
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(keys.size(-1))  # [T, T]
        return scores.softmax(dim=-1) @ values  # [T, d_out]


class SelfAttention_v2(nn.Module):
    """The same by linear layers, whose first weights are of a better size. They hold the matrices transposed."""

    def __init__(self, d_in: int, d_out: int, qkv_bias: bool = False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[T, d_in] -> [T, d_out]"""
        queries, keys, values = self.W_query(x), self.W_key(x), self.W_value(x)  # [T, d_out] each
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(keys.size(-1))  # [T, T]
        return scores.softmax(dim=-1) @ values  # [T, d_out]


class CausalAttention(nn.Module):
    """Token t sees tokens up to t only, so that the next token can be asked of every position at once.

    Args:
        d_in, d_out: channels.
        context_length: the most tokens of a text.
        dropout: of the attention weights.
        qkv_bias: whether the three linear layers have a bias.
    """

    def __init__(self, d_in: int, d_out: int, context_length: int, dropout: float, qkv_bias: bool = False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        future = torch.ones(context_length, context_length, dtype=torch.bool).triu(diagonal=1)
        self.mask = nn.Buffer(future, persistent=False)  # no weight: not saved

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d_in] -> [B, T, d_out]"""
        T = x.size(-2)
        queries, keys, values = self.W_query(x), self.W_key(x), self.W_value(x)  # [B, T, d_out] each
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(keys.size(-1))  # [B, T, T]
        scores = scores.masked_fill(self.mask[:T, :T], float("-inf"))  # e^-inf is 0: the future weighs nothing
        weights = self.dropout(scores.softmax(dim=-1))  # [B, T, T]
        return weights @ values  # [B, T, d_out]


class MultiHeadAttentionWrapper(nn.Module):
    """Several causal attentions side by side, each with an eye for something else: [B, T, num_heads · d_out]."""

    def __init__(
        self, d_in: int, d_out: int, context_length: int, dropout: float, num_heads: int, qkv_bias: bool = False
    ):
        super().__init__()
        self.heads = nn.ModuleList(
            CausalAttention(d_in, d_out, context_length, dropout, qkv_bias) for _ in range(num_heads)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d_in] -> [B, T, num_heads · d_out]"""
        return torch.cat([head(x) for head in self.heads], dim=-1)
