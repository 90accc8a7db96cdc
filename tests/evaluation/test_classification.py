"""Classification metrics against hand-counted tables, the baseline against data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from gpt2core.evaluation.metrics.classification import (
    classification_metrics,
    majority_baseline,
    precision_recall_rows,
    ranking_metrics,
    roc_rows,
    surest_mistakes,
    tfidf_baseline,
)
from gpt2core.evaluation.metrics.intervals import mean_std_ci

SPAM = ("ham", "spam")


def test_figures_are_those_of_the_table_by_hand() -> None:
    # 5 true negatives, 1 false positive, 2 false negatives, 4 true positives
    true = ["ham"] * 6 + ["spam"] * 6
    predicted = ["ham"] * 5 + ["spam"] + ["ham"] * 2 + ["spam"] * 4
    metrics = classification_metrics(true, predicted, SPAM)
    assert metrics["confusion_matrix"] == [[5, 1], [2, 4]]
    assert metrics["accuracy"] == pytest.approx(9 / 12)
    assert metrics["precision"] == pytest.approx(4 / 5)
    assert metrics["recall"] == pytest.approx(4 / 6)
    assert metrics["f1"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 2))


def test_of_three_classes_f1_is_the_mean_over_them() -> None:
    true = ["a"] * 4 + ["b"] * 3 + ["c"] * 3
    predicted = ["a", "a", "b", "c", "b", "b", "a", "c", "c", "c"]
    metrics = classification_metrics(true, predicted, ("a", "b", "c"))
    assert metrics["confusion_matrix"] == [[2, 1, 1], [1, 2, 0], [0, 0, 3]]
    assert metrics["accuracy"] == pytest.approx(7 / 10)
    assert metrics["f1"] == pytest.approx((2 * 2 / (4 + 3) + 2 * 2 / (3 + 3) + 2 * 3 / (3 + 4)) / 3)


def test_no_spam_predicted_is_no_error_and_the_matrix_stays_two_by_two() -> None:
    metrics = classification_metrics(["ham", "ham"], ["ham", "ham"], SPAM)
    assert metrics["confusion_matrix"] == [[2, 0], [0, 0]]
    assert (metrics["accuracy"], metrics["f1"], metrics["precision"], metrics["recall"]) == (1.0, 0.0, 0.0, 0.0)


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(KeyError):
        classification_metrics(["ham", "eggs"], ["ham", "ham"], SPAM)


def test_baseline_learns_words_but_not_their_order() -> None:
    by_word = [("spam", f"win a prize {i}") for i in range(20)] + [("ham", f"see you at home {i}") for i in range(20)]
    assert tfidf_baseline(by_word[::2], by_word[1::2], SPAM, seed=0)["accuracy"] == 1.0

    by_order = [("spam", "pay him not me"), ("ham", "pay me not him")] * 10
    assert tfidf_baseline(by_order, by_order, SPAM, seed=0)["accuracy"] == 0.5


def test_character_ngrams_see_what_words_do_not() -> None:
    # No word is shared by training and test, but the spam's words are written with digits.
    rows = [("spam", f"w1n{chr(97 + i)} pr1ze{chr(97 + i)}") for i in range(20)]
    rows += [("ham", f"see{chr(97 + i)} home{chr(97 + i)}") for i in range(20)]
    assert tfidf_baseline(rows[::2], rows[1::2], SPAM, seed=0, characters=True)["accuracy"] == 1.0
    assert tfidf_baseline(rows[::2], rows[1::2], SPAM, seed=0)["accuracy"] == 0.5


def test_the_baselines_know_many_classes_and_texts_without_words() -> None:
    labels = tuple("abcde")
    rows = [(label, f"word{label} {i}") for i in range(10) for label in labels]
    assert tfidf_baseline(rows[:25], rows[25:], labels, seed=0)["accuracy"] == 1.0
    signs = [("ham", "!"), ("ham", "?"), ("spam", "£")]
    assert tfidf_baseline(signs, signs, SPAM, seed=0) == majority_baseline(signs, signs, SPAM)


def test_the_majority_is_that_of_the_training_rows() -> None:
    train, test = [("spam", "a"), ("ham", "b"), ("spam", "c")], [("ham", "d"), ("spam", "e"), ("ham", "f")]
    assert majority_baseline(train, test, SPAM)["accuracy"] == pytest.approx(1 / 3)
    assert majority_baseline([("spam", "a"), ("ham", "b")], test, SPAM)["accuracy"] == pytest.approx(2 / 3)


def test_areas_are_those_by_hand() -> None:
    true, p_spam = ["ham", "ham", "spam", "spam"], [0.1, 0.4, 0.35, 0.8]
    found = ranking_metrics(true, [[1 - p, p] for p in p_spam], SPAM)
    assert found["roc_auc"] == [pytest.approx(3 / 4)]  # one pair of four stands the wrong way round
    assert found["average_precision"] == [pytest.approx((1 / 1 + 2 / 3) / 2)]


@pytest.mark.parametrize("labels", [SPAM, ("a", "b", "c", "d")])
@pytest.mark.parametrize("n", [40, 3000])
def test_the_curves_have_the_areas_that_counting_gives(labels: tuple[str, ...], n: int) -> None:
    """Each told class against the rest: pairs in order, and the precision down to each text of the class."""
    generator = np.random.default_rng(0)
    numbers = generator.integers(len(labels), size=n)
    scores = generator.normal(size=(n, len(labels))) + 1.5 * np.eye(len(labels))[numbers]
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    true = [labels[i] for i in numbers]
    told = labels[1:] if len(labels) == 2 else labels
    found = ranking_metrics(true, p.tolist(), labels)
    roc, precision_recall = (draw(true, p.tolist(), labels) for draw in (roc_rows, precision_recall_rows))
    assert {row["class"] for row in roc} == {row["class"] for row in precision_recall} == set(told)
    for place, name in enumerate(told):
        of, rest = (p[[(t == name) == is_it for t in true], labels.index(name)] for is_it in (True, False))
        pairs = (of[:, None] > rest).mean()
        precision = np.mean([(of >= x).sum() / ((of >= x).sum() + (rest >= x).sum()) for x in of])
        assert found["roc_auc"][place] == pytest.approx(pairs)
        assert found["average_precision"][place] == pytest.approx(precision)
        x, y = np.array([list(row.values())[1:] for row in roc if row["class"] == name]).T
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1) and (np.diff(x) >= 0).all() and len(x) <= 200
        assert np.trapezoid(y, x) == pytest.approx(pairs, abs=2e-5 if n == 40 else 2e-3)
        x, y = np.array([list(row.values())[1:] for row in precision_recall if row["class"] == name]).T
        assert (x[0], x[-1]) == (0, 1) and (np.diff(x) >= 0).all() and len(x) <= 200
        assert (np.diff(x) * y[1:]).sum() == pytest.approx(precision, abs=2e-5 if n == 40 else 1e-2)


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
        low, high = mean_std_ci(generator.normal(0.97, 0.01, size=3).tolist())[2:]
        hits += low <= 0.97 <= high
    assert 930 <= hits <= 970
