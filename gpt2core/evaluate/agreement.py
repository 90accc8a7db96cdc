"""How far two judges agree: three correlations, of which the ranks' (Spearman, Kendall) do not ask for one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

MIN_ITEMS = 3  # two points always lie on a line


@dataclass(frozen=True)
class Agreement:
    """Pearson's r, Spearman's rho and Kendall's tau-b, each -1 to 1, over `n` items; None where they do not exist."""

    pearson: float | None
    spearman: float | None
    kendall: float | None
    n: int


def agreement(first: Sequence[float | None], second: Sequence[float | None]) -> Agreement:
    """Of the scores of the same items by two judges, over those that both have scored.

    There is no correlation of fewer than three items, nor with scores that are all the same.
    """
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if len(both) < MIN_ITEMS or any(min(scores) == max(scores) for scores in zip(*both, strict=True)):
        return Agreement(None, None, None, len(both))
    x, y = zip(*both, strict=True)
    pearson, spearman, kendall = (
        value if math.isfinite(value := float(correlation(x, y).statistic)) else None
        for correlation in (stats.pearsonr, stats.spearmanr, stats.kendalltau)
    )
    return Agreement(pearson, spearman, kendall, len(both))
