"""The headline metrics, and the baseline that the report and the summary name as the strongest."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from gpt2core.report import results
from gpt2core.report.pipeline import _classifier

METRICS = {
    "test_accuracy": 0.985, "test_f1": 0.98, "before_test_accuracy": 0.995, "before_test_f1": 0.9,
    "baseline_test_accuracy": 0.881, "baseline_test_f1": 0.88, "characters_test_accuracy": 0.99,
    "characters_test_f1": 0.98, "majority_test_accuracy": 0.5, "majority_test_f1": 0.0,
    "confusion_matrix": [[1, 0], [0, 1]], "before_confusion_matrix": [[1, 0], [0, 1]],
}  # fmt: skip


def accuracy_rows(metrics: dict) -> list[tuple[str, str]]:
    headlines = results.headlines({"finetune_classify": metrics})
    return [(row.description.strip(), row.value) for row in headlines if row.value.endswith("%")]


def test_the_strongest_baseline_follows_the_accuracy() -> None:
    assert accuracy_rows(METRICS)[:2] == [
        ("test accuracy", "98.50%"),
        ("strongest baseline: character n-gram TF-IDF", "99.00%"),
    ]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("baseline_test_accuracy", "word TF-IDF"),
        ("characters_test_accuracy", "character n-gram TF-IDF"),
        ("majority_test_accuracy", "most frequent class"),
    ],
)
def test_the_strongest_baseline_is_the_one_with_the_highest_accuracy(key: str, name: str) -> None:
    rows = accuracy_rows(METRICS | {key: 0.992})
    named = [description for description, _ in rows if "strongest" in description]
    assert named == [f"strongest baseline: {name}"]


def test_older_metrics_have_no_baseline() -> None:
    assert accuracy_rows({"test_accuracy": 0.9, "test_f1": 0.9}) == [("test accuracy", "90.00%")]
    assert results.strongest_baseline({"characters_test_accuracy": None}) is None


def test_the_report_marks_the_strongest_baseline(tmp_path: Path) -> None:
    section = _classifier(tmp_path, {"finetune_classify": METRICS})
    assert section
    marked = [row for row in section.tables[0].rows if "(strongest baseline)" in row[0]]
    assert marked == [("TF-IDF of character n-grams + logistic regression (strongest baseline)", "99.00%", "0.9800")]


def test_the_examples() -> None:
    assert doctest.testmod(results) == (0, 2)
