"""What a classifier and a judge decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

from gpt2core.track.plots.figure import AnyPath, figure, log_y, one_plot


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
    with one_plot(out_path, (4.2, 3.8)) as axes:
        image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
        axes.figure.colorbar(image, label="share of the actual label")
        for y, row in enumerate(counts):
            for x, count in enumerate(row):
                colour = "black" if shares[y][x] > 0.5 else "white"  # cividis runs from dark to light
                axes.text(x, y, f"{count}\n{shares[y][x]:.1%}", ha="center", va="center", color=colour)
        axes.set(xlabel="predicted label", ylabel="actual label")
        axes.set_xticks(range(len(labels)), labels)
        axes.set_yticks(range(len(labels)), labels)
        axes.grid(False)


def reliability(bins: Sequence[Mapping[str, float]], ece: float, positive: str, out_path: AnyPath) -> None:
    """Whether a probability means what it says: predicted probability against how often it was so, and how many there
    are of each (DeGroot and Fienberg 1983; Niculescu-Mizil and Caruana 2005).

    Args:
        bins: `from`, `to`, `n`, `mean_probability`, `share` of each bin of predicted probability that is not empty.
        ece: expected calibration error, 0 to 1.
        positive: the label whose probability it is.
        out_path: the file to write.
    """
    with figure(out_path, (4.8, 4.8)) as drawing:
        above, below = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color="0.5", linestyle=":", label="perfectly calibrated")
        x, y = ([row[key] for row in bins] for key in ("mean_probability", "share"))
        above.plot(x, y, color="C0", marker="o", markersize=5, label=f"the classifier (ECE {ece:.1%})")
        above.set(ylabel=f"messages that are {positive} (fraction)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        drawing.legend(loc="outside upper center", ncols=2)
        lefts, widths = [row["from"] for row in bins], [row["to"] - row["from"] for row in bins]
        below.bar(lefts, [row["n"] for row in bins], widths, align="edge", edgecolor=below.get_facecolor())
        below.set(xlabel=f"predicted probability of {positive}", ylabel="messages\n(count)")
        log_y(below)


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
