"""The usual figures of a classifier, what it must beat, and where it was surest and wrong.

Of two classes the second is the positive one, whose F1, ranking and curves are told. Of more, each is held against the
rest, and the figures are means over the classes.
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
    """The classes whose ranking is told: of two the second, of more all.

    >>> told_classes(("ham", "spam")), told_classes(("a", "b", "c"))
    (('spam',), ('a', 'b', 'c'))
    """
    return tuple(labels[1:]) if len(labels) == 2 else tuple(labels)


def classification_metrics(y_true: Sequence[str], y_pred: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """accuracy, f1, precision, recall (0 where undefined) and confusion_matrix, all fractions from 0 to 1.

    f1, precision and recall are those of the second of two classes, and of more classes the mean over them (macro).
    The rows of the matrix are the true classes, its columns the predicted ones, in the order of `labels`.

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
    """How well a class's probability puts its texts before the others, for each of `told_classes`.

    Both are fractions from 0 to 1. roc_auc, the area under the ROC curve: the share of pairs of a text of the class
    and one of another in which the first is the likelier, a tie being half. average_precision, the area under the
    precision-recall curve: the mean, over the texts of the class, of the precision down to it.

    Args:
        y_true: [n], some of each class and some of others.
        probabilities: [n, classes]
        labels: the classes.
    """
    told = _told(y_true, probabilities, labels)
    areas = [(roc_auc_score(is_it, p), average_precision_score(is_it, p)) for _, is_it, p in told]
    return {
        "roc_auc": [float(roc) for roc, _ in areas],
        "average_precision": [float(average) for _, average in areas],
    }


ROC_COLUMNS = ("class", "false_positive_rate", "true_positive_rate")
PRECISION_RECALL_COLUMNS = ("class", "recall", "precision")
MAX_POINTS = 200  # of a curve


def roc_rows(
    y_true: Sequence[str], probabilities: Sequence[Sequence[float]], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """The corners of the ROC curve of each of `told_classes`, from (0, 0) to (1, 1); arguments as `ranking_metrics`."""
    return [
        row
        for name, is_it, p in _told(y_true, probabilities, labels)
        for row in _rows(ROC_COLUMNS, name, *roc_curve(is_it, p)[:2])
    ]


def precision_recall_rows(
    y_true: Sequence[str], probabilities: Sequence[Sequence[float]], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """The precision-recall curve of each of `told_classes`, by growing recall; arguments as `ranking_metrics`."""
    rows = []
    for name, is_it, p in _told(y_true, probabilities, labels):
        precision, recall, _ = precision_recall_curve(is_it, p, drop_intermediate=True)
        rows += _rows(PRECISION_RECALL_COLUMNS, name, recall[::-1], precision[::-1])
    return rows


def _told(
    y_true: Sequence[str], probabilities: Sequence[Sequence[float]], labels: Sequence[str]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Of each told class its name, which texts are of it [n], and its probabilities [n]."""
    true, p = np.asarray(y_true), np.asarray(probabilities, np.float64)  # [n], [n, classes]
    return [(name, true == name, p[:, labels.index(name)]) for name in reported_classes(labels)]


def _rows(columns: Sequence[str], name: str, x: np.ndarray, y: np.ndarray) -> list[dict[str, Any]]:
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(int))
    return [dict(zip(columns, (name, round(float(x[i]), 6), round(float(y[i]), 6)), strict=True)) for i in chosen]


def majority_baseline(train: Rows, test: Rows, labels: Sequence[str]) -> dict[str, Any]:
    """`classification_metrics` of the label that is most frequent in `train`, the first of equals by name."""
    found = [label for label, _ in train]
    most = max(sorted(set(found)), key=found.count)
    return classification_metrics([label for label, _ in test], [most] * len(test), labels)


def tfidf_baseline(
    train: Rows, test: Rows, labels: Sequence[str], seed: int, *, characters: bool = False
) -> dict[str, Any]:
    """`classification_metrics` of logistic regression on TF-IDF, fitted on `train`.

    Of words, or with `characters` of their n-grams from 2 to 5, which see parts of words, signs and spaces. Texts
    without a single word leave the more frequent label.
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
    """Of predictions (rows of `MISTAKE_COLUMNS`, the probability being the predicted label's), the wrong ones that were
    surest: twenty at most, the surest first, those of the first seed before others as sure."""
    wrong = [row for row in rows if row["actual"] != row["predicted"]]
    return sorted(wrong, key=lambda row: -row["probability"])[:MAX_MISTAKES]


def _indices(names: Sequence[str], labels: Sequence[str]) -> list[int]:
    number = {label: i for i, label in enumerate(labels)}
    return [number[name] for name in names]
