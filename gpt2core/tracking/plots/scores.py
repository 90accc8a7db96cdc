"""What a classifier and a judge decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import mean
from typing import Any

from gpt2core.tracking.plots.figure import AnyPath, figure, log_y, one_plot

FEW_LABELS, MANY_LABELS = 8, 24  # up to so many, a cell of the confusion matrix has count and share; or the count alone
COLOURED = 4  # lines of curves; see figure.py
MAX_NAME = 24  # characters of a label


def confusion_matrix(counts: Sequence[Sequence[int]], labels: Sequence[str], out_path: AnyPath) -> None:
    """How often each label was taken for which.

    Args:
        counts: [labels, labels], a row for each actual label, a column for each predicted one.
        labels: their names, in the same order.
        out_path: the file to write.

    Raises:
        ValueError: the matrix is not square in the labels.
    """
    if len(counts) != len(labels) or any(len(row) != len(labels) for row in counts):
        raise ValueError(f"counts must be {len(labels)} rows of {len(labels)}, one for each label")
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]  # of the actual label
    names, n = [_short(label) for label in labels], len(labels)
    longest = max(map(len, names))
    more = min(0.6 * max(0, n - 4), 9.0) + 0.08 * max(0, longest - 6)  # inches, than for a few short labels
    with one_plot(out_path, (4.2 + more, 3.8 + more)) as axes:
        image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
        axes.figure.colorbar(image, label="share of the actual label")
        for y, row in enumerate(counts):
            for x, count in enumerate(row):
                colour = "black" if shares[y][x] > 0.5 else "white"  # cividis runs from dark to light
                if n <= FEW_LABELS:
                    axes.text(x, y, f"{count}\n{shares[y][x]:.1%}", ha="center", va="center", color=colour)
                elif count and n <= MANY_LABELS:
                    axes.text(x, y, f"{count}", ha="center", va="center", color=colour, fontsize=8)
        axes.set(xlabel="predicted label", ylabel="actual label")
        axes.set_xticks(range(n), names)
        axes.set_yticks(range(n), names)
        if longest * n > 20 or n > FEW_LABELS:  # they would run into each other
            axes.tick_params(axis="x", rotation=90)
        if n > MANY_LABELS:
            axes.tick_params(labelsize=max(3.0, 180 / n))
        axes.grid(False)


def reliability(bins: Sequence[Mapping[str, float]], ece: float, labels: Sequence[str], out_path: AnyPath) -> None:
    """Whether a probability means what it says: predicted probability against how often it was so, and how many there
    are of each (DeGroot and Fienberg 1983; Niculescu-Mizil and Caruana 2005).

    Args:
        bins: `from`, `to`, `n`, `mean_probability`, `share` of each bin of predicted probability that is not empty.
        ece: expected calibration error, 0 to 1.
        labels: the probability is that of two labels' second one, of more that of the label predicted.
        out_path: the file to write.
    """
    came, probability = "right predictions", "probability of the predicted label"
    if len(labels) == 2:
        positive = _short(labels[1])
        came, probability = f"messages that are {positive}", f"predicted probability of {positive}"
    with figure(out_path, (4.8, 4.8)) as drawing:
        above, below = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color="0.5", linestyle=":", label="perfectly calibrated")
        x, y = ([row[key] for row in bins] for key in ("mean_probability", "share"))
        above.plot(x, y, color="C0", marker="o", markersize=5, label=f"the classifier (ECE {ece:.1%})")
        above.set(ylabel=f"{came} (fraction)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        drawing.legend(loc="outside upper center", ncols=2)
        lefts, widths = [row["from"] for row in bins], [row["to"] - row["from"] for row in bins]
        below.bar(lefts, [row["n"] for row in bins], widths, align="edge", edgecolor=below.get_facecolor())
        below.set(xlabel=probability, ylabel="messages\n(count)")
        log_y(below)


def roc_curves(rows: Sequence[Mapping[str, Any]], areas: Mapping[str, float], out_path: AnyPath) -> None:
    """How many false alarms are the price of how many finds, a line for each class and seed (Fawcett 2006).

    Args:
        rows: `seed`, `class`, `false_positive_rate` and `true_positive_rate` of each point, line by line.
        areas: of each class the mean area under its curves.
        out_path: the file to write.
    """
    columns = ("false_positive_rate", "true_positive_rate")
    axis_labels = ("false positive rate", "true positive rate (recall)")
    _curves(rows, columns, "default", areas, "AUC", axis_labels, out_path, diagonal="chance")


def precision_recall_curves(rows: Sequence[Mapping[str, Any]], areas: Mapping[str, float], out_path: AnyPath) -> None:
    """How many of those found are right, by how many are found, a line for each class and seed.

    Args:
        rows: `seed`, `class`, `recall` and `precision` of each point, line by line, by growing recall.
        areas: of each class the mean average precision.
        out_path: the file to write.
    """
    # Level from the recall before up to each point: the area is then the average precision.
    _curves(rows, ("recall", "precision"), "steps-pre", areas, "AP", ("recall", "precision"), out_path)


def _curves(
    rows: Sequence[Mapping[str, Any]],
    columns: tuple[str, str],
    drawstyle: str,
    areas: Mapping[str, float],
    area: str,
    axis_labels: tuple[str, str],
    out_path: AnyPath,
    diagonal: str | None = None,
) -> None:
    """Lines in the unit square, on request with its named diagonal. Of more classes than there are colours, those of
    the least area are named."""
    named = sorted(areas, key=lambda name: areas[name])[:COLOURED] if len(areas) > COLOURED else list(areas)
    colours = {name: f"C{number}" for number, name in enumerate(named)}
    with one_plot(out_path, (4.8, 4.8)) as axes:
        if diagonal:
            axes.plot([0, 1], [0, 1], color="0.5", linestyle=":", label=diagonal)
        labelled: set[str] = set()
        for (name, _), group in groupby(rows, key=lambda row: (row["class"], row["seed"])):
            x, y = zip(*((float(row[columns[0]]), float(row[columns[1]])) for row in group), strict=True)
            if name in colours:
                label, colour, order = f"{area} {areas[name]:.3f} {_short(name)}", colours[name], 3
            else:
                label, colour, order = f"{len(areas) - COLOURED} more", "0.7", 2
            axes.plot(
                x, y, color=colour, drawstyle=drawstyle, linewidth=1, zorder=order,
                label=None if label in labelled else label,
            )  # fmt: skip
            labelled.add(label)
        axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1], xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.figure.legend(loc="outside upper center", ncols=2)


def _short(name: str) -> str:
    """A label that leaves room for the picture.

    >>> _short("spam"), _short("a label that is a whole sentence")
    ('spam', 'a label that is a whole…')
    """
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def score_histogram(scores: Iterable[float | None], others: Mapping[str, float], out_path: AnyPath) -> None:
    """How many responses got which score, in tens, and the mean.

    Args:
        scores: 0 to 100; None (the judge gave none) is left out.
        others: means to hold beside it, by whose they are.
        out_path: the file to write.
    """
    given = [score for score in scores if score is not None]
    with one_plot(out_path) as axes:
        axes.hist(given, bins=range(0, 101, 10), edgecolor=axes.get_facecolor())
        if given:
            axes.axvline(mean(given), color="C1", linewidth=2, label=f"mean {mean(given):.1f}")
            for (name, value), style in zip(others.items(), ("--", "-.", ":"), strict=False):
                axes.axvline(value, color="C2", linestyle=style, label=f"{name} {value:.1f}")
            axes.figure.legend(loc="outside upper center", ncols=2)
        axes.set(xlabel="score (0 to 100)", ylabel="responses (count)", xlim=(0, 100))
