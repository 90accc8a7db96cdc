"""The learning rate by step, as a factor of its peak."""

from __future__ import annotations

import math
from collections.abc import Callable


def new_schedule(
    kind: str, warmup_steps: int, max_steps: int, min_ratio: float = 0.0, decay_fraction: float = 0.5
) -> Callable[[int], float]:
    """Return the schedule of a name: a function of the step, counted from 0, that rises linearly to 1 and then falls.

    Args:
        kind: cosine (half a cosine: Loshchilov and Hutter 2016), linear (falls from the end of the warm-up on), wsd
            (falls over the last `decay_fraction` of the steps: Hu et al. 2024), or constant (stays at the peak).
        warmup_steps: steps of the linear warm-up.
        max_steps: where the fall ends.
        min_ratio: the factor at its end.
        decay_fraction: used by wsd alone.

    >>> schedule = new_schedule("cosine", warmup_steps=2, max_steps=10, min_ratio=0.1)
    >>> [round(schedule(step), 2) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.55, 0.1]
    >>> schedule = new_schedule("wsd", warmup_steps=2, max_steps=10, decay_fraction=0.4)
    >>> [round(schedule(step), 2) for step in (0, 1, 2, 6, 8, 10)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 0.0]
    """
    fall_steps = max_steps - warmup_steps
    if kind != "cosine":
        fall_steps = {"linear": fall_steps, "wsd": min(fall_steps, round(decay_fraction * max_steps)), "constant": 0}[
            kind
        ]

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if kind == "cosine":
            progress = min(1.0, (step - warmup_steps) / max(1, fall_steps))
            return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2
        left = min(1.0, max(0, max_steps - step) / max(1, fall_steps))
        return min_ratio + (1 - min_ratio) * left

    return factor
