"""Calibration, beside scikit-learn's reliability curve and the sum written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from gpt2core.evaluation.metrics.calibration import calibration, classifier_calibration


def test_the_bins_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(0.4, 0.4, 500)
    positive = rng.random(500) < p**2
    found = calibration(p.tolist(), positive.tolist(), n_bins=10)
    shares, means = calibration_curve(positive, p, n_bins=10)
    np.testing.assert_allclose([row["share"] for row in found.bins], shares, atol=1e-6)
    np.testing.assert_allclose([row["mean_probability"] for row in found.bins], means, atol=1e-6)
    assert sum(row["n"] for row in found.bins) == 500
    counts = np.array([row["n"] for row in found.bins])
    assert found.ece == pytest.approx(float((counts * abs(shares - means)).sum()) / 500, abs=1e-6)


def test_who_is_always_right_and_sure_errs_by_nothing() -> None:
    assert calibration([0.0, 1.0, 1.0], [False, True, True]).ece == 0
    assert calibration([0.0, 1.0, 1.0], [True, False, False]).ece == 1


def test_empty_bins_are_left_out_and_an_edge_belongs_to_the_bin_above() -> None:
    rows = calibration([0.5, 0.55, 1.0], [True, False, True]).bins
    assert [(row["from"], row["to"], row["n"]) for row in rows] == [(0.5, 0.6, 2), (0.9, 1.0, 1)]


def test_of_a_classifier_it_is_the_second_class_of_two_and_of_more_the_one_predicted() -> None:
    found = classifier_calibration(["ham", "spam"], [[0.8, 0.2], [0.3, 0.7]], ("ham", "spam"))
    assert found == calibration([0.2, 0.7], [False, True])
    p = [[0.8, 0.1, 0.1], [0.5, 0.1, 0.4], [0.2, 0.2, 0.6]]
    found = classifier_calibration(["a", "c", "c"], p, ("a", "b", "c"))
    assert found == calibration([0.8, 0.5, 0.6], [True, False, True])
