"""Stage finetune-classify: a base model and labelled messages -> models/classifier
(`python -m stages.finetune_classify`)."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from gpt2core import config, files
from gpt2core.data import sms_spam
from gpt2core.evaluate.calibration import COLUMNS as BIN_COLUMNS
from gpt2core.evaluate.calibration import calibration
from gpt2core.evaluate.classification import classification_metrics, tfidf_baseline
from gpt2core.runtime import run_stage
from gpt2core.track import plots, stage_run
from gpt2core.train.classify import COLUMNS, finetune_classify, trainable_parameters
from gpt2core.train.states import stage_states
from gpt2core.weights.model_dir import save_model

MESSAGES = Path("data/raw/sms.jsonl")
PLOTS = Path("metrics/plots")
CURVE = PLOTS / "finetune_classify.csv"
CONFUSION = PLOTS / "confusion.csv"
CALIBRATION = PLOTS / "calibration.csv"


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
        curve, confusion, scores, before, baseline, p_spam = [], [], [], [], [], []
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
            curve += [{"seed": seed, **row} for row in result.curve]
            confusion += [{"seed": seed, "actual": a, "predicted": p} for a, p in zip(truth, result.after, strict=True)]
            p_spam += [row[sms_spam.LABELS.index("spam")] for row in result.probabilities]
            if number == 0:  # the first seed's model is the one kept
                save_model("models/classifier", result.model, result.tokenizer)

        calibrated = calibration(p_spam, [row["actual"] == "spam" for row in confusion])  # of all seeds together

        def over_seeds(rows: list[dict[str, Any]], key: str) -> float:
            return round(mean(row[key] for row in rows), 6)

        metrics = {
            "test_accuracy": over_seeds(scores, "accuracy"),
            "test_f1": over_seeds(scores, "f1"),
            "test_accuracy_by_seed": {
                str(s): round(r["accuracy"], 6) for s, r in zip(section.seeds, scores, strict=True)
            },
            "before_test_accuracy": over_seeds(before, "accuracy"),
            "before_test_f1": over_seeds(before, "f1"),
            "baseline_test_accuracy": over_seeds(baseline, "accuracy"),
            "baseline_test_f1": over_seeds(baseline, "f1"),
            "test_ece": calibrated.ece,
            "confusion_matrix": scores[0]["confusion_matrix"],
            "before_confusion_matrix": before[0]["confusion_matrix"],
            "train_messages": len(splits.train),
            "val_messages": len(splits.val),
            "test_messages": len(splits.test),
            "truncated_messages": result.truncated,
            "trainable_parameters": trainable_parameters(result.model),
        }
        files.write_csv(CURVE, ("seed", *COLUMNS), curve)
        files.write_csv(CONFUSION, ("seed", "actual", "predicted"), confusion)
        files.write_csv(CALIBRATION, BIN_COLUMNS, calibrated.bins)
        files.write_json("metrics/finetune_classify.json", metrics)
        run.log_artifact(CURVE)
        run.log_figure(plots.accuracy_curve, CURVE, PLOTS / "classify_accuracy.svg")
        matrix = metrics["confusion_matrix"]
        run.log_figure(plots.confusion_matrix, matrix, sms_spam.LABELS, PLOTS / "classify_confusion.svg")
        run.log_figure(plots.reliability, calibrated.bins, calibrated.ece, "spam", PLOTS / "classify_reliability.svg")
        run.finish(metrics)


def _silent(metrics: dict[str, float], step: int) -> None:
    """Curves of further seeds are in the CSV."""


if __name__ == "__main__":
    run_stage(main)
