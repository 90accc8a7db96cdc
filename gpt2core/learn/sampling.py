"""From logits to the next token: the likeliest, or a draw from a sharpened or cut distribution.

Shapes: B batch, V vocabulary. The filters take and return logits, so that they can be chained.
"""

from __future__ import annotations

import torch
from torch import Tensor


def greedy(logits: Tensor) -> Tensor:
    """Return the likeliest token: [B, V] -> [B]."""
    return logits.argmax(dim=-1)


def scale_by_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide the logits: below 1 the distribution gets sharper, above 1 flatter. [B, V] -> [B, V]."""
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k likeliest (and ties with the last of them) to -inf: [B, V] -> [B, V]."""
    ordered = logits.sort(dim=-1, descending=True).values  # [B, V]
    lowest = ordered[:, min(k, logits.size(-1)) - 1, None]  # [B, 1]
    return torch.where(logits < lowest, float("-inf"), logits)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Set all but the likeliest with probability p in total (Holtzman et al. 2020) to -inf: [B, V] -> [B, V]."""
    filtered = torch.full_like(logits, float("-inf"))
    for row, probabilities in enumerate(logits.softmax(dim=-1)):
        total = 0.0
        for token in probabilities.argsort(descending=True, stable=True).tolist():
            if total >= p:
                break
            filtered[row, token] = logits[row, token]
            total += probabilities[token].item()
    return filtered


def draw(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw a token per row: the first where the running sum exceeds a random number. [B, V] -> [B]."""
    running = logits.softmax(dim=-1).cumsum(dim=-1)  # [B, V], up to 1
    random = torch.rand(len(logits), 1, generator=generator, dtype=logits.dtype) * running[:, -1:]  # [B, 1]
    return (running <= random).sum(dim=-1)
