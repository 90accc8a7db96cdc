"""Figures of the stages' results.

Each function writes one file, .svg or .png by its suffix; the same input gives the same bytes.
"""

from gpt2core.tracking.plots.curves import draw_curve
from gpt2core.tracking.plots.figure import BLUE, ORANGE, theme
from gpt2core.tracking.plots.scores import (
    confusion_matrix,
    precision_recall_curves,
    reliability,
    roc_curves,
    score_histogram,
)
from gpt2core.tracking.plots.text import attention_heatmaps, temperature_effect, token_lengths, token_loss

__all__ = [
    "BLUE",
    "ORANGE",
    "attention_heatmaps",
    "confusion_matrix",
    "draw_curve",
    "precision_recall_curves",
    "reliability",
    "roc_curves",
    "score_histogram",
    "temperature_effect",
    "theme",
    "token_lengths",
    "token_loss",
]
