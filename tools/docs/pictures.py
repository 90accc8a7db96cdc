"""Pictures of the chapters: each function writes `img/NAME.svg` in the working directory.

The same numbers give the same bytes, in colors that color-blind people can tell apart. A picture is as wide as a phone,
so that its labels can be read there.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gpt2core import files

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#555555")  # Okabe and Ito (2008)
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "gpt2core",  # ids of elements are random without it
    "svg.fonttype": "none",  # text stays text: small, searchable
    "font.size": 10,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLORS),
}
Curve = tuple[Sequence[float], Sequence[float]]  # x and y
Matrix = Sequence[Sequence[float]]  # [rows, columns]


@contextlib.contextmanager
def picture(name: str, inches: tuple[float, float] = (4.8, 3.2)) -> Iterator[Figure]:
    """Yield a figure to draw on, then write it, whole or not at all."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    files.write_text(Path("img") / f"{name}.svg", svg.getvalue())


def heatmaps(
    name: str, maps: Mapping[str, Matrix], rows: Sequence[str] = (), columns: Sequence[str] = (), low: float = 0.0,
    x: str = "", y: str = "",
) -> None:  # fmt: skip
    """Draw matrices [rows, columns] next to each other, on one scale from `low` to their maximum.

    Args:
        name: of the file.
        maps: matrices of one shape by title.
        rows: labels of the rows.
        columns: labels of the columns.
        low: the lowest number of the scale.
        x: label of the horizontal axes.
        y: label of the vertical axis.
    """
    matrices = {title: np.asarray(matrix, dtype=float) for title, matrix in maps.items()}
    high = max(matrix.max() for matrix in matrices.values())
    with picture(name, (4.8, 3.2 if len(maps) < 3 else 2.5)) as figure:
        all_axes = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
        for axes, (title, matrix) in zip(all_axes, matrices.items(), strict=True):
            # Many cells become one small bitmap: as shapes they would make a file of megabytes.
            across, down = np.arange(matrix.shape[1]), np.arange(matrix.shape[0])  # the cells' centers
            mesh = axes.pcolormesh(
                across, down, matrix, cmap="cividis", vmin=low, vmax=high, rasterized=matrix.size > 400
            )
            axes.set_title(title, fontsize=10)
            axes.set_xlabel(x)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            if columns:
                axes.set_xticks(across, columns, rotation=90)
        all_axes[0].invert_yaxis()
        all_axes[0].set_ylabel(y)
        if rows:
            all_axes[0].set_yticks(np.arange(len(rows)), rows)
        figure.colorbar(mesh, ax=all_axes, orientation="horizontal", shrink=0.6, aspect=30)


def curves(name: str, lines: Mapping[str, Curve], x: str, y: str, log: str = "") -> None:
    """Draw lines over common axes; keys are labels, and `log` names the logarithmic axes, such as "xy"."""
    with picture(name) as figure:
        axes = figure.subplots()
        for (label, (xs, ys)), style in zip(lines.items(), ("-", "--", "-.", ":", (0, (5, 1)), "-"), strict=False):
            axes.plot(xs, ys, label=label, linestyle=style)
        axes.set(xlabel=x, ylabel=y, xscale="log" if "x" in log else "linear", yscale="log" if "y" in log else "linear")
        if "x" not in log and all(float(each).is_integer() for xs, _ in lines.values() for each in xs):
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(True)
        if len(lines) > 1:
            axes.legend(frameon=False)


def bars(
    name: str, groups: Mapping[str, Mapping[str, float]], y: str, log: bool = False, stacked: bool = False
) -> None:
    """Draw bars by group (the outer keys, the legend) over common labels (the inner keys, the x axis)."""
    labels = list(next(iter(groups.values())))
    with picture(name) as figure:
        axes = figure.subplots()
        bottom, width = np.zeros(len(labels)), 0.8 / (1 if stacked else len(groups))
        for number, (group, values) in enumerate(groups.items()):
            heights = np.array([values[label] for label in labels])
            at = np.arange(len(labels)) + (0 if stacked else (number - (len(groups) - 1) / 2) * width)
            axes.bar(at, heights, width, bottom=bottom if stacked else None, label=group)
            bottom += heights
        axes.set_xticks(np.arange(len(labels)), labels)
        axes.set(ylabel=y)
        axes.grid(True, axis="y")
        if len(groups) > 1:
            axes.legend(frameon=False)
