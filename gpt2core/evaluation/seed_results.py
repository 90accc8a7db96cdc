"""A classifier's results over several seeds: the mean of each metric, and tables with a column `seed`."""

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
from gpt2core.evaluation.metrics.intervals import mean_std_ci, rounded

_DIGITS = 6


class SeedResults:
    """Results on the test splits of all seeds that were added. Baselines are fitted and tested on the same splits."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.predictions: list[dict[str, Any]] = []  # a row of `MISTAKE_COLUMNS` for each text
        self.roc: list[dict[str, Any]] = []  # points of the curve: `ROC_COLUMNS` with the seed
        self.precision_recall: list[dict[str, Any]] = []  # `PRECISION_RECALL_COLUMNS` with the seed
        self._seeds: list[int] = []
        self._probabilities: list[Sequence[float]] = []
        self._ranking: list[dict[str, list[float]]] = []
        self._scores: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)  # model or baseline: a row per seed

    def add(
        self,
        seed: int,
        train: Rows,
        test: Rows,
        before: Sequence[str],
        after: Sequence[str],
        probabilities: Sequence[Sequence[float]],
    ) -> None:
        """Add the results of a seed: labels [n] predicted for `test` before and after fine-tuning.

        `probabilities` [n, classes] are those after it; `train` is for the baselines.
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
            {
                "seed": seed,
                "actual": actual,
                "predicted": predicted,
                "probability": round(max(p), _DIGITS),
                "text": text,
            }
            for (actual, text), predicted, p in zip(test, after, probabilities, strict=True)
        ]

    def calibration(self) -> Calibration:
        """Return the calibration of the predictions of all seeds together."""
        return classifier_calibration([row["actual"] for row in self.predictions], self._probabilities, self.labels)

    def auc(self) -> dict[str, dict[str, float]]:
        """Return `roc_auc` and `average_precision` of each of `reported_classes`, means over the seeds."""
        return {
            key: {
                name: round(mean(row[key][number] for row in self._ranking), _DIGITS)
                for number, name in enumerate(reported_classes(self.labels))
            }
            for key in ("roc_auc", "average_precision")
        }

    def write_tables(self, folder: Path) -> None:
        """Write CSV files: `confusion` (every text), `calibration`, `roc`, `precision_recall`, and `mistakes`."""
        files.write_csv(folder / "confusion.csv", ("seed", "actual", "predicted"), self.predictions)
        files.write_csv(folder / "calibration.csv", BIN_COLUMNS, self.calibration().bins)
        files.write_csv(folder / "roc.csv", ("seed", *ROC_COLUMNS), self.roc)
        files.write_csv(folder / "precision_recall.csv", ("seed", *PRECISION_RECALL_COLUMNS), self.precision_recall)
        files.write_csv(folder / "mistakes.csv", MISTAKE_COLUMNS, surest_mistakes(self.predictions))

    def metrics(self) -> dict[str, Any]:
        """Return means over the seeds, fractions from 0 to 1; the confusion matrices are the first seed's.

        With several seeds, there are also the standard deviation and the 95% interval of the accuracy, cut to 0 to 1.
        """
        accuracies = [row["accuracy"] for row in self._scores["test"]]
        auc = self.auc()
        metrics: dict[str, Any] = {"labels": list(self.labels)}
        for name, rows in self._scores.items():
            metrics |= {f"{name}_{key}": mean(row[key] for row in rows) for key in ("accuracy", "f1")}
        metrics["test_accuracy_by_seed"] = rounded(dict(zip(map(str, self._seeds), accuracies, strict=True)), _DIGITS)
        if len(accuracies) > 1:
            statistics = mean_std_ci(accuracies)
            metrics["test_accuracy_sd"] = statistics.sd
            metrics["test_accuracy_ci_low"] = max(0.0, statistics.ci_low)
            metrics["test_accuracy_ci_high"] = min(1.0, statistics.ci_high)
        metrics |= {f"test_{key}": mean(by_class.values()) for key, by_class in auc.items()}
        metrics |= {
            f"test_{key}_by_class": list(by_class.values()) for key, by_class in auc.items() if len(by_class) > 1
        }
        metrics["test_ece"] = self.calibration().ece
        metrics["confusion_matrix"] = self._scores["test"][0]["confusion_matrix"]
        metrics["before_confusion_matrix"] = self._scores["before_test"][0]["confusion_matrix"]
        return rounded(metrics, _DIGITS)


def add_seed_column(seed: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the seed as their first column.

    >>> add_seed_column(7, [{"epoch": 1}])
    [{'seed': 7, 'epoch': 1}]
    """
    return [{"seed": seed, **row} for row in rows]
