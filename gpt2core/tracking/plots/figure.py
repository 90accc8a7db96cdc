"""Style, colors, and output of all figures. The same input gives the same bytes.

The colors are those of Okabe and Ito (2008), which color-blind people can distinguish.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2core import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AnyPath = str | os.PathLike[str]

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # in a figure: C0, C1, C2, C3
INK, PAPER, GRID = "#222222", "#FFFFFF", "#B0B0B0"
# The colors of a figure on a dark screen. PURPLE and a plot's own colors stay as they are.
DARK = {
    BLUE: "#56B4E9", ORANGE: "#E69F00", GREEN: "#00C08B", INK: "#DDDDDD", PAPER: "#16181D", GRID: "#666666",
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "gpt2core",  # ids of elements are random without it
    "svg.fonttype": "none",  # text stays text: small, searchable
    "text.parse_math": False,  # tokens hold dollar signs
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "grid.color": GRID,
    **dict.fromkeys(("figure.facecolor", "savefig.facecolor", "axes.facecolor"), PAPER),
}
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it reports where its cache is if HOME cannot be written


def dark(svg: str) -> str:
    """Return a figure in the colors for a dark screen. Drawing it again would take fifty times as long."""
    return re.sub(r"(?<=: )#[0-9a-f]{6}(?=[;\"])", lambda color: DARK.get(color[0].upper(), color[0]).lower(), svg)


@contextlib.contextmanager
def figure(out_path: AnyPath, size_inches: tuple[float, float] = (6.0, 3.8)) -> Iterator[Figure]:
    """Yield a figure to draw on, and save it atomically, as .svg or .png by the path's suffix."""
    kind = Path(out_path).suffix.removeprefix(".")
    if kind not in ("svg", "png"):
        raise ValueError(f"{out_path}: the suffix must be .svg or .png")
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure  # not pyplot: no window system, no state shared by the process

    with matplotlib.rc_context(STYLE | {"axes.prop_cycle": cycler(color=(BLUE, ORANGE, GREEN, PURPLE))}):
        drawing = Figure(figsize=size_inches, dpi=120, layout="constrained")
        yield drawing
        with files.atomic_path(out_path) as temporary:
            drawing.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)


@contextlib.contextmanager
def one_plot(out_path: AnyPath, size_inches: tuple[float, float] = (6.0, 3.8)) -> Iterator[Axes]:
    """Yield the axes of a figure with one plot, and save it; see `figure`."""
    with figure(out_path, size_inches) as drawing:
        yield drawing.add_subplot()


def log_y(axes: Axes) -> None:
    """Make the y axis logarithmic, its ticks plain numbers: matplotlib's own are formulas."""
    from matplotlib.ticker import LogFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def drawable(text: str) -> str:
    """Return a text with □ for each character that matplotlib's own font lacks."""
    from matplotlib.font_manager import findfont, get_font

    characters = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(character if ord(character) in characters else "□" for character in text)
