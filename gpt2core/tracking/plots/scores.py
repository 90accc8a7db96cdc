"""Results of a classifier and a judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import mean
from typing import Any

from gpt2core.tracking.plots.figure import AnyPath, figure, log_y, one_plot

MAX_WITH_SHARES = 8  # labels of a confusion matrix whose cells have count and share
MAX_WITH_COUNTS = 24  # labels of one whose cells have the count
COLORED = 4  # lines of curves; see figure.py
MAX_NAME = 24  # characters of a label


def confusion_matrix(counts: Sequence[Sequence[int]], labels: Sequence[str], out_path: AnyPath) -> None:
    """Draw how often each label was predicted as which.

    Args:
        counts: [labels, labels], a row for each actual label, a column for each predicted one.
        labels: names, in the same order.
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
                color = "black" if shares[y][x] > 0.5 else "0.98"  # cividis runs from dark to light; not PAPER
                if n <= MAX_WITH_SHARES:
                    axes.text(x, y, f"{count}\n{shares[y][x]:.1%}", ha="center", va="center", color=color)
                elif count and n <= MAX_WITH_COUNTS:
                    axes.text(x, y, f"{count}", ha="center", va="center", color=color, fontsize=8)
        axes.set(xlabel="predicted label", ylabel="actual label")
        axes.set_xticks(range(n), names)
        axes.set_yticks(range(n), names)
        if longest * n > 20 or n > MAX_WITH_SHARES:  # they would run into each other
            axes.tick_params(axis="x", rotation=90)
        if n > MAX_WITH_COUNTS:
            axes.tick_params(labelsize=max(3.0, 180 / n))
        axes.grid(False)


def reliability(bins: Sequence[Mapping[str, float]], ece: float, labels: Sequence[str], out_path: AnyPath) -> None:
    """Draw how often predictions of each probability are right, and how many there are.

    DeGroot and Fienberg 1983; Niculescu-Mizil and Caruana 2005.

    Args:
        bins: `from`, `to`, `n`, `mean_probability`, `share` of each bin of predicted probability that is not empty.
        ece: expected calibration error, 0 to 1.
        labels: with two, the probability is that of the second one; with more, that of the predicted label.
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
    """Draw true positives by false positives, a line for each class and seed (Fawcett 2006).

    Args:
        rows: `seed`, `class`, `false_positive_rate` and `true_positive_rate` of each point, line by line.
        areas: mean area under the curves of each class.
        out_path: the file to write.
    """
    columns = ("false_positive_rate", "true_positive_rate")
    axis_labels = ("false positive rate", "true positive rate (recall)")
    _curves(rows, columns, "default", areas, "AUC", axis_labels, out_path, diagonal="chance")


def precision_recall_curves(rows: Sequence[Mapping[str, Any]], areas: Mapping[str, float], out_path: AnyPath) -> None:
    """Draw precision by recall, a line for each class and seed.

    Args:
        rows: `seed`, `class`, `recall` and `precision` of each point, line by line, by growing recall.
        areas: mean average precision of each class.
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
    """Draw lines in the unit square, and its diagonal if it has a name.

    Of more classes than there are colors, those with the smallest areas are named.
    """
    named = sorted(areas, key=lambda name: areas[name])[:COLORED] if len(areas) > COLORED else list(areas)
    colors = {name: f"C{number}" for number, name in enumerate(named)}
    with one_plot(out_path, (4.8, 4.8)) as axes:
        if diagonal:
            axes.plot([0, 1], [0, 1], color="0.5", linestyle=":", label=diagonal)
        labeled: set[str] = set()
        for (name, _), group in groupby(rows, key=lambda row: (row["class"], row["seed"])):
            x, y = zip(*((float(row[columns[0]]), float(row[columns[1]])) for row in group), strict=True)
            if name in colors:
                label, color, order = f"{area} {areas[name]:.3f} {_short(name)}", colors[name], 3
            else:
                label, color, order = f"{len(areas) - COLORED} more", "0.7", 2
            axes.plot(
                x, y, color=color, drawstyle=drawstyle, linewidth=1, zorder=order,
                label=None if label in labeled else label,
            )  # fmt: skip
            labeled.add(label)
        axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1], xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.figure.legend(loc="outside upper center", ncols=2)


def _short(name: str) -> str:
    """Return a label that leaves room for the picture.

    >>> _short("spam"), _short("a label that is a whole sentence")
    ('spam', 'a label that is a whole…')
    """
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def score_histogram(scores: Iterable[float | None], others: Mapping[str, float], out_path: AnyPath) -> None:
    """Draw a histogram of scores, in tens, and their mean.

    Args:
        scores: 0 to 100; None (the judge gave none) is left out.
        others: means to compare with, by name.
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
