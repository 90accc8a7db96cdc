"""Metrics of a classifier, its baselines, and its most confident mistakes.

With two classes, the second is the positive class, and F1, ranking metrics, and curves are those of this class. With
more, each class is compared with all others, and the metrics are means over the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

Rows = Sequence[tuple[str, str]]  # label, text


def reported_classes(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the classes that have ranking metrics: the second of two, or all.

    >>> reported_classes(("ham", "spam")), reported_classes(("a", "b", "c"))
    (('spam',), ('a', 'b', 'c'))
    """
    return tuple(labels[1:]) if len(labels) == 2 else tuple(labels)


def classification_metrics(y_true: Sequence[str], y_pred: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Return accuracy, f1, precision, recall (fractions from 0 to 1; 0 if undefined), and confusion_matrix (counts).

    f1, precision, and recall are those of the second of two classes, or the mean over more classes (macro). The rows of
    the matrix are true classes, and its columns predicted classes, in the order of `labels`.

    >>> true, predicted = ["ham", "ham", "spam", "spam"], ["ham", "spam", "spam", "spam"]
    >>> classification_metrics(true, predicted, ("ham", "spam"))["confusion_matrix"]
    [[1, 1], [0, 2]]
    """
    true, predicted = _indices(y_true, labels), _indices(y_pred, labels)
    precision, recall, f1, _ = precision_recall_fscore_support(
        true,
        predicted,
        labels=range(len(labels)),
        average="binary" if len(labels) == 2 else "macro",
        zero_division=0,
    )
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "confusion_matrix": confusion_matrix(true, predicted, labels=range(len(labels))).tolist(),
    }


def ranking_metrics(
    y_true: Sequence[str], probabilities: Sequence[Sequence[float]], labels: Sequence[str]
) -> dict[str, list[float]]:
    """Return how well the probability of each of `reported_classes` ranks its texts before the others.

    `y_true` [n] must have at least one text of each class, and one of another; `probabilities` is [n, classes].

    Returns:
        Fractions from 0 to 1, one per reported class. roc_auc, the area under the ROC curve: the fraction of pairs of a
        text of the class and another text in which the first has the higher probability; a tie counts half.
        average_precision, the area under the precision-recall curve: the mean, over the texts of the class, of the
        precision down to the text.
    """
    classes = _one_against_rest(y_true, probabilities, labels)
    return {
        "roc_auc": [float(roc_auc_score(is_class, p)) for _, is_class, p in classes],
        "average_precision": [float(average_precision_score(is_class, p)) for _, is_class, p in classes],
    }


ROC_COLUMNS = ("class", "false_positive_rate", "true_positive_rate")
PRECISION_RECALL_COLUMNS = ("class", "recall", "precision")
MAX_POINTS = 200  # per curve


def roc_rows(
    y_true: Sequence[str], probabilities: Sequence[Sequence[float]], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the corners of the ROC curves from (0, 0) to (1, 1); see `ranking_metrics`."""
    return [
        row
        for name, is_class, p in _one_against_rest(y_true, probabilities, labels)
        for row in _rows(ROC_COLUMNS, name, *roc_curve(is_class, p)[:2])
    ]


def precision_recall_rows(
    y_true: Sequence[str], probabilities: Sequence[Sequence[float]], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the precision-recall curves by increasing recall; see `ranking_metrics`."""
    rows = []
    for name, is_class, p in _one_against_rest(y_true, probabilities, labels):
        precision, recall, _ = precision_recall_curve(is_class, p, drop_intermediate=True)
        rows += _rows(PRECISION_RECALL_COLUMNS, name, recall[::-1], precision[::-1])
    return rows


def _one_against_rest(
    y_true: Sequence[str], probabilities: Sequence[Sequence[float]], labels: Sequence[str]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return, for each reported class, its name, whether each text is of this class [n], and its probabilities [n]."""
    true, p = np.asarray(y_true), np.asarray(probabilities, np.float64)  # [n], [n, classes]
    return [(name, true == name, p[:, labels.index(name)]) for name in reported_classes(labels)]


def _rows(columns: Sequence[str], name: str, x: np.ndarray, y: np.ndarray) -> list[dict[str, Any]]:
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(int))
    return [dict(zip(columns, (name, round(float(x[i]), 6), round(float(y[i]), 6)), strict=True)) for i in chosen]


def majority_baseline(train: Rows, test: Rows, labels: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of always predicting the most frequent label of `train`; of equals, the first by name."""
    train_labels = [label for label, _ in train]
    most_frequent = max(sorted(set(train_labels)), key=train_labels.count)
    return classification_metrics([label for label, _ in test], [most_frequent] * len(test), labels)


def tfidf_baseline(
    train: Rows, test: Rows, labels: Sequence[str], seed: int, *, characters: bool = False
) -> dict[str, Any]:
    """Return the metrics of logistic regression on TF-IDF features, fitted on `train`.

    Features are words or, with `characters`, character n-grams from 2 to 5. If no text has a word, the most frequent
    label is predicted.
    """
    if characters:
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True)
        model = LogisticRegression(C=10, max_iter=1000, random_state=seed)
    else:
        vectorizer = TfidfVectorizer()
        model = LogisticRegression(max_iter=1000, random_state=seed)
    try:
        features = vectorizer.fit_transform(text for _, text in train)
    except ValueError:  # an empty vocabulary
        return majority_baseline(train, test, labels)
    model.fit(features, _indices([label for label, _ in train], labels))
    predicted = model.predict(vectorizer.transform(text for _, text in test))
    return classification_metrics([label for label, _ in test], [labels[i] for i in predicted], labels)


MISTAKE_COLUMNS = ("seed", "actual", "predicted", "probability", "text")
MAX_MISTAKES = 20


def surest_mistakes(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the most confident wrong predictions, the most confident first; of equals, those of the first seed."""
    wrong = [row for row in rows if row["actual"] != row["predicted"]]
    return sorted(wrong, key=lambda row: -row["probability"])[:MAX_MISTAKES]


def _indices(names: Sequence[str], labels: Sequence[str]) -> list[int]:
    number = {label: i for i, label in enumerate(labels)}
    return [number[name] for name in names]
