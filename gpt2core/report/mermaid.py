"""Charts that GitHub draws in a comment, where it shows no inline SVG: Mermaid's `xychart-beta`."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np

from gpt2core.report.plot_changes import Curve

MAX_POINTS = 33
MAX_LABEL_CHARS = 40
MAX_DECIMALS = 20
CONFIG = {
    "xyChart": {"width": 640, "height": 300, "xAxis": {"titleFontSize": 12}, "yAxis": {"titleFontSize": 12}},
    "themeVariables": {"xyChart": {"plotColorPalette": "#8c959f, #0969da"}},
}


def chart(curve: Curve) -> str:
    """Return a fenced chart of an old curve and a new one, on evenly spaced x, as Mermaid draws them."""
    ends = [float(points[i, 0]) for points in (*curve.old, *curve.new) for i in (0, -1)]
    low, high = min(ends), max(ends)
    x = np.linspace(low, high, n_points(low, high))
    lines = np.stack([np.mean([np.interp(x, *points.T) for points in side], axis=0) for side in (curve.old, curve.new)])
    lines = _rounded(lines)
    y_low, y_high = lines.min(), lines.max()
    if y_low == y_high:
        y_low, y_high = y_low - 1, y_high + 1
    return "\n".join((
        "```mermaid",
        f"%%{{init: {json.dumps(CONFIG)}}}%%",
        "xychart-beta",
        f"    x-axis {_label(curve.x_label)}{_number(low)} --> {_number(high)}",
        f"    y-axis {_label(curve.y_label)}{_number(y_low)} --> {_number(y_high)}",
        *(f"    line [{', '.join(map(_number, line))}]" for line in lines),
        "```\n",
    ))  # fmt: skip


def n_points(low: float, high: float) -> int:
    """Return the number of points of a line: at most MAX_POINTS, and one with which Mermaid draws the last point.

    Mermaid 11.4 adds up the distance between two points, and leaves out the last one if rounding carries it beyond
    `high`.
    """
    for n in range(MAX_POINTS, 2, -1):
        steps = itertools.accumulate(itertools.repeat((high - low) / (n - 1), n - 1), initial=low)
        if max(steps) <= high:
            return n
    return 2


def _rounded(lines: np.ndarray) -> np.ndarray:
    """Return values with five digits for the range that they cover."""
    span = float(lines.max() - lines.min())
    return lines.round(min(MAX_DECIMALS, 4 - math.floor(math.log10(span)))) if span else lines


def _label(text: str) -> str:
    """Return a quoted label with a space, without characters that have a meaning in Mermaid; '' if none is left."""
    text = "".join(c if c.isalnum() or c in " .,:()/+-_" else " " for c in text[:MAX_LABEL_CHARS]).strip()
    return f'"{text}" ' if text else ""


def _number(value: float) -> str:
    """Return a number without an exponent, which Mermaid cannot read."""
    return np.format_float_positional(value, trim="-")
