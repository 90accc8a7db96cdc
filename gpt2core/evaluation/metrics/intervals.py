"""The mean of scores of which some may be missing, and how far it would differ on other test sets or seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

Scores = Sequence[float | None]


def drop_missing(scores: Scores) -> list[float]:
    """Those that there are."""
    return [score for score in scores if score is not None]


def mean(scores: Scores) -> float:
    """The mean of the scores that there are; summed exactly, so that it is the same on every machine."""
    given = drop_missing(scores)
    return math.fsum(given) / len(given)


def bootstrap_interval(scores: Sequence[float], samples: int, seed: int) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of the mean (Efron & Tibshirani 1993, chapter 13).

    The scores are drawn anew, with replacement, `samples` times; 2.5% of those means lie below the interval and 2.5%
    above it. It tells how far another test set of this size may fall, not how far the judge errs.
    """
    values = np.asarray(scores, dtype=np.float64)  # [n]
    generator = np.random.Generator(np.random.PCG64(seed))
    # A sample at a time: memory for n indices, not for n × samples.
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(samples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_ratio_interval(
    sums: Sequence[float], counts: Sequence[float], samples: int, seed: int
) -> tuple[float, float]:
    """The same of a mean over what items hold, such as nats a token of texts: the items are drawn, with all they hold.

    >>> bootstrap_ratio_interval([3.0, 8.0], [1, 2], 1000, 0)
    (3.0, 4.0)
    """
    total, count = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)  # [n], [n]
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = (generator.integers(len(total), size=len(total)) for _ in range(samples))
    low, high = np.percentile([total[i].sum() / count[i].sum() for i in drawn], [2.5, 97.5])
    return float(low), float(high)


def mean_std_ci(values: Sequence[float]) -> tuple[float, float, float]:
    """Standard deviation, and the 95% interval of the mean, of figures of several seeds (Student 1908).

    Two at least. It tells how far the mean of other seeds may fall; since these share their data, not how far that of
    other data may.

    >>> tuple(round(value, 3) for value in spread([0.96, 0.97, 0.98]))
    (0.01, 0.945, 0.995)
    """
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / math.sqrt(len(values))
    return sd, mean(values) - half, mean(values) + half
