"""Calibration of a classifier: whether classes occur as often as predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLUMNS = ("from", "to", "n", "mean_probability", "share")


@dataclass(frozen=True)
class Calibration:
    """Calibration in bins of predicted probability.

    Args:
        ece: expected calibration error from 0 to 1 (Naeini et al. 2015): the mean over all messages of the difference,
            in their bin, between the predicted probability and the observed frequency.
        bins: a row of `COLUMNS` for each bin that is not empty: its edges, number of messages, mean predicted
            probability, and observed frequency (`share`).
    """

    ece: float
    bins: list[dict[str, float]]


def classifier_calibration(
    y_true: Sequence[str], probabilities: Sequence[Sequence[float]], labels: Sequence[str]
) -> Calibration:
    """Return the calibration of a classifier (Guo et al. 2017).

    With two classes it is that of the second class; with more, that of the predicted class. `probabilities` is
    [n, classes].
    """
    if len(labels) == 2:
        return calibration([p[1] for p in probabilities], [true == labels[1] for true in y_true])
    right = [true == labels[int(np.argmax(p))] for true, p in zip(y_true, probabilities, strict=True)]
    return calibration([max(p) for p in probabilities], right)


def calibration(probabilities: Sequence[float], is_positive: Sequence[bool], n_bins: int = 10) -> Calibration:
    """Return the calibration of predicted probabilities [n] of the positive class, in bins of equal width.

    An edge belongs to the bin above it, and 1 to the last bin.

    >>> calibration([0.1, 0.15, 0.9, 0.9], [False, False, True, False], n_bins=2).ece
    0.2625
    """
    p, positive = np.asarray(probabilities, np.float64), np.asarray(is_positive, bool)  # [n] each
    bin_of = np.minimum((p * n_bins).astype(int), n_bins - 1)  # [n]
    rows, ece = [], 0.0
    for number in np.unique(bin_of).tolist():
        inside = bin_of == number  # [n]
        mean_probability, share = p[inside].mean(), positive[inside].mean()
        ece += inside.mean() * abs(mean_probability - share)
        values = (number / n_bins, (number + 1) / n_bins, int(inside.sum()), mean_probability, share)
        rows.append(dict(zip(COLUMNS, (v if isinstance(v, int) else round(float(v), 6) for v in values), strict=True)))
    return Calibration(round(float(ece), 6), rows)
