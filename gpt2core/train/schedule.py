"""The learning rate by step, as a factor of its peak."""

from __future__ import annotations

import math
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
        """The factor of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps))
        return self.min_ratio + (1 - self.min_ratio) * (1 + math.cos(math.pi * progress)) / 2
