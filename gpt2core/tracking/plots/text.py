"""Figures about tokens: lengths, attention, next tokens, and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpt2core.tracking.plots.figure import AnyPath, drawable, figure, one_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TICKS = 64  # labels of tokens along one axis that can be read


def token_lengths(
    tokens: Sequence[Mapping[str, int]], documents: Sequence[Mapping[str, int]], out_path: AnyPath
) -> None:
    """Draw histograms: bytes per token, in the vocabulary and in the text; tokens per document.

    Args:
        tokens: `bytes`, and the number of tokens of that length in the `vocabulary` and in the `text`.
        documents: `from` and `to` (exclusive, a power of two) in tokens, and the number of `documents` between.
        out_path: the file to write.
    """
    with figure(out_path, (8.0, 3.6)) as drawing:
        left, right = drawing.subplots(1, 2)
        lengths = np.array([row["bytes"] for row in tokens])
        for offset, column, label in ((-0.2, "vocabulary", "of the vocabulary"), (0.2, "text", "of the text's tokens")):
            share = np.array([row[column] for row in tokens]) / max(1, sum(row[column] for row in tokens))
            left.bar(lengths + offset, share, 0.4, label=label)
        left.set(xlabel="length of a token (bytes)", ylabel="share of tokens (fraction)")
        left.legend()
        edges = [str(row["from"]) for row in documents]
        counts = [row["documents"] for row in documents]
        right.bar(range(len(documents)), counts, 1.0, align="edge", edgecolor=right.get_facecolor())
        right.set_xticks(range(len(documents) + 1), [*edges, *(str(row["to"]) for row in documents[-1:])])
        right.tick_params(axis="x", rotation=45 if len(documents) > 6 else 0)
        right.set(xlabel="length of a document (tokens)", ylabel="documents (count)")


def attention_heatmaps(weights: np.ndarray, tokens: Sequence[str], out_path: AnyPath) -> None:
    """Draw the attention of each head, a row of heat maps for each layer: from the token at the left to the one below.

    Args:
        weights: [L, H, T, T]; row t of a head is the attention of position t.
        tokens: [T]
        out_path: the file to write.
    """
    L, H, T, _ = weights.shape
    seen = np.where(np.tri(T, dtype=bool), weights, np.nan)  # what a token cannot see stays empty
    gap = max(1, T // 12)
    tile = T + gap
    sheet = np.full((L * tile - gap, H * tile - gap), np.nan)
    for layer in range(L):
        for head in range(H):
            sheet[layer * tile :, head * tile :][:T, :T] = seen[layer, head]
    # One picture for all heads: hundreds of axes would take minutes. About as large on paper whatever the model.
    inches = min(0.12 * sheet.shape[1], 9.0) / sheet.shape[1]
    size = (sheet.shape[1] * inches + 2.2, sheet.shape[0] * inches + 1.4)
    with one_plot(out_path, size) as axes:
        import matplotlib

        # The square root as a scale: among many tokens most weights are small.
        norm = matplotlib.colors.PowerNorm(0.5, vmin=0, vmax=1)
        image = axes.imshow(sheet, cmap="cividis", norm=norm, interpolation="none")
        ticks = (0, 0.05, 0.2, 0.5, 1)
        axes.figure.colorbar(image, label="attention weight", shrink=min(1.0, 3.0 / size[1]), ticks=ticks, format="%g")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        names = [drawable(token) for token in tokens]
        for axis, word, n in ((axes.xaxis, "head", H), (axes.yaxis, "layer", L)):
            middles = [number * tile + (T - 1) / 2 for number in range(n)]
            if n * T <= MAX_TICKS:
                places = [number * tile + t for number in range(n) for t in range(T)]
                axis.set_ticks(places, names * n, fontsize=min(6, 70 * inches))
                axis.set_tick_params(length=0)
                _name_tiles(axes, word, middles)
            else:
                axis.set_ticks(middles, [f"{word} {number}" for number in range(1, n + 1)], fontsize=min(8, 500 / n))
                axis.set_tick_params(length=0)
        axes.xaxis.set_tick_params(rotation=90)
        axes.set(xlabel="looked at (token)", ylabel="looking (token)")


def _name_tiles(axes: Axes, word: str, middles: Sequence[float]) -> None:
    """Write names of layers or heads on the side that has no tokens."""
    side = axes.secondary_xaxis("top") if word == "head" else axes.secondary_yaxis("right")
    side.set_ticks(middles, [f"{word} {number}" for number in range(1, len(middles) + 1)], fontsize=8)
    side.tick_params(length=0)
    side.spines[:].set_visible(False)


def temperature_effect(
    tokens: Sequence[str], probabilities: Mapping[float, Sequence[float]], out_path: AnyPath
) -> None:
    """Draw how the temperature changes the probabilities of the most likely next tokens.

    Args:
        tokens: [n], the most likely first.
        probabilities: [n], by temperature.
        out_path: the file to write.
    """
    height = 0.8 / len(probabilities)
    with one_plot(out_path, (6.0, 1.2 + 0.45 * len(tokens))) as axes:
        for number, (temperature, values) in enumerate(probabilities.items()):
            at = np.arange(len(tokens)) + (number - (len(probabilities) - 1) / 2) * height
            axes.barh(at, values, height, color=f"C{number % 4}", label=f"temperature {temperature:g}")
        axes.set_yticks(range(len(tokens)), [drawable(token) for token in tokens])
        axes.invert_yaxis()
        axes.set(xlabel="probability", ylabel="next token")
        axes.legend()


def token_loss(tokens: Sequence[str], loss_nats: Sequence[float | None], out_path: AnyPath) -> None:
    """Draw the loss of each token of a text.

    Args:
        tokens: [T]
        loss_nats: [T]; None where there is none.
        out_path: the file to write.
    """
    width = min(12.0, 1.5 + 0.22 * len(tokens))
    with one_plot(out_path, (max(4.0, width), 3.2)) as axes:
        axes.bar(range(len(tokens)), [loss or 0.0 for loss in loss_nats])
        if len(tokens) <= MAX_TICKS:
            axes.set_xticks(range(len(tokens)), [drawable(token) for token in tokens], rotation=90, fontsize=8)
        axes.set(xlabel="token", ylabel="loss (nats)")
