"""Figures of the stages' results. Each function writes one file, .svg or .png by its suffix; the same input gives the
same bytes. The colours are those of Okabe and Ito (2008), which colour-blind people can tell apart."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from gpt2core import files
from gpt2core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"
PROGRESS = {"tokens": "tokens seen", "examples": "examples seen", "epoch": "epochs"}  # x axes, the preferred one first
STYLE = {
    "svg.hashsalt": "gpt2core",  # ids of elements are random without it
    "svg.fonttype": "none",  # text stays text: small, searchable
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
AnyPath = str | os.PathLike[str]


def loss_curve(csv_path: AnyPath, out_path: AnyPath) -> None:
    """Training and validation loss by tokens (or examples) seen.

    Args:
        csv_path: columns train_loss and val_loss in nats a token, and tokens, examples or epoch; cells may be empty.
        out_path: the file to write.

    Raises:
        UserError: a column is missing or a cell is no number.
    """
    _curve(csv_path, out_path, "loss", "loss (nats per token)")


def accuracy_curve(csv_path: AnyPath, out_path: AnyPath) -> None:
    """Training and validation accuracy by examples seen, a line for each value of the column `seed`, if there is one.

    Args:
        csv_path: columns train_accuracy and val_accuracy in 0..1, and tokens, examples or epoch; cells may be empty.
        out_path: the file to write.

    Raises:
        UserError: a column is missing or a cell is no number.
    """
    _curve(csv_path, out_path, "accuracy", "accuracy (fraction of messages)")


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
    with _figure(out_path, (4.2, 3.8)) as axes:
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


def score_histogram(scores: Iterable[float | None], out_path: AnyPath) -> None:
    """How many responses got which score, in tens, and the mean.

    Args:
        scores: 0 to 100; None (the judge gave none) is left out.
        out_path: the file to write.
    """
    given = [score for score in scores if score is not None]
    with _figure(out_path) as axes:
        axes.hist(given, bins=range(0, 101, 10), color=BLUE, edgecolor="white")
        if given:
            axes.axvline(mean(given), color=ORANGE, linestyle="--", label=f"mean {mean(given):.1f}")
            axes.legend()
        axes.set(xlabel="score (0 to 100)", ylabel="responses (count)", xlim=(0, 100))


def _curve(csv_path: AnyPath, out_path: AnyPath, quantity: str, y_label: str) -> None:
    """train_<quantity> and val_<quantity> by progress, a line for each seed."""
    rows = list(csv.DictReader(io.StringIO(files.read_text(csv_path))))
    columns = set(rows[0]) if rows else set()
    x_column = next((column for column in PROGRESS if column in columns), None)
    wanted = {f"train_{quantity}": ("training", BLUE, "-"), f"val_{quantity}": ("validation", ORANGE, "--")}
    if x_column is None or not wanted.keys() <= columns:
        raise UserError(
            f"{csv_path}: needs rows with the columns {' and '.join(wanted)} and one of {', '.join(PROGRESS)}; "
            f"found {', '.join(sorted(columns)) or 'no rows'}"
        )
    with _figure(out_path) as axes:
        for _, group in groupby(rows, key=lambda row: row.get("seed")):
            run = list(group)
            for column, (label, colour, style) in wanted.items():
                points = [(row[x_column], row[column]) for row in run if row[column]]
                x, y = _as_numbers(csv_path, points)
                marker = "o" if len(x) < 30 else None
                axes.plot(x, y, color=colour, linestyle=style, marker=marker, markersize=3, label=label)
        named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # each label once
        axes.legend(named.values(), named.keys())
        axes.set(xlabel=PROGRESS[x_column], ylabel=y_label)


def _as_numbers(csv_path: AnyPath, points: list[tuple[str, str]]) -> tuple[list[float], list[float]]:
    try:
        return [float(x) for x, _ in points], [float(y) for _, y in points]
    except ValueError as error:
        raise UserError(f"{csv_path}: a cell is no number ({error}); write a number or leave it empty") from None


@contextlib.contextmanager
def _figure(out_path: AnyPath, size_inches: tuple[float, float] = (6.0, 3.8)) -> Iterator[Axes]:
    """Axes to draw on; afterwards they are saved, atomically."""
    kind = Path(out_path).suffix.removeprefix(".")
    if kind not in ("svg", "png"):
        raise ValueError(f"{out_path}: the suffix must be .svg or .png")
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no window system, no state shared by the process

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size_inches, dpi=120, layout="constrained")
        yield figure.add_subplot()
        with files.atomic_path(out_path) as temporary:
            figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)
