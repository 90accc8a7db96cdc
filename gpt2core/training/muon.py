"""The optimizer Muon: momentum, with each update made orthogonal (Jordan et al. 2024).

All directions of a layer then learn equally fast; see https://kellerjordan.github.io/posts/muon/. The update rule is
that of `torch.optim.Muon`, which always computes in bfloat16, one matrix at a time. Here all matrices of one shape are
computed together, and in float32 on a CPU: without bfloat16 arithmetic, a step of a 4 x 128 model takes 0.02 s instead
of 0.8 s (`python -m benchmarks.muon`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gpt2core.training.distributed import full_tensor, shard_like

# The coefficients of a x + b x³ + c x⁵. In five rounds, it maps singular values in (0, 1] to about [0.7, 1.2].
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5
EPSILON = 1e-7
CHUNK_ELEMENTS = 1 << 26  # computed together: 256 MB in float32


def orthogonalize(matrices: Tensor) -> Tensor:
    """Turn U S Vᵀ into about U Vᵀ, without a decomposition, by Newton and Schulz's iteration.

    [n, rows, columns] with rows <= columns -> [n, rows, columns]
    """
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)  # no singular value is above 1
    for _ in range(ROUNDS):
        gram = x @ x.mT  # [n, rows, rows]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of the hidden layers; use AdamW for embeddings, the head, and vectors.

    For a matrix with more rows than columns, the update is multiplied by the square root of their ratio. Weight decay
    is decoupled, as in AdamW, and momentum is Nesterov's.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            together: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    together[tuple(sorted(matrix.shape))].append(matrix)
            for (rows, columns), matrices in together.items():
                n = max(1, CHUNK_ELEMENTS // (rows * columns))
                for start in range(0, len(matrices), n):
                    self._update(matrices[start : start + n], group)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        directions = []
        for matrix in matrices:
            assert matrix.grad is not None  # `step` leaves the others out
            state = self.state[matrix]
            if not state:
                state["momentum"] = torch.zeros_like(matrix.grad)
            state["momentum"].lerp_(matrix.grad, 1 - momentum)
            directions.append(_lying(full_tensor(torch.lerp(matrix.grad, state["momentum"], momentum))))
        dtype = torch.bfloat16 if directions[0].is_cuda else torch.float32
        updates = orthogonalize(torch.stack(directions).to(dtype))  # [n, rows, columns]
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.mul_(1 - lr * group["weight_decay"])
            tall = max(1.0, matrix.size(0) / matrix.size(1))
            update = update.mT if matrix.size(0) > matrix.size(1) else update
            matrix.add_(shard_like(update, matrix), alpha=-lr * math.sqrt(tall))


def _lying(matrix: Tensor) -> Tensor:
    """With no more rows than columns."""
    return matrix.mT if matrix.size(0) > matrix.size(1) else matrix
