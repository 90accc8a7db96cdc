"""Pictures of the chapters: each function writes `img/NAME.svg` in the working directory.

The same numbers give the same bytes, in colors that color-blind people can tell apart.
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
def picture(name: str, inches: tuple[float, float] = (6.4, 3.6)) -> Iterator[Figure]:
    """Yield a figure to draw on, then write it, whole or not at all."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    files.write_text(Path("img") / f"{name}.svg", svg.getvalue())


def heatmaps(
    name: str, maps: Mapping[str, Matrix], rows: Sequence[str] = (), columns: Sequence[str] = (), low: float = 0.0
) -> None:
    """Draw matrices [rows, columns] next to each other, on one scale from `low` to their maximum; keys are titles."""
    matrices = {title: np.asarray(matrix, dtype=float) for title, matrix in maps.items()}
    high = max(matrix.max() for matrix in matrices.values())
    with picture(name, (1.2 + 3.2 * len(maps), 3.6)) as figure:
        all_axes = figure.subplots(1, len(maps), squeeze=False)[0]
        for axes, (title, matrix) in zip(all_axes, matrices.items(), strict=True):
            # Many cells become one small bitmap: as shapes they would make a file of megabytes.
            mesh = axes.pcolormesh(matrix, cmap="cividis", vmin=low, vmax=high, rasterized=matrix.size > 400)
            axes.invert_yaxis()
            axes.set_title(title, fontsize=10)
            if rows:
                axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
            if columns:
                axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90)
        figure.colorbar(mesh, ax=all_axes)


def surface(name: str, matrix: Matrix, x: str, y: str, z: str) -> None:
    """Draw a matrix [rows, columns] as a surface: rows along y, columns along x, values along z."""
    heights = np.asarray(matrix, dtype=float)
    columns, rows = np.meshgrid(np.arange(heights.shape[1]), np.arange(heights.shape[0]))
    with picture(name, (5.6, 4.4)) as figure:
        axes = figure.add_subplot(projection="3d")
        axes.plot_surface(
            columns, rows, heights, cmap="cividis", rstride=1, cstride=1, linewidth=0.2, edgecolor="#333333"
        )
        axes.set(xlabel=x, ylabel=y, zlabel=z)
        axes.view_init(elev=35, azim=-125)


def curves(name: str, lines: Mapping[str, Curve], x: str, y: str, log: str = "") -> None:
    """Draw lines over common axes; keys are labels, and `log` names the logarithmic axes, such as "xy"."""
    with picture(name) as figure:
        axes = figure.subplots()
        for (label, (xs, ys)), style in zip(lines.items(), ("-", "--", "-.", ":", (0, (5, 1)), "-"), strict=False):
            axes.plot(xs, ys, label=label, linestyle=style)
        axes.set(xlabel=x, ylabel=y, xscale="log" if "x" in log else "linear", yscale="log" if "y" in log else "linear")
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
