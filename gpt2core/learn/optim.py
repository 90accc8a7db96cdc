"""A training step by hand: AdamW, the learning rate schedule, clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2).

    Args:
        parameters: the trained parameters.
        lr: the learning rate; may be set before each step.
        betas: decay rates of the means of the gradient and of its square.
        eps: prevents a division by 0 where there is no gradient.
        weight_decay: fraction of a weight, times lr, that is subtracted per step.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        self.parameters = list(parameters)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.t = 0

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters from the gradients that `backward` computed."""
        self.t += 1
        b1, b2 = self.betas
        for p, m, v in zip(self.parameters, self.means, self.squares, strict=True):
            if p.grad is None:
                continue
            p -= self.lr * self.weight_decay * p  # apart from the gradient: the W of AdamW
            m.copy_(b1 * m + (1 - b1) * p.grad)
            v.copy_(b2 * v + (1 - b2) * p.grad**2)
            m_hat, v_hat = m / (1 - b1**self.t), v / (1 - b2**self.t)  # both started at 0: undo that
            p -= self.lr * m_hat / (v_hat.sqrt() + self.eps)

    def zero_grad(self) -> None:
        """Drop the gradients, or the next `backward` would add to them."""
        for p in self.parameters:
            p.grad = None


def warmup_cosine(step: int, peak_lr: float, warmup_steps: int, max_steps: int, min_lr: float = 0.0) -> float:
    """Return the learning rate of a step, counted from 0: linear up, then half a cosine down, then constant.

    >>> [round(warmup_cosine(step, 1.0, 2, 10, 0.1), 2) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.55, 0.1]
    """
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))  # 0 to 1
    return min_lr + (peak_lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale the gradient of all parameters, as one vector, to a norm of at most `max_norm`; return the old norm."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float(gradient.pow(2).sum()) for gradient in gradients))
    if norm > max_norm:
        for gradient in gradients:
            gradient *= max_norm / norm
    return norm


def train_step(model: nn.Module, optimizer: AdamW, inputs: Tensor, targets: Tensor, max_norm: float = 1.0) -> float:
    """Run one training step on inputs and targets [B, T]; return the loss before the step."""
    logits = model(inputs)  # [B, T, V]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    clip_gradients(optimizer.parameters, max_norm)
    optimizer.step()
    return loss.item()
