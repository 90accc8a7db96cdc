"""From logits to the next token: the likeliest, or a draw from a distribution that was sharpened or cut.

Shapes: B batch, V vocabulary. The filters take and give logits, so that they can follow one another.
"""

from __future__ import annotations

import torch
from torch import Tensor


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token: [B, V] -> [B]"""
    return logits.argmax(dim=-1)


def scale_by_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Below 1 the likely become likelier, above 1 all become alike: [B, V] -> [B, V]"""
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Only the k likeliest, and what ties with the last of them: [B, V] -> [B, V], -inf elsewhere."""
    ordered = logits.sort(dim=-1, descending=True).values  # [B, V]
    last_kept = ordered[:, min(k, logits.size(-1)) - 1, None]  # [B, 1]
    return torch.where(logits < last_kept, float("-inf"), logits)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The likeliest until they hold the probability p (Holtzman et al. 2020): [B, V] -> [B, V], -inf elsewhere."""
    kept = torch.full_like(logits, float("-inf"))
    for row, probabilities in enumerate(logits.softmax(dim=-1)):
        held = 0.0
        for token in probabilities.argsort(descending=True, stable=True).tolist():
            if held >= p:
                break
            kept[row, token] = logits[row, token]
            held += probabilities[token].item()
    return kept


def draw(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A token of each row by its probability: the first where the running sum passes a random number. [B, V] -> [B]"""
    running = logits.softmax(dim=-1).cumsum(dim=-1)  # [B, V], up to 1
    random = torch.rand(len(logits), 1, generator=generator, dtype=logits.dtype) * running[:, -1:]  # [B, 1]
    return (running <= random).sum(dim=-1)
