"""The figures of each stage, from its metrics and CSV files: for its run in MLflow, and for the report."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gpt2core import files
from gpt2core.tracking.plots import curves, scores, text

FOLDER = Path("metrics/plots")
CURVES = {  # by stage: name, caption, and kind of the figures that are drawn from its curve
    "pretrain": (
        ("pretrain_loss", "Loss by tokens seen", curves.LOSS),
        ("pretrain_perplexity", "Validation perplexity by tokens seen", curves.PERPLEXITY),
        ("pretrain_learning_rate", "Learning rate", curves.LEARNING_RATE),
        ("pretrain_grad_norm", "Gradient norm", curves.GRAD_NORM),
    ),
    "finetune-classify": (("classify_accuracy", "Accuracy by messages seen, each seed", curves.ACCURACY),),
    "finetune-instruct": (("instruct_loss", "Loss by entries seen", curves.LOSS),),
}

JUDGE_BASELINES = {
    "base_score": "base model",
    "echo_score": "echo of the input",
    "nearest_score": "nearest training answer",
}


class StageFigure(NamedTuple):
    """The name of the file, the caption in the report, and a function that draws the figure to a path."""

    name: str
    caption: str
    draw: Callable[[Path], None]


def stage_figures(stage: str, metrics: Mapping[str, Any], root: Path = Path()) -> Iterator[StageFigure]:
    """Yield the figures for which the stage's files and metrics are there.

    Args:
        stage: name in dvc.yaml.
        metrics: content of the stage's file in metrics/.
        root: the project.
    """
    curve = root / FOLDER / f"{stage.replace('-', '_')}.csv"
    for name, caption, kind in CURVES.get(stage, ()) if curve.exists() else ():
        yield StageFigure(name, caption, partial(curves.draw_curve, kind, curve))
    if stage == "tokenize":
        yield from _lengths(root / FOLDER)
    elif stage == "finetune-classify":
        yield from _classifier(root / FOLDER, metrics)
    elif stage == "llm-judge-eval":
        yield from _judge(root / FOLDER, metrics)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none if it is missing."""
    return list(csv.DictReader(io.StringIO(files.read_text(path)))) if path.exists() else []


def _lengths(folder: Path) -> Iterator[StageFigure]:
    tokens, documents = (
        [{key: int(value) for key, value in row.items()} for row in read_rows(folder / f"{name}_lengths.csv")]
        for name in ("token", "document")
    )
    if tokens and documents:
        draw = partial(text.token_lengths, tokens, documents)
        yield StageFigure("token_lengths", "Lengths of tokens and of documents", draw)


def _classifier(folder: Path, metrics: Mapping[str, Any]) -> Iterator[StageFigure]:
    labels = metrics.get("labels", ["ham", "spam"])  # earlier results had these two
    for name, when in (("before_confusion", "before fine-tuning"), ("confusion", "after")):
        if matrix := metrics.get(f"{name}_matrix"):
            draw = partial(scores.confusion_matrix, matrix, labels)
            yield StageFigure(f"classify_{name}", f"Confusion {when}, first seed", draw)
    bins = [{key: float(value) for key, value in row.items()} for row in read_rows(folder / "calibration.csv")]
    if bins and "test_ece" in metrics:
        draw = partial(scores.reliability, bins, metrics["test_ece"], labels)
        yield StageFigure("classify_reliability", "Calibration: predicted probability and frequency", draw)
    classes = labels[1:] if len(labels) == 2 else labels
    lines = "each seed" if len(classes) == 1 else "each class against the rest, each seed"
    for name, key, plot, caption in (
        ("roc", "test_roc_auc", scores.roc_curves, "ROC: true by false positives"),
        ("precision_recall", "test_average_precision", scores.precision_recall_curves, "Precision by recall"),
    ):
        if (points := read_rows(folder / f"{name}.csv")) and key in metrics:
            areas = dict(zip(classes, metrics.get(f"{key}_by_class", [metrics[key]]), strict=True))
            yield StageFigure(f"classify_{name}", f"{caption}, {lines}", partial(plot, points, areas))


def _judge(folder: Path, metrics: Mapping[str, Any]) -> Iterator[StageFigure]:
    if rows := read_rows(folder / "judge_scores.csv"):
        of_model = [float(row["score"]) if row["score"] else None for row in rows]
        others = {name: metrics[key] for key, name in JUDGE_BASELINES.items() if key in metrics}
        draw = partial(scores.score_histogram, of_model, others)
        yield StageFigure("judge_scores", "Scores of the responses", draw)
