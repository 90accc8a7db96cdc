"""Spam or not: the usual figures, and the baseline that knows words but no order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

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


def tfidf_baseline(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]], seed: int) -> dict[str, Any]:
    """`classification_metrics` of logistic regression on TF-IDF of words, fitted on `train`; rows are (label, text)."""
    vectorizer = TfidfVectorizer()
    model = LogisticRegression(max_iter=1000, random_state=seed)
    model.fit(vectorizer.fit_transform(text for _, text in train), _indices([label for label, _ in train]))
    predicted = model.predict(vectorizer.transform(text for _, text in test))
    return classification_metrics([label for label, _ in test], predicted)


def _indices(labels: Any) -> list[int]:
    return [_SPAM[label] for label in np.asarray(labels).tolist()]
