"""Agreement of two judges: three correlations, and Cohen's kappa for judges with the same few grades.

The rank correlations (Spearman, Kendall) do not need a common scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats

MIN_ITEMS = 3  # two points are always on a line
_CORRELATIONS = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}


def agreement(first: Sequence[float | None], second: Sequence[float | None]) -> dict[str, float | int | None]:
    """Return the correlations of two judges' scores of the same items.

    Returns:
        pearson (r), spearman (rho), kendall (tau-b): each from -1 to 1, or None with fewer than three items or with
        equal scores. n: number of items that both judges have scored.
    """
    both = _both(first, second)
    if len(both) < MIN_ITEMS or any(min(scores) == max(scores) for scores in zip(*both, strict=True)):
        return {**dict.fromkeys(_CORRELATIONS), "n": len(both)}
    x, y = zip(*both, strict=True)
    values = {name: float(correlation(x, y).statistic) for name, correlation in _CORRELATIONS.items()}
    return {**{name: value if math.isfinite(value) else None for name, value in values.items()}, "n": len(both)}


def weighted_kappa(first: Sequence[int | None], second: Sequence[int | None], grades: Sequence[int]) -> float | None:
    """Return Cohen's kappa with quadratic weights of two raters' grades of the same items (Cohen 1968).

    It is 1 if they always agree and 0 if they agree as often as by chance. A difference of two grades counts four times
    as much as a difference of one.

    Returns:
        Kappa over the items that both have graded, or None if there are none or all grades are equal.
    """
    both = _both(first, second)
    if len({grade for pair in both for grade in pair}) < 2:
        return None
    from sklearn.metrics import cohen_kappa_score  # half a second to import

    return float(cohen_kappa_score(*zip(*both, strict=True), labels=list(grades), weights="quadratic"))


def _both(first: Sequence[float | None], second: Sequence[float | None]) -> list[tuple[float, float]]:
    """Return the pairs of scores without those of which one is missing."""
    return [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
