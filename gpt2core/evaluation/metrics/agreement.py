"""How far two judges agree: three correlations, of which the ranks' (Spearman, Kendall) do not ask for one scale; and,
where both have the same few grades, Cohen's kappa."""

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


def weighted_kappa(first: Sequence[int | None], second: Sequence[int | None], grades: Sequence[int]) -> float | None:
    """Cohen's kappa with quadratic weights (Cohen 1968) of two raters' grades of the same items: 1 where they always
    agree, 0 where they agree as often as by chance; two grades apart count four times one.

    Over the items that both have graded; None where there are none, or all their grades are one and the same.
    """
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if len({grade for pair in both for grade in pair}) < 2:
        return None
    from sklearn.metrics import cohen_kappa_score  # half a second to import

    return float(cohen_kappa_score(*zip(*both, strict=True), labels=list(grades), weights="quadratic"))
