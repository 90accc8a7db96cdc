"""From logits to the next token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2core.errors import UserError

NEARLY_GREEDY = 1e-6  # below it float32 logits divided by the temperature may overflow; nothing else would be drawn


@dataclass(frozen=True)
class Sampling:
    """How to draw: `temperature` 0 takes the likeliest token; `top_k` keeps the k likeliest (ties at the k-th place
    included); `top_p` the smallest set of likeliest tokens that holds this probability (Holtzman et al. 2020)."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature: {self.temperature} must be a finite number from 0 (greedy) up")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k: {self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p: {self.top_p} must be above 0 and at most 1")

    def filter(self, logits: Tensor) -> Tensor:
        """Logits after temperature, top-k, top-p: [B, V] -> [B, V], -inf where a token is ruled out."""
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.size(-1):
            kth = logits.topk(self.top_k).values[:, -1:]  # [B, 1]
            logits = logits.masked_fill(logits < kth, float("-inf"))
        if self.top_p is not None and self.top_p < 1:
            ordered, order = logits.sort(descending=True)
            p = ordered.softmax(-1)
            outside = p.cumsum(-1) - p >= self.top_p  # [B, V]: the tokens before it already hold top_p
            logits = logits.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
        return logits

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The next token of each row: [B, V] -> [B]"""
        if self.temperature < NEARLY_GREEDY:
            return logits.argmax(-1)
        return torch.multinomial(self.filter(logits).softmax(-1), 1, generator=generator).squeeze(-1)
