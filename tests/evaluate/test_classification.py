"""Classification metrics against hand-counted tables, the baseline against data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from gpt2core.evaluate.classification import classification_metrics, tfidf_baseline


def test_figures_are_those_of_the_table_by_hand() -> None:
    # 5 true negatives, 1 false positive, 2 false negatives, 4 true positives
    true = ["ham"] * 6 + ["spam"] * 6
    predicted = ["ham"] * 5 + ["spam"] + ["ham"] * 2 + ["spam"] * 4
    metrics = classification_metrics(true, predicted)
    assert metrics["confusion_matrix"] == [[5, 1], [2, 4]]
    assert metrics["accuracy"] == pytest.approx(9 / 12)
    assert metrics["precision"] == pytest.approx(4 / 5)
    assert metrics["recall"] == pytest.approx(4 / 6)
    assert metrics["f1"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 2))


def test_indices_mean_the_same_as_labels() -> None:
    true, predicted = np.array([0, 1, 1, 0]), np.array([1, 1, 0, 0])
    names = np.array(["ham", "spam"])
    assert classification_metrics(true, predicted) == classification_metrics(names[true], names[predicted])


def test_no_spam_predicted_is_no_error_and_the_matrix_stays_two_by_two() -> None:
    metrics = classification_metrics(["ham", "ham"], ["ham", "ham"])
    assert metrics["confusion_matrix"] == [[2, 0], [0, 0]]
    assert (metrics["accuracy"], metrics["f1"], metrics["precision"], metrics["recall"]) == (1.0, 0.0, 0.0, 0.0)


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(KeyError):
        classification_metrics(["ham", "eggs"], ["ham", "ham"])


def test_baseline_learns_words_but_not_their_order() -> None:
    by_word = [("spam", f"win a prize {i}") for i in range(20)] + [("ham", f"see you at home {i}") for i in range(20)]
    assert tfidf_baseline(by_word[::2], by_word[1::2], seed=0)["accuracy"] == 1.0

    by_order = [("spam", "pay him not me"), ("ham", "pay me not him")] * 10
    assert tfidf_baseline(by_order, by_order, seed=0)["accuracy"] == 0.5
