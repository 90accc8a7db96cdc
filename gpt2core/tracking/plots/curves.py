"""Curves of a training, from the CSV file that its stage writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from itertools import groupby
from typing import NamedTuple

from gpt2core import files
from gpt2core.errors import UserError
from gpt2core.tracking.plots.figure import AnyPath, log_y, one_plot

PROGRESS = {"tokens": "tokens seen", "examples": "examples seen", "epoch": "epochs"}  # x axes, the preferred one first


class Curve(NamedTuple):
    """The label of the y axis, and label, color, and style of the line of each column."""

    y_label: str
    lines: Mapping[str, tuple[str, str, str]]
    is_log: bool = False


def _training_and_validation(quantity: str, y_label: str) -> Curve:
    lines = {f"train_{quantity}": ("training", "C0", "-"), f"val_{quantity}": ("validation", "C1", "--")}
    return Curve(y_label, lines)


LOSS = _training_and_validation("loss", "loss (nats per token)")
ACCURACY = _training_and_validation("accuracy", "accuracy (fraction of messages)")
PERPLEXITY = Curve("perplexity (exp of nats per token)", {"val_perplexity": ("validation", "C1", "--")}, is_log=True)
LEARNING_RATE = Curve("learning rate (per update)", {"lr": ("learning rate", "C0", "-")})
GRAD_NORM = Curve("gradient norm (L2, before clipping)", {"grad_norm": ("gradient", "C0", "-")})


def draw_curve(curve: Curve, csv_path: AnyPath, out_path: AnyPath) -> None:
    """Draw columns of a CSV file by progress, a line for each value of the column `seed`, if there is one.

    Args:
        curve: its columns, and how they are drawn.
        csv_path: the columns of the curve, and tokens, examples or epoch; cells may be empty.
        out_path: the file to write.

    Raises:
        UserError: a column is missing or a cell is no number.
    """
    rows = list(csv.DictReader(io.StringIO(files.read_text(csv_path))))
    columns = set(rows[0]) if rows else set()
    x_column = next((column for column in PROGRESS if column in columns), None)
    if x_column is None or not curve.lines.keys() <= columns:
        raise UserError(
            f"{csv_path}: needs rows with the columns {' and '.join(curve.lines)} and one of {', '.join(PROGRESS)}; "
            f"found {', '.join(sorted(columns)) or 'no rows'}"
        )
    from matplotlib.ticker import EngFormatter

    with one_plot(out_path) as axes:
        for _, group in groupby(rows, key=lambda row: row.get("seed")):
            run = list(group)
            for column, (label, color, style) in curve.lines.items():
                points = [(row[x_column], row[column]) for row in run if row[column]]
                x, y = _as_numbers(csv_path, points)
                marker = "o" if len(x) < 30 else None
                axes.plot(x, y, color=color, linestyle=style, marker=marker, markersize=3, label=label)
        named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # each label once
        if len(named) > 1:
            axes.legend(named.values(), named.keys())
        axes.set(xlabel=PROGRESS[x_column], ylabel=curve.y_label)
        if x_column != "epoch":
            axes.xaxis.set_major_formatter(EngFormatter())  # 1.2 M
        if curve.is_log:
            log_y(axes)


def _as_numbers(csv_path: AnyPath, points: list[tuple[str, str]]) -> tuple[list[float], list[float]]:
    try:
        return [float(x) for x, _ in points], [float(y) for _, y in points]
    except ValueError as error:
        raise UserError(f"{csv_path}: a cell is no number ({error}); write a number or leave it empty") from None
