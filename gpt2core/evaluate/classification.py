"""Spam or not: the usual figures, what a model must beat, and where it was surest and wrong."""

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
    precision_recall_fscore_support,
    roc_auc_score,
)

_SPAM = {"ham": 0, "spam": 1, 0: 0, 1: 1}  # a label or its index -> is it spam, the positive class


def classification_metrics(y_true: Sequence[str | int], y_pred: Sequence[str | int]) -> dict[str, Any]:
    """accuracy, f1, precision, recall (of spam; 0 where undefined) and confusion_matrix, all fractions from 0 to 1.

    Labels are "ham" and "spam", or 0 and 1. The rows of the matrix are the true classes, its columns the predicted
    ones, ham before spam.

    >>> classification_metrics(["ham", "ham", "spam", "spam"], ["ham", "spam", "spam", "spam"])["confusion_matrix"]
    [[1, 1], [0, 2]]
    """
    true, predicted = _indices(y_true), _indices(y_pred)
    precision, recall, f1, _ = precision_recall_fscore_support(true, predicted, average="binary", zero_division=0)
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "confusion_matrix": confusion_matrix(true, predicted, labels=[0, 1]).tolist(),
    }


def ranking_metrics(y_true: Sequence[str], p_spam: Sequence[float]) -> dict[str, float]:
    """How well the probability of spam puts it before ham: areas under the ROC and the precision-recall curve.

    Both are fractions from 0 to 1. roc_auc: the share of pairs of a spam and a ham in which the spam is the likelier,
    a tie being half. average_precision: the mean, over the spam, of the precision down to it.
    """
    true = _indices(y_true)
    return {
        "roc_auc": float(roc_auc_score(true, p_spam)),
        "average_precision": float(average_precision_score(true, p_spam)),
    }


def majority_baseline(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """`classification_metrics` of the label that is most frequent in `train`, the first of equals by name."""
    labels = [label for label, _ in train]
    most = max(sorted(set(labels)), key=labels.count)
    return classification_metrics([label for label, _ in test], [most] * len(test))


def tfidf_baseline(
    train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]], seed: int, *, characters: bool = False
) -> dict[str, Any]:
    """`classification_metrics` of logistic regression on TF-IDF, fitted on `train`; rows are (label, text).

    Of words, or with `characters` of their n-grams from 2 to 5, which see parts of words, signs and spaces.
    """
    if characters:
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True)
        model = LogisticRegression(C=10, max_iter=1000, random_state=seed)
    else:
        vectorizer = TfidfVectorizer()
        model = LogisticRegression(max_iter=1000, random_state=seed)
    model.fit(vectorizer.fit_transform(text for _, text in train), _indices([label for label, _ in train]))
    predicted = model.predict(vectorizer.transform(text for _, text in test))
    return classification_metrics([label for label, _ in test], predicted)


MISTAKE_COLUMNS = ("seed", "actual", "predicted", "probability", "text")
MAX_MISTAKES = 20


def surest_mistakes(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of predictions (rows of `MISTAKE_COLUMNS`, the probability being the predicted label's), the wrong ones that were
    surest: twenty at most, the surest first, those of the first seed before others as sure."""
    wrong = [row for row in rows if row["actual"] != row["predicted"]]
    return sorted(wrong, key=lambda row: -row["probability"])[:MAX_MISTAKES]


def _indices(labels: Any) -> list[int]:
    return [_SPAM[label] for label in np.asarray(labels).tolist()]
