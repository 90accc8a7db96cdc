"""What changes while a model trains, from the CSV that its stage writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from itertools import groupby

from gpt2core import files
from gpt2core.errors import UserError
from gpt2core.tracking.plots.figure import AnyPath, log_y, one_plot

PROGRESS = {"tokens": "tokens seen", "examples": "examples seen", "epoch": "epochs"}  # x axes, the preferred one first
Lines = Mapping[str, tuple[str, str, str]]  # column -> label, colour, line style


def loss_curve(csv_path: AnyPath, out_path: AnyPath) -> None:
    """Training and validation loss by tokens (or examples) seen.

    Args:
        csv_path: columns train_loss and val_loss in nats a token, and tokens, examples or epoch; cells may be empty.
        out_path: the file to write.

    Raises:
        UserError: a column is missing or a cell is no number.
    """
    _curve(csv_path, out_path, _training_and_validation("loss"), "loss (nats per token)")


def perplexity_curve(csv_path: AnyPath, out_path: AnyPath) -> None:
    """Validation perplexity, as `loss_curve`; column val_perplexity, on a logarithmic axis."""
    lines = {"val_perplexity": ("validation", "C1", "--")}
    _curve(csv_path, out_path, lines, "perplexity (exp of nats per token)", log=True)


def learning_rate_curve(csv_path: AnyPath, out_path: AnyPath) -> None:
    """The learning rate of AdamW, as `loss_curve`; column lr."""
    _curve(csv_path, out_path, {"lr": ("learning rate", "C0", "-")}, "learning rate (per update)")


def grad_norm_curve(csv_path: AnyPath, out_path: AnyPath) -> None:
    """The gradient's norm before it is clipped, as `loss_curve`; column grad_norm."""
    _curve(csv_path, out_path, {"grad_norm": ("gradient", "C0", "-")}, "gradient norm (L2, before clipping)")


def accuracy_curve(csv_path: AnyPath, out_path: AnyPath) -> None:
    """Training and validation accuracy by examples seen, a line for each value of the column `seed`, if there is one.

    Args:
        csv_path: columns train_accuracy and val_accuracy in 0..1, and tokens, examples or epoch; cells may be empty.
        out_path: the file to write.

    Raises:
        UserError: a column is missing or a cell is no number.
    """
    _curve(csv_path, out_path, _training_and_validation("accuracy"), "accuracy (fraction of messages)")


def _training_and_validation(quantity: str) -> Lines:
    return {f"train_{quantity}": ("training", "C0", "-"), f"val_{quantity}": ("validation", "C1", "--")}


def _curve(csv_path: AnyPath, out_path: AnyPath, wanted: Lines, y_label: str, log: bool = False) -> None:
    """Columns by progress, a line for each seed."""
    rows = list(csv.DictReader(io.StringIO(files.read_text(csv_path))))
    columns = set(rows[0]) if rows else set()
    x_column = next((column for column in PROGRESS if column in columns), None)
    if x_column is None or not wanted.keys() <= columns:
        raise UserError(
            f"{csv_path}: needs rows with the columns {' and '.join(wanted)} and one of {', '.join(PROGRESS)}; "
            f"found {', '.join(sorted(columns)) or 'no rows'}"
        )
    with one_plot(out_path) as axes:
        for _, group in groupby(rows, key=lambda row: row.get("seed")):
            run = list(group)
            for column, (label, colour, style) in wanted.items():
                points = [(row[x_column], row[column]) for row in run if row[column]]
                x, y = _as_numbers(csv_path, points)
                marker = "o" if len(x) < 30 else None
                axes.plot(x, y, color=colour, linestyle=style, marker=marker, markersize=3, label=label)
        named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # each label once
        if len(named) > 1:
            axes.legend(named.values(), named.keys())
        axes.set(xlabel=PROGRESS[x_column], ylabel=y_label)
        axes.xaxis.set_major_formatter(_count)
        if log:
            log_y(axes)


def _count(value: float, _: float) -> str:
    """A tick of the x axis.

    >>> _count(1_200_000, 0), _count(2500, 0), _count(2.5, 0)
    ('1.2 M', '2.5 k', '2.5')
    """
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _as_numbers(csv_path: AnyPath, points: list[tuple[str, str]]) -> tuple[list[float], list[float]]:
    try:
        return [float(x) for x, _ in points], [float(y) for _, y in points]
    except ValueError as error:
        raise UserError(f"{csv_path}: a cell is no number ({error}); write a number or leave it empty") from None
