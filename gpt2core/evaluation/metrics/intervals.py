"""Means of scores, with 95% intervals over test items (bootstrap) or over seeds (Student's t)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Scores = Sequence[float | None]  # None: not scored

BATCH_SAMPLES = 50  # bootstrap samples in memory at a time


class SeedStatistics(NamedTuple):
    """Mean, sample standard deviation (n - 1), and 95% interval of the mean over seeds."""

    mean: float
    sd: float
    ci_low: float
    ci_high: float


def rounded(values: Mapping[str, Any], digits: int = 4) -> dict[str, Any]:
    """Return the values with floats rounded, because further digits differ between machines.

    >>> rounded({"judge": "chrf", "mean_score": 2 / 3, "n": 3})
    {'judge': 'chrf', 'mean_score': 0.6667, 'n': 3}
    """
    return {name: round(value, digits) if isinstance(value, float) else value for name, value in values.items()}


def drop_missing(scores: Scores) -> list[float]:
    """Return the scores that are not None."""
    return [score for score in scores if score is not None]


def mean(scores: Scores) -> float:
    """Return the mean of the scores that are not None, summed exactly: it has the same bits on every machine."""
    present = drop_missing(scores)
    return math.fsum(present) / len(present)


def bootstrap_interval(
    values: Sequence[float], samples: int, seed: int, weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of a mean (Efron & Tibshirani 1993, chapter 13).

    Items are drawn with replacement. The interval says how much the mean would differ on other test sets of this size,
    not how much the judge errs. With the sizes of the items, such as token counts, as weights [n], the statistic is
    sum(values) / sum(weights).

    >>> bootstrap_interval([3.0, 8.0], 1000, 0, weights=[1, 2])
    (3.0, 4.0)
    """
    sums = np.asarray(values, np.float64)  # [n]
    counts = np.ones_like(sums) if weights is None else np.asarray(weights, np.float64)  # [n]
    if len(sums) == 1:
        return (float(sums[0] / counts[0]),) * 2
    interval = stats.bootstrap(
        (sums, counts),
        lambda total, count, axis: total.sum(axis) / count.sum(axis),
        paired=True,
        n_resamples=samples,
        batch=BATCH_SAMPLES,
        method="percentile",
        rng=np.random.Generator(np.random.PCG64(seed)),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def mean_std_ci(values: Sequence[float]) -> SeedStatistics:
    """Return mean, standard deviation, and 95% interval of the mean of two or more seeds (Student 1908).

    The interval says how much the mean of other seeds would differ. Seeds share their data, so it does not say how much
    results on other data would differ.

    >>> [round(value, 3) for value in mean_std_ci([0.96, 0.97, 0.98])]
    [0.97, 0.01, 0.945, 0.995]
    """
    center, sd = mean(values), float(np.std(values, ddof=1))
    half_width = float(stats.t.ppf(0.975, len(values) - 1)) * sd / math.sqrt(len(values))
    return SeedStatistics(center, sd, center - half_width, center + half_width)
