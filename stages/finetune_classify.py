"""Stage finetune-classify: a base model and labelled messages -> models/classifier
(`python -m stages.finetune_classify`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from gpt2core import config, files
from gpt2core.data import sms_spam
from gpt2core.evaluate.calibration import COLUMNS as BIN_COLUMNS
from gpt2core.evaluate.calibration import calibration
from gpt2core.evaluate.classification import (
    MISTAKE_COLUMNS,
    classification_metrics,
    majority_baseline,
    ranking_metrics,
    surest_mistakes,
    tfidf_baseline,
)
from gpt2core.evaluate.intervals import spread
from gpt2core.runtime import run_stage
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
MISTAKES = PLOTS / "mistakes.csv"


def main() -> None:
    params = config.load_params()
    section = params.finetune_classify
    messages = sms_spam.read_jsonl(MESSAGES)
    base = Path("models") / section.base
    decides = params.model_dump(include={"finetune_classify"})
    with (
        stage_states("finetune-classify", decides, [MESSAGES, base]) as states,
        stage_run(
            "finetune-classify", params, sections=("data", "finetune_classify"), inputs=[MESSAGES, base],
            run_file=states.run_file
        ) as run,
    ):  # fmt: skip
        curve, scores, before, baseline, majority, characters = [], [], [], [], [], []
        predictions: list[dict[str, Any]] = []
        ranking, p_spam = [], []
        for number, seed in enumerate(section.seeds):
            splits = sms_spam.split(messages, section.val_fraction, section.test_fraction, seed)
            on_metrics = run.log_metrics if number == 0 else _silent  # one curve a run
            result = finetune_classify(
                section, seed, base, sms_spam.LABELS,
                splits.train, splits.val, splits.test, on_metrics, states.training(f"seed-{seed}"),
            )  # fmt: skip
            truth = [label for label, _ in splits.test]
            scores.append(classification_metrics(truth, result.after))
            before.append(classification_metrics(truth, result.before))
            baseline.append(tfidf_baseline(splits.train, splits.test, seed))
            majority.append(majority_baseline(splits.train, splits.test))
            characters.append(tfidf_baseline(splits.train, splits.test, seed, characters=True))
            curve += [{"seed": seed, **row} for row in result.curve]
            predictions += [
                {"seed": seed, "actual": actual, "predicted": predicted, "probability": round(max(p), 6), "text": text}
                for (actual, text), predicted, p in zip(splits.test, result.after, result.probabilities, strict=True)
            ]
            own_p_spam = [row[sms_spam.LABELS.index("spam")] for row in result.probabilities]
            ranking.append(ranking_metrics(truth, own_p_spam))
            p_spam += own_p_spam
            if number == 0:  # the first seed's model is the one kept
                save_model(MODEL, result.model, result.tokenizer)

        calibrated = calibration(p_spam, [row["actual"] == "spam" for row in predictions])  # of all seeds together

        def over_seeds(rows: Sequence[Mapping[str, Any]], key: str) -> float:
            return round(mean(row[key] for row in rows), 6)

        metrics = {
            "test_accuracy": over_seeds(scores, "accuracy"),
            "test_f1": over_seeds(scores, "f1"),
            "test_accuracy_by_seed": {
                str(s): round(r["accuracy"], 6) for s, r in zip(section.seeds, scores, strict=True)
            },
            **_spread_metrics([row["accuracy"] for row in scores]),
            "test_roc_auc": over_seeds(ranking, "roc_auc"),
            "test_average_precision": over_seeds(ranking, "average_precision"),
            "before_test_accuracy": over_seeds(before, "accuracy"),
            "before_test_f1": over_seeds(before, "f1"),
            "baseline_test_accuracy": over_seeds(baseline, "accuracy"),
            "baseline_test_f1": over_seeds(baseline, "f1"),
            "majority_test_accuracy": over_seeds(majority, "accuracy"),
            "majority_test_f1": over_seeds(majority, "f1"),
            "characters_test_accuracy": over_seeds(characters, "accuracy"),
            "characters_test_f1": over_seeds(characters, "f1"),
            "test_ece": calibrated.ece,
            "confusion_matrix": scores[0]["confusion_matrix"],
            "before_confusion_matrix": before[0]["confusion_matrix"],
            "train_messages": len(splits.train),
            "val_messages": len(splits.val),
            "test_messages": len(splits.test),
            "truncated_messages": result.truncated,
            "trainable_parameters": result.trainable_parameters,
        }
        files.write_csv(CURVE, ("seed", *COLUMNS), curve)
        files.write_csv(CONFUSION, ("seed", "actual", "predicted"), predictions)
        files.write_csv(CALIBRATION, BIN_COLUMNS, calibrated.bins)
        files.write_csv(MISTAKES, MISTAKE_COLUMNS, surest_mistakes(predictions))
        files.write_json("metrics/finetune_classify.json", metrics)
        run.log_artifact(CURVE)
        run.log_figure(plots.accuracy_curve, CURVE, PLOTS / "classify_accuracy.svg")
        matrix = metrics["confusion_matrix"]
        run.log_figure(plots.confusion_matrix, matrix, sms_spam.LABELS, PLOTS / "classify_confusion.svg")
        run.log_figure(plots.reliability, calibrated.bins, calibrated.ece, "spam", PLOTS / "classify_reliability.svg")
        run.finish(metrics)
        run.log_model("classifier", MODEL, metrics)


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
