"""The loss of a language model's head without the logits of a whole batch in memory.

Shapes: N rows, C channels, V vocabulary. At N = 8,192 GPT-2's logits are 1.6 GB in float32, and their softmax and its
gradient as much again. Here a few rows at a time go through head, softmax and gradient while they are in the cache, and
only the gradients of the hidden states and of the head are kept (Wijmans et al. 2024, "Cut Your Losses", has the idea).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 1 << 24  # logits in memory at once, 64 MiB in float32: 333 rows of GPT-2's vocabulary
VOCAB_MULTIPLE = 64  # of rows of the head on CUDA, where tensor cores want sizes that divide evenly


def head_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`F.cross_entropy(hidden @ weight.T, targets, reduction="sum")`, in nats, with its gradients.

    Under autocast the products are in its dtype, softmax and sum in float32, as PyTorch has it. On CUDA the vocabulary
    is padded inside; the added rows have no probability and no gradient.

    Args:
        hidden: [N, C]
        weight: the head's, [V, C].
        targets: [N], each from 0 to V - 1.

    Returns:
        [], differentiable once, by `hidden` and `weight`.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if not torch.is_grad_enabled():  # inside the function that cannot be seen
        hidden, weight = hidden.detach(), weight.detach()
    with torch.autocast(device, enabled=False):
        return _HeadCrossEntropy.apply(hidden, weight, targets, dtype, VOCAB_MULTIPLE if hidden.is_cuda else 1)


def padded(weight: Tensor, dtype: torch.dtype, multiple: int) -> Tensor:
    """The head in `dtype` with rows of zeros up to a multiple: [V, C] -> [V padded, C]"""
    missing = -len(weight) % multiple
    return F.pad(weight.to(dtype), (0, 0, 0, missing)) if missing else weight.to(dtype)


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, multiple: int) -> Tensor:
        V = len(weight)
        head = padded(weight, dtype, multiple)  # [V padded, C]
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        total = hidden.new_zeros((), dtype=torch.promote_types(dtype, torch.float32))
        rows = max(1, CHUNK_LOGITS // V)
        for start in range(0, len(hidden), rows):
            some = slice(start, start + rows)
            x, target = hidden[some].to(dtype), targets[some, None]  # [n, C], [n, 1]
            logits = (x @ head.T)[:, :V]  # [n, V]
            log_probabilities = logits.log_softmax(-1, dtype=total.dtype)  # [n, V]
            total -= log_probabilities.gather(1, target).sum()
            if not (wants_hidden or wants_weight):
                continue
            grad = log_probabilities.exp_()  # [n, V]
            grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
            grad = grad.to(dtype)
            if grad_hidden is not None:
                grad_hidden[some] = grad @ head[:V]
            if grad_weight is not None and dtype == weight.dtype:
                grad_weight.addmm_(grad.T, x)
            elif grad_weight is not None:
                grad_weight += grad.T @ x
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if grad is None else grad * grad_total for grad in ctx.saved_tensors), None, None, None
