"""Stage finetune-classify: a base model and labelled messages -> models/classifier
(`python -m stages.finetune_classify`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from gpt2core import config, files
from gpt2core.data import labelled
from gpt2core.evaluate.calibration import COLUMNS as BIN_COLUMNS
from gpt2core.evaluate.calibration import classifier_calibration
from gpt2core.evaluate.classification import (
    MISTAKE_COLUMNS,
    PRECISION_RECALL_COLUMNS,
    ROC_COLUMNS,
    classification_metrics,
    majority_baseline,
    precision_recall_rows,
    ranking_metrics,
    roc_rows,
    surest_mistakes,
    tfidf_baseline,
    told_classes,
)
from gpt2core.evaluate.intervals import spread
from gpt2core.runtime import run_stage, say
from gpt2core.track import plots, stage_run
from gpt2core.train.classify import COLUMNS, finetune_classify
from gpt2core.train.states import stage_states
from gpt2core.weights.model_dir import save_model

MODEL = Path("models/classifier")
MESSAGES = Path("data/raw/sms.jsonl")
PLOTS = Path("metrics/plots")
CURVE = PLOTS / "finetune_classify.csv"
CONFUSION = PLOTS / "confusion.csv"
CALIBRATION = PLOTS / "calibration.csv"
ROC = PLOTS / "roc.csv"
PRECISION_RECALL = PLOTS / "precision_recall.csv"
MISTAKES = PLOTS / "mistakes.csv"


def main() -> None:
    params = config.load_params()
    section = params.finetune_classify
    messages = labelled.read_table(MESSAGES)
    labels = labelled.classes(messages)
    base = Path("models") / section.base
    if section.position != "last":
        say(f"position: {section.position}: gpt2core reads models/classifier; transformers, which knows last, will not")
    decides = params.model_dump(include={"finetune_classify"})
    with (
        stage_states("finetune-classify", decides, [MESSAGES, base]) as states,
        stage_run(
            "finetune-classify", params, sections=("data", "finetune_classify"), inputs=[MESSAGES, base],
            run_file=states.run_file
        ) as run,
    ):  # fmt: skip
        # Of each seed, by whose they are: the model's, before and after, and the baselines'.
        scores: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        ranking, curve, roc, precision_recall = [], [], [], []
        kept_epochs: dict[str, int] = {}
        predictions: list[dict[str, Any]] = []
        probabilities: list[list[float]] = []
        for number, seed in enumerate(section.seeds):
            splits = labelled.split(
                messages, section.val_fraction, section.test_fraction, seed,
                balance=section.balance, drop_duplicates=section.drop_duplicates,
            )  # fmt: skip
            on_metrics = run.log_metrics if number == 0 else _silent  # one curve a run
            result = finetune_classify(
                section, seed, base, labels,
                splits.train, splits.val, splits.test, on_metrics, states.training(f"seed-{seed}"),
            )  # fmt: skip
            kept_epochs[str(seed)] = result.kept_epoch
            truth = [label for label, _ in splits.test]
            scores["test"].append(classification_metrics(truth, result.after, labels))
            scores["before_test"].append(classification_metrics(truth, result.before, labels))
            scores["baseline_test"].append(tfidf_baseline(splits.train, splits.test, labels, seed))
            scores["majority_test"].append(majority_baseline(splits.train, splits.test, labels))
            characters = tfidf_baseline(splits.train, splits.test, labels, seed, characters=True)
            scores["characters_test"].append(characters)
            ranking.append(ranking_metrics(truth, result.probabilities, labels))
            curve += _of_seed(seed, result.curve)
            roc += _of_seed(seed, roc_rows(truth, result.probabilities, labels))
            precision_recall += _of_seed(seed, precision_recall_rows(truth, result.probabilities, labels))
            predictions += [
                {"seed": seed, "actual": actual, "predicted": predicted, "probability": round(max(p), 6), "text": text}
                for (actual, text), predicted, p in zip(splits.test, result.after, result.probabilities, strict=True)
            ]
            probabilities += result.probabilities
            if number == 0:  # the first seed's model is the one kept
                save_model(MODEL, result.model, result.tokenizer)

        # Of all seeds together.
        calibrated = classifier_calibration([row["actual"] for row in predictions], probabilities, labels)
        areas = {key: _means([row[key] for row in ranking]) for key in ("roc_auc", "average_precision")}
        accuracies = [row["accuracy"] for row in scores["test"]]
        metrics: dict[str, Any] = {
            "labels": list(labels),
            **{f"{whose}_{key}": round(mean(row[key] for row in rows), 6)
               for whose, rows in scores.items() for key in ("accuracy", "f1")},
            "test_accuracy_by_seed": {str(s): round(a, 6) for s, a in zip(section.seeds, accuracies, strict=True)},
            **_spread_metrics(accuracies),
            **({"kept_epoch_by_seed": kept_epochs} if section.patience_epochs else {}),
            **{f"test_{key}": round(mean(values), 6) for key, values in areas.items()},
            **{f"test_{key}_by_class": values for key, values in areas.items() if len(values) > 1},
            "test_ece": calibrated.ece,
            "confusion_matrix": scores["test"][0]["confusion_matrix"],
            "before_confusion_matrix": scores["before_test"][0]["confusion_matrix"],
            "train_messages": len(splits.train),
            "val_messages": len(splits.val),
            "test_messages": len(splits.test),
            "truncated_messages": result.truncated,
            "trainable_parameters": result.trainable_parameters,
        }  # fmt: skip
        files.write_csv(CURVE, ("seed", *COLUMNS), curve)
        files.write_csv(CONFUSION, ("seed", "actual", "predicted"), predictions)
        files.write_csv(CALIBRATION, BIN_COLUMNS, calibrated.bins)
        files.write_csv(ROC, ("seed", *ROC_COLUMNS), roc)
        files.write_csv(PRECISION_RECALL, ("seed", *PRECISION_RECALL_COLUMNS), precision_recall)
        files.write_csv(MISTAKES, MISTAKE_COLUMNS, surest_mistakes(predictions))
        files.write_json("metrics/finetune_classify.json", metrics)
        run.log_artifact(CURVE)
        run.log_figure(plots.accuracy_curve, CURVE, PLOTS / "classify_accuracy.svg")
        run.log_figure(plots.confusion_matrix, metrics["confusion_matrix"], labels, PLOTS / "classify_confusion.svg")
        run.log_figure(plots.reliability, calibrated.bins, calibrated.ece, labels, PLOTS / "classify_reliability.svg")
        told = told_classes(labels)
        by_class = {key: dict(zip(told, values, strict=True)) for key, values in areas.items()}
        run.log_figure(plots.roc_curves, roc, by_class["roc_auc"], PLOTS / "classify_roc.svg")
        run.log_figure(
            plots.precision_recall_curves, precision_recall, by_class["average_precision"],
            PLOTS / "classify_precision_recall.svg",
        )  # fmt: skip
        run.finish(metrics)
        run.log_model("classifier", MODEL, metrics)


def _of_seed(seed: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"seed": seed, **row} for row in rows]


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    """Of each column: [seeds, n] -> [n]"""
    return [round(mean(column), 6) for column in zip(*rows, strict=True)]


def _spread_metrics(accuracies: list[float]) -> dict[str, float]:
    """Standard deviation and 95% interval over the seeds, as far as shares go; nothing of a single one."""
    if len(accuracies) < 2:
        return {}
    sd, low, high = spread(accuracies)
    return {
        "test_accuracy_sd": round(sd, 6),
        "test_accuracy_ci_low": round(max(0.0, low), 6),
        "test_accuracy_ci_high": round(min(1.0, high), 6),
    }


def _silent(metrics: dict[str, float], step: int) -> None:
    """Curves of further seeds are in the CSV."""


if __name__ == "__main__":
    run_stage(main)
