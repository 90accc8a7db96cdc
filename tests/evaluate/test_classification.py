"""Classification metrics against hand-counted tables, the baseline against data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from gpt2core.evaluate.classification import (
    classification_metrics,
    majority_baseline,
    ranking_metrics,
    surest_mistakes,
    tfidf_baseline,
)
from gpt2core.evaluate.intervals import spread


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


def test_character_ngrams_see_what_words_do_not() -> None:
    # No word is shared by training and test, but the spam's words are written with digits.
    rows = [("spam", f"w1n{chr(97 + i)} pr1ze{chr(97 + i)}") for i in range(20)]
    rows += [("ham", f"see{chr(97 + i)} home{chr(97 + i)}") for i in range(20)]
    assert tfidf_baseline(rows[::2], rows[1::2], seed=0, characters=True)["accuracy"] == 1.0
    assert tfidf_baseline(rows[::2], rows[1::2], seed=0)["accuracy"] == 0.5


def test_the_majority_is_that_of_the_training_rows() -> None:
    train, test = [("spam", "a"), ("ham", "b"), ("spam", "c")], [("ham", "d"), ("spam", "e"), ("ham", "f")]
    assert majority_baseline(train, test)["accuracy"] == pytest.approx(1 / 3)
    assert majority_baseline([("spam", "a"), ("ham", "b")], test)["accuracy"] == pytest.approx(2 / 3)


def test_areas_are_those_by_hand() -> None:
    true, p = ["ham", "ham", "spam", "spam"], [0.1, 0.4, 0.35, 0.8]
    assert ranking_metrics(true, p)["roc_auc"] == pytest.approx(3 / 4)  # one pair of four stands the wrong way round
    assert ranking_metrics(true, p)["average_precision"] == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_the_surest_mistakes_come_first_and_are_twenty_at_most() -> None:
    rows = [
        {"seed": 1, "actual": "ham", "predicted": ("spam", "ham")[i % 2], "probability": 0.5 + i / 100, "text": str(i)}
        for i in range(50)
    ]
    found = [row["text"] for row in surest_mistakes(rows)]
    assert found == [str(i) for i in range(48, 8, -2)]


def test_the_interval_over_seeds_covers_the_true_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        _, low, high = spread(generator.normal(0.97, 0.01, size=3).tolist())
        hits += low <= 0.97 <= high
    assert 930 <= hits <= 970
