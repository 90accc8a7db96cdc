"""Positions of tokens: attention alone would read a sentence as a bag of words.

Shapes: B batch, T tokens, C channels (d_model).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gpt2core.errors import UserError


class PositionalEncoding(nn.Module):
    """Fixed waves with lengths from 2π to 10,000 · 2π (Vaswani et al. 2017, section 3.5).

    PE[t, 2i] = sin(t / 10000^(2i / C)), PE[t, 2i + 1] = cos(t / 10000^(2i / C))

    The signature is that of PyTorch's tutorial, whose inputs are [T, B, C] instead of [B, T, C]: set
    `batch_first=False` for these. A tensor does not tell which layout it has: with the wrong one, the texts of a batch
    are numbered instead of their tokens.

    Args:
        d_model: C, even.
        dropout: dropout probability of the sum, while training.
        max_len: maximum number of tokens of a text.
        batch_first: whether inputs are [B, T, C], as in the course, or [T, B, C].
    """

    def __init__(self, d_model: int, dropout: float = 0.1, max_len: int = 5000, batch_first: bool = True):
        super().__init__()
        if d_model % 2:
            raise UserError(f"d_model: {d_model} must be even: channels come in pairs of sine and cosine")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout: {dropout} must be from 0 up to 1; the maximum number of tokens is max_len")
        self.batch_first = batch_first
        position = torch.arange(max_len, dtype=torch.float64)[:, None]  # [T, 1]
        frequency = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float64) * (-math.log(10_000) / d_model))  # [C/2]
        angle = position * frequency  # [T, C/2]
        encoding = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # [T, C/2, 2] -> [T, C]
        self.encoding = nn.Buffer(encoding, persistent=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Add each position's wave to [B, T, C], or to [T, B, C]; the shape stays."""
        T = x.size(1 if self.batch_first else 0)
        check_length(T, len(self.encoding))
        waves = self.encoding[:T].to(x.dtype)  # [T, C]
        return self.dropout(x + (waves if self.batch_first else waves[:, None]))


class LearnedPositionalEncoding(nn.Module):
    """A trained vector for each position, as in GPT-2; positions without training are unknown to it.

    Args:
        d_model: C.
        max_seq_len: maximum number of tokens of a text.
        dropout: dropout probability of the sum.
    """

    def __init__(self, d_model: int, max_seq_len: int = 1024, dropout: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(max_seq_len, d_model) * 0.02)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Add each position's vector: [B, T, C] -> [B, T, C]."""
        check_length(x.size(1), len(self.weight))
        return self.dropout(x + self.weight[: x.size(1)])


def check_length(n_tokens: int, max_seq_len: int) -> None:
    """Raise UserError if a text has more tokens than there are positions."""
    if n_tokens > max_seq_len:
        raise UserError(f"{n_tokens} tokens are more than the {max_seq_len} positions there are")
