"""Figures over seeds against scikit-learn's and NumPy's of each seed."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from gpt2core.evaluation.seed_results import SeedResults

TRAIN = [("a", "red ball"), ("b", "blue ship"), ("c", "green tree"), ("a", "red roof")]


def rows_of(rng: np.random.Generator, labels: tuple[str, ...]) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Texts of each class, and probabilities that are often right: [n, classes]"""
    truth = [*labels, *rng.choice(labels, 20)]
    logits = rng.normal(size=(len(truth), len(labels)))
    logits[np.arange(len(truth)), [labels.index(label) for label in truth]] += 1.0
    p = np.exp(logits)
    return [(str(label), f"text {n}") for n, label in enumerate(truth)], p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c")])
def test_each_figure_is_the_mean_of_the_seeds(labels: tuple[str, ...]) -> None:
    rng, results = np.random.default_rng(0), SeedResults(labels)
    accuracies, f1s, aucs = [], [], []
    for seed in (5, 3, 9):
        test, p = rows_of(rng, labels)
        truth, after = [label for label, _ in test], [labels[i] for i in p.argmax(1)]
        before = [labels[0]] * len(test)
        results.add(seed, [row for row in TRAIN if row[0] in labels], test, before, after, p.tolist())
        accuracies.append(accuracy_score(truth, after))
        kind = dict(average="binary", pos_label="b") if len(labels) == 2 else dict(average="macro")
        f1s.append(f1_score(truth, after, **kind))
        told = labels[1:] if len(labels) == 2 else labels
        aucs.append([roc_auc_score([t == name for t in truth], p[:, labels.index(name)]) for name in told])
    metrics = results.metrics()
    assert metrics["test_accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-6)
    assert metrics["test_f1"] == pytest.approx(np.mean(f1s), abs=1e-6)
    assert list(metrics["test_accuracy_by_seed"]) == ["5", "3", "9"]
    assert list(metrics["test_accuracy_by_seed"].values()) == pytest.approx(accuracies, abs=1e-6)
    assert metrics["test_accuracy_sd"] == pytest.approx(np.std(accuracies, ddof=1), abs=1e-6)
    assert metrics["test_roc_auc"] == pytest.approx(np.mean(aucs), abs=1e-6)
    assert list(results.auc()["roc_auc"].values()) == pytest.approx(np.mean(aucs, 0), abs=1e-6)
    assert ("test_roc_auc_by_class" in metrics) == (len(labels) > 2)
    assert metrics["before_test_accuracy"] < metrics["test_accuracy"]
    wrong = sum(row["actual"] != row["predicted"] for row in results.predictions)
    assert 1 - wrong / len(results.predictions) == pytest.approx(np.mean(accuracies))
    for rows in (results.predictions, results.roc, results.precision_recall):
        assert [seed for n, seed in enumerate(r["seed"] for r in rows) if n == 0 or rows[n - 1]["seed"] != seed] == [
            5, 3, 9
        ]  # fmt: skip


def test_one_seed_has_no_spread() -> None:
    test, p = rows_of(np.random.default_rng(1), ("a", "b"))
    results = SeedResults(("a", "b"))
    truth = [label for label, _ in test]
    results.add(0, TRAIN[:2], test, truth, truth, p.tolist())
    assert not [key for key in results.metrics() if key.endswith(("_sd", "_ci_low", "_ci_high"))]
