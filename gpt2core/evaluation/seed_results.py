"""A classifier's figures over several seeds: each figure's mean, and tables in which each row tells its seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from gpt2core import files
from gpt2core.evaluation.metrics.calibration import COLUMNS as BIN_COLUMNS
from gpt2core.evaluation.metrics.calibration import Calibration, classifier_calibration
from gpt2core.evaluation.metrics.classification import (
    MISTAKE_COLUMNS,
    PRECISION_RECALL_COLUMNS,
    ROC_COLUMNS,
    Rows,
    classification_metrics,
    majority_baseline,
    precision_recall_rows,
    ranking_metrics,
    reported_classes,
    roc_rows,
    surest_mistakes,
    tfidf_baseline,
)
from gpt2core.evaluation.metrics.intervals import mean_std_ci


class SeedResults:
    """What the test splits of the seeds tell, once all are added; the baselines learn and are asked on the same splits.

    Attributes:
        predictions: a row of `MISTAKE_COLUMNS` for each text.
        roc, precision_recall: the curves' points, rows of `ROC_COLUMNS` and `PRECISION_RECALL_COLUMNS` with their seed.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.predictions: list[dict[str, Any]] = []
        self.roc: list[dict[str, Any]] = []
        self.precision_recall: list[dict[str, Any]] = []
        self._seeds: list[int] = []
        self._probabilities: list[Sequence[float]] = []
        self._ranking: list[dict[str, list[float]]] = []
        self._scores: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)  # of each seed, by whose they are

    def add(
        self,
        seed: int,
        train: Rows,
        test: Rows,
        before: Sequence[str],
        after: Sequence[str],
        probabilities: Sequence[Sequence[float]],
    ) -> None:
        """Add a seed.

        Args:
            seed: of the splits, and of what is drawn.
            train, test: its splits.
            before, after: the labels predicted for `test` before and after fine-tuning, [n].
            probabilities: after it, [n, classes].
        """
        labels, truth = self.labels, [label for label, _ in test]
        self._seeds.append(seed)
        self._scores["test"].append(classification_metrics(truth, after, labels))
        self._scores["before_test"].append(classification_metrics(truth, before, labels))
        self._scores["baseline_test"].append(tfidf_baseline(train, test, labels, seed))
        self._scores["majority_test"].append(majority_baseline(train, test, labels))
        self._scores["characters_test"].append(tfidf_baseline(train, test, labels, seed, characters=True))
        self._ranking.append(ranking_metrics(truth, probabilities, labels))
        self._probabilities += probabilities
        self.roc += add_seed_column(seed, roc_rows(truth, probabilities, labels))
        self.precision_recall += add_seed_column(seed, precision_recall_rows(truth, probabilities, labels))
        self.predictions += [
            {"seed": seed, "actual": actual, "predicted": predicted, "probability": round(max(p), 6), "text": text}
            for (actual, text), predicted, p in zip(test, after, probabilities, strict=True)
        ]

    def calibration(self) -> Calibration:
        """Of the predictions of all seeds together."""
        return classifier_calibration([row["actual"] for row in self.predictions], self._probabilities, self.labels)

    def areas(self) -> dict[str, dict[str, float]]:
        """`roc_auc` and `average_precision`: of each of `told_classes` the mean over the seeds."""
        told = reported_classes(self.labels)
        return {
            key: {name: round(mean(row[key][number] for row in self._ranking), 6) for number, name in enumerate(told)}
            for key in ("roc_auc", "average_precision")
        }

    def write_tables(self, folder: Path) -> None:
        """As CSV: `confusion` (every text), `calibration`, `roc`, `precision_recall`, and the surest `mistakes`."""
        files.write_csv(folder / "confusion.csv", ("seed", "actual", "predicted"), self.predictions)
        files.write_csv(folder / "calibration.csv", BIN_COLUMNS, self.calibration().bins)
        files.write_csv(folder / "roc.csv", ("seed", *ROC_COLUMNS), self.roc)
        files.write_csv(folder / "precision_recall.csv", ("seed", *PRECISION_RECALL_COLUMNS), self.precision_recall)
        files.write_csv(folder / "mistakes.csv", MISTAKE_COLUMNS, surest_mistakes(self.predictions))

    def metrics(self) -> dict[str, Any]:
        """Means over the seeds, fractions from 0 to 1; the confusion matrices are the first seed's."""
        accuracies = [row["accuracy"] for row in self._scores["test"]]
        areas = self.areas()
        return {
            "labels": list(self.labels),
            **{
                f"{whose}_{key}": round(mean(row[key] for row in rows), 6)
                for whose, rows in self._scores.items()
                for key in ("accuracy", "f1")
            },
            "test_accuracy_by_seed": {
                str(seed): round(accuracy, 6) for seed, accuracy in zip(self._seeds, accuracies, strict=True)
            },
            **_interval(accuracies),
            **{f"test_{key}": round(mean(of.values()), 6) for key, of in areas.items()},
            **{f"test_{key}_by_class": list(of.values()) for key, of in areas.items() if len(of) > 1},
            "test_ece": self.calibration().ece,
            "confusion_matrix": self._scores["test"][0]["confusion_matrix"],
            "before_confusion_matrix": self._scores["before_test"][0]["confusion_matrix"],
        }


def add_seed_column(seed: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, the seed before each.

    >>> with_seed(7, [{"epoch": 1}])
    [{'seed': 7, 'epoch': 1}]
    """
    return [{"seed": seed, **row} for row in rows]


def _interval(accuracies: Sequence[float]) -> dict[str, float]:
    """Standard deviation and 95% interval over the seeds, as far as shares go; nothing of a single one."""
    if len(accuracies) < 2:
        return {}
    sd, low, high = mean_std_ci(accuracies)
    return {
        "test_accuracy_sd": round(sd, 6),
        "test_accuracy_ci_low": round(max(0.0, low), 6),
        "test_accuracy_ci_high": round(min(1.0, high), 6),
    }
