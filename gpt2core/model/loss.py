"""The loss of a language model's head, computed without the logits of a whole batch in memory.

Shapes: N rows, C channels, V vocabulary. At N = 8,192, GPT-2's logits take 1.6 GB in float32. Their softmax and its
gradient take as much again. Here, the head, the softmax, and the gradient are computed for a few rows at a time, while
these rows are in the cache. Only the gradients of the hidden states and of the head are kept. The idea is from Wijmans
et al. 2024, "Cut Your Losses".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# The number of logits in memory at a time: 256 MiB in float32, or 1,335 rows of GPT-2's vocabulary. Each chunk reads
# the head and writes its gradient once. With chunks of 333 rows, the products take a fifth longer on two cores.
CHUNK_LOGITS = 1 << 26
# Rows of logits start at multiples of 64 because tensor cores and MKL are faster then: with rows of 50,257, MKL's
# product takes 1.3 times as long. A product with the whole head takes another 1.2 times as long as with 4,096 of its
# rows at a time.
VOCAB_MULTIPLE = 64
CPU_HEAD_ROWS = 4096
CPU_GRADIENT_ROWS = 8192  # the same for the gradient of the head in bfloat16


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, is_compiled: bool = False) -> Tensor:
    """Return `F.cross_entropy(hidden @ weight.T, targets, reduction="sum")` in nats, with its gradients.

    Under autocast, the products are in its dtype, and softmax and sum are in float32, as in PyTorch. On CUDA, the
    vocabulary is padded internally; the added rows have no probability and no gradient. With `is_compiled`, the softmax
    of bfloat16 runs compiled by `torch.compile`. Differentiable once.

    Hidden states [N, C], the head's weight [V, C], targets [N] -> []
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if not torch.is_grad_enabled():  # the function itself cannot see that
        hidden, weight = hidden.detach(), weight.detach()
    with torch.autocast(device, enabled=False):
        multiple = VOCAB_MULTIPLE if hidden.is_cuda else 1
        is_compiled = is_compiled and dtype == torch.bfloat16
        return _LinearCrossEntropy.apply(hidden, weight, targets, dtype, multiple, is_compiled)  # type: ignore[no-untyped-call]


def padded(weight: Tensor, dtype: torch.dtype, multiple: int) -> Tensor:
    """Return the head in `dtype` with rows of zeros up to a multiple: [V, C] -> [V padded, C]."""
    missing = -len(weight) % multiple
    return F.pad(weight.to(dtype), (0, 0, 0, missing)) if missing else weight.to(dtype)


def cross_entropy_(logits: Tensor, target: Tensor, V: int, wants_gradient: bool) -> Tensor:
    """Return the summed cross-entropy in nats, and perhaps replace the logits by its gradient.

    Logits [n, V or more], of which the first V count; targets [n, 1] -> []
    """
    # The softmax in place; it is float32's own memory that is written to, a copy of bfloat16's.
    p = logits[:, :V].to(torch.promote_types(logits.dtype, torch.float32))  # [n, V]
    largest, of_target = p.amax(1, keepdim=True), p.gather(1, target)  # [n, 1] each
    sums = p.sub_(largest).exp_().sum(1, keepdim=True)  # [n, 1]
    total = (largest + sums.log() - of_target).sum()
    if not wants_gradient:
        return total
    p.div_(sums).scatter_add_(1, target, p.new_full(target.shape, -1.0))
    if p.dtype != logits.dtype:
        logits[:, :V] = p
    logits[:, V:] = 0
    return total


def _cross_entropy_fused_(logits: Tensor, target: Tensor, V: int) -> Tensor:
    """Do the same with the gradient, in a form that `torch.compile` fuses: a row is read again from the cache."""
    x = logits[:, :V].float()  # [n, V]
    largest = x.amax(1, keepdim=True)  # [n, 1]
    sums = (x - largest).exp().sum(1, keepdim=True)  # [n, 1]
    total = (largest + sums.log() - x.gather(1, target)).sum()
    is_target = torch.arange(V, device=logits.device) == target  # [n, V]
    logits[:, :V] = ((x - largest).exp() / sums - is_target.float()).to(logits.dtype)
    logits[:, V:] = 0
    return total


@functools.cache
def _compiled() -> Callable[[Tensor, Tensor, int], Tensor]:
    return torch.compile(_cross_entropy_fused_)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
        multiple: int,
        is_compiled: bool,
    ) -> Tensor:
        V = len(weight)
        head = padded(weight, dtype, multiple)  # [V padded, C]
        head_rows = len(head) if head.is_cuda else CPU_HEAD_ROWS
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        wants_gradient = wants_hidden or wants_weight
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        total = hidden.new_zeros((), dtype=torch.promote_types(dtype, torch.float32))
        rows = max(1, min(len(hidden), CHUNK_LOGITS // V))
        memory = hidden.new_empty(rows, V + -V % VOCAB_MULTIPLE, dtype=dtype)  # one for all chunks
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            x, target = hidden[chunk].to(dtype), targets[chunk, None]  # [n, C], [n, 1]
            logits = memory[: len(x), : len(head)]  # [n, V padded]
            for head_part, logits_part in zip(head.split(head_rows), logits.split(head_rows, dim=1), strict=True):
                torch.mm(x, head_part.T, out=logits_part)
            if is_compiled and wants_gradient:
                total += _compiled()(logits, target, V)
            else:
                total += cross_entropy_(logits, target, V, wants_gradient)
            if grad_hidden is not None:
                grad_hidden[chunk] = logits @ head
            if grad_weight is not None:
                _add_head_gradient(grad_weight, logits, x)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if grad is None else grad * grad_total for grad in ctx.saved_tensors)
        return *gradients, None, None, None, None


def _add_head_gradient(grad_weight: Tensor, grad: Tensor, x: Tensor) -> None:
    """Add gradᵀ x to the gradient of the head: [V, C], [n, V padded], [n, C]."""
    V = len(grad_weight)
    if grad.dtype == grad_weight.dtype:
        grad_weight.addmm_(grad[:, :V].T, x)
        return
    rows = grad.size(1) if grad.is_cuda else CPU_GRADIENT_ROWS
    for start, part in zip(range(0, V, rows), grad.split(rows, dim=1), strict=False):
        grad_weight[start : start + rows] += (part.T @ x)[: V - start]
