"""Draws every figure into a folder: `python -m tests.tracking.draw_all FOLDER`, to compare two processes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from gpt2core.tracking.plots import curves, scores, text

CURVE = (
    "tokens,step,train_loss,val_loss,val_perplexity,lr,grad_norm\n"
    "1000,1,5.5,,,0.001,2\n2000,2,4.25,4.5,90.017,0.006,1.5\n3000,3,3.5,,,0.004,1.25\n4000,4,3.25,3.75,42.521,0.001,1\n"
)
ACCURACY = (
    "seed,epoch,examples,train_accuracy,val_accuracy\n"
    "1,1,100,0.8,0.7\n1,2,200,0.9,0.8\n2,1,100,0.75,0.7\n2,2,200,0.95,0.85\n"
)
TOKENS = ["The", "·lamp", "$x$", "é", "漢", "."]
TOKEN_LENGTHS = [{"bytes": 1, "vocabulary": 256, "text": 900}, {"bytes": 3, "vocabulary": 44, "text": 100}]
DOCUMENT_LENGTHS = [{"from": 16, "to": 32, "documents": 3}, {"from": 32, "to": 64, "documents": 7}]
BINS = [
    {"from": 0.0, "to": 0.1, "n": 300, "mean_probability": 0.01, "share": 0.02},
    {"from": 0.9, "to": 1.0, "n": 320, "mean_probability": 0.98, "share": 0.99},
]

ROC = [
    {"seed": 1, "class": "spam", "false_positive_rate": x, "true_positive_rate": y}
    for x, y in ((0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1))
]
PRECISION_RECALL = [
    {"seed": 1, "class": "spam", "recall": x, "precision": y} for x, y in ((0, 1), (0.5, 1), (1, 2 / 3))
]


def attention(layers: int, heads: int, tokens: int) -> np.ndarray:
    """Weights that a causal model could have: [L, H, T, T]"""
    scores = np.random.default_rng(0).random((layers, heads, tokens, tokens)) * np.tri(tokens)
    return scores / scores.sum(-1, keepdims=True)


def draw_all(folder: Path, suffixes: tuple[str, ...] = (".svg", ".png")) -> None:
    """Draw every figure of `gpt2core.tracking.plots` once per suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    curve, accuracy = folder / "curve.csv", folder / "accuracy.csv"
    curve.write_text(CURVE)
    accuracy.write_text(ACCURACY)
    draw = {
        "loss_curve": lambda out: curves.draw_curve(curves.LOSS, curve, out),
        "perplexity_curve": lambda out: curves.draw_curve(curves.PERPLEXITY, curve, out),
        "learning_rate_curve": lambda out: curves.draw_curve(curves.LEARNING_RATE, curve, out),
        "grad_norm_curve": lambda out: curves.draw_curve(curves.GRAD_NORM, curve, out),
        "accuracy_curve": lambda out: curves.draw_curve(curves.ACCURACY, accuracy, out),
        "confusion_matrix": lambda out: scores.confusion_matrix([[90, 10], [1, 49]], ("ham", "spam"), out),
        "reliability": lambda out: scores.reliability(BINS, 0.012, ("ham", "spam"), out),
        "roc_curves": lambda out: scores.roc_curves(ROC, {"spam": 0.75}, out),
        "precision_recall_curves": lambda out: scores.precision_recall_curves(PRECISION_RECALL, {"spam": 5 / 6}, out),
        "score_histogram": lambda out: scores.score_histogram([0, 55.0, None, 100], {"echo": 31.0}, out),
        "token_lengths": lambda out: text.token_lengths(TOKEN_LENGTHS, DOCUMENT_LENGTHS, out),
        "attention_heatmaps": lambda out: text.attention_heatmaps(attention(2, 3, len(TOKENS)), TOKENS, out),
        "temperature_effect": lambda out: text.temperature_effect(TOKENS[:2], {0.5: [0.8, 0.2], 1: [0.6, 0.3]}, out),
        "token_loss": lambda out: text.token_loss(TOKENS, [None, 5.0, 0.1, 2, 3, 0.0], out),
    }
    for name, figure in draw.items():
        for suffix in suffixes:
            figure(folder / f"{name}{suffix}")


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
