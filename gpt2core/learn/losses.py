"""Softmax, cross-entropy, and perplexity by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def softmax(x: Tensor) -> Tensor:
    """Return e^x over their sum, along the last dimension; subtracting the maximum first only prevents overflow."""
    exponentials = torch.exp(x - x.amax(dim=-1, keepdim=True))
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def softmax_naive(x: Tensor) -> Tensor:
    """Return e^x over their sum, along the first dimension; a value above 88 overflows float32, and the result is NaN.

    >>> softmax_naive(torch.tensor([0.0, 89.0]))
    tensor([0., nan])
    """
    return torch.exp(x) / torch.exp(x).sum(dim=0)


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Return the mean of -ln p(target), in nats.

    Args:
        logits: [N, V].
        targets: [N] int64.
        ignore_index: targets with this value do not count.
    """
    counts = targets != ignore_index  # [N]
    logits, targets = logits[counts], targets[counts]  # [M, V], [M]
    largest = logits.amax(dim=-1, keepdim=True)  # [M, 1]
    log_sum = (logits - largest).exp().sum(dim=-1).log() + largest.squeeze(-1)  # [M]: ln Σ e^logit
    target_logits = logits[torch.arange(len(targets)), targets]  # [M]
    return (log_sum - target_logits).mean()


def perplexity(loss: float) -> float:
    """Return the number of equally likely tokens that would give this loss (nats per token).

    >>> round(perplexity(8.49))
    4866
    """
    return math.exp(loss)
