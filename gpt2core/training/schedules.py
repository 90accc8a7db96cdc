"""The learning rate by step, as a factor of its peak."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up to 1, then half a cosine down to `min_ratio` at `max_steps` (Loshchilov and Hutter 2016).

    >>> schedule = WarmupCosine(warmup_steps=2, max_steps=10, min_ratio=0.1)
    >>> [round(schedule(step), 2) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.55, 0.1]
    """

    warmup_steps: int
    max_steps: int
    min_ratio: float = 0.0

    def __call__(self, step: int) -> float:
        """Return the factor of the learning rate at step `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps))
        return self.min_ratio + (1 - self.min_ratio) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up to 1, then 1, then a straight line to `min_ratio` over the last `decay_steps` (Hu et al. 2024).

    >>> schedule = WarmupStableDecay(warmup_steps=2, max_steps=10, decay_steps=4, min_ratio=0.0)
    >>> [round(schedule(step), 2) for step in (0, 1, 2, 6, 8, 10)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 0.0]
    """

    warmup_steps: int
    max_steps: int
    decay_steps: int
    min_ratio: float = 0.0

    def __call__(self, step: int) -> float:
        """Return the factor of the learning rate at step `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        left = min(1.0, max(0, self.max_steps - step) / max(1, self.decay_steps))
        return self.min_ratio + (1 - self.min_ratio) * left


def new_schedule(
    kind: str, warmup_steps: int, max_steps: int, min_ratio: float, decay_fraction: float
) -> Callable[[int], float]:
    """Return the schedule of a name.

    Args:
        kind: cosine, linear (falls from the end of the warm-up on), wsd (falls over the last `decay_fraction` of the
            steps), or constant (stays at the peak).
        warmup_steps: steps of the linear warm-up.
        max_steps: where the fall ends.
        min_ratio: the factor at its end.
        decay_fraction: used by wsd alone.
    """
    if kind == "cosine":
        return WarmupCosine(warmup_steps, max_steps, min_ratio)
    after_warmup = max_steps - warmup_steps
    decay_steps = {"linear": after_warmup, "wsd": min(after_warmup, round(decay_fraction * max_steps)), "constant": 0}
    return WarmupStableDecay(warmup_steps, max_steps, decay_steps[kind], min_ratio)
